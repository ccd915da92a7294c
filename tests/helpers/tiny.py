"""A small network, runs of it, and short cuts that many tests share."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

from camkit.config import MethodOptions, RunConfig
from camkit.entries import METHODS, UTILITIES
from camkit.network.features import Features
from camkit.network.layers import parts_of
from camkit.network.loading import load_model
from camkit.network.passes import Network
from camkit.network.random import calibrate
from camkit.network.trace import Trace
from camkit.runs.bench import bench
from camkit.runs.guard import make_maps

CPU = torch.device("cpu")


class TinyNet(nn.Module):
    """Convolutions that shrink any image to a few positions, and a linear head with strong opinions.

    `passed` lists the batch size of every forward pass of every instance.
    """

    passed: list[int] = []

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 8, stride=8),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, classes)
        with torch.no_grad():
            self.fc.weight *= 12
        self.num_classes = classes

    def forward(self, images: Tensor) -> Tensor:
        TinyNet.passed.append(len(images))
        return self.fc(self.pool(self.features(images)).flatten(1))


@register_model
def camkit_tiny(pretrained: bool = False, **_: Any) -> TinyNet:
    """So that `timm/camkit_tiny` names it; its native images are 64x64."""
    model = TinyNet()
    model.pretrained_cfg = {
        "input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3),
        "interpolation": "bilinear", "crop_pct": 0.875,
    }  # fmt: skip
    return model


@register_model
def camkit_tiny_too(pretrained: bool = False, **options: Any) -> TinyNet:
    """The same under another name: a second model."""
    return camkit_tiny(pretrained, **options)


TINY: dict[str, Any] = {  # options of a run that takes milliseconds an image
    "model": ("timm/camkit_tiny",),
    "weights": "random",
    "preprocess": "native",
    "device": "cpu",
    "steps": 4,
}


PER_IMAGE = [  # the columns of a cell's table
    "image", "label", "target", "probability", "average_drop", "increase", "drop_in_deletion", "coherency",
    "complexity", "adcc", "deletion_auc", "insertion_auc",
]  # fmt: skip
SCORES = PER_IMAGE[4:]


class Headed(nn.Module):
    """`features` then `head`: any function of the feature layer's output."""

    def __init__(self, features: nn.Module, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def last_feature_layer(model: nn.Module, images: Tensor) -> str | None:
    """Path of a model's last feature layer, as images (B, 3, H, W) show it."""
    return Features(model, images).last()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trace(
    model: nn.Module,
    images: Tensor,
    layer: str = "features",
    utility: str | Callable = "rest",
    target: Sequence[int] | Tensor | Callable[[Tensor], Tensor] | None = None,
    *,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    draw: int = 0,
    pixels: Tensor | None = None,
    regions: Tensor | None = None,
    uses: Sequence[str] = (),
    **options: Any,
) -> Trace:
    """One traced pass, as a method sees it.

    Args:
        target: classes, or what gives them for logits; None: the predicted ones.
        uses: `attention` or `stages`, where a method needs them.
        options: of methods, see :class:`camkit.config.MethodOptions`.
    """
    network = Network(model, CPU)
    network.expect(images)
    layers = {*parts_of(layer), *(network.stages if "stages" in uses else ())}
    passed = network.trace(images, sorted(layers), attention="attention" in uses)
    if target is None:
        classes = passed.logits.argmax(dim=1)
    else:
        classes = target(passed.logits) if callable(target) else torch.as_tensor(target)
    return Trace(
        images=images,
        image_ids=[str(place) for place in range(len(images))] if ids is None else ids,
        pixels=lambda: images if pixels is None else pixels,
        target=classes,
        utility=UTILITIES[utility].function if isinstance(utility, str) else utility,
        seed=seed,
        draw=draw,
        network=network,
        regions=regions,
        options=MethodOptions(**options),
        layer=layer,
        passed=passed,
    )


def maps(method: str, traced: Trace) -> Tensor:
    """Signed maps (B, h, w), or the saliency maps of methods that give these."""
    return make_maps(METHODS[method], traced)[0]


def saliency(method: str, traced: Trace) -> Tensor:
    """Saliency maps (B, H, W)."""
    return make_maps(METHODS[method], traced)[1]


class Given:
    """What a method sees, with A, G and HA as they are given."""

    def __init__(self, activation: Tensor, gradient: Tensor, hvp: Tensor) -> None:
        self.activation, self.gradient, self.hvp = activation, gradient, hvp


def run(data: Path, out: Path, **options: Any) -> list[str]:
    """Run a benchmark of the network; give the lines that the user would see."""
    lines: list[str] = []
    bench(RunConfig(**(TINY | {"data": str(data), "out": out} | options)), say=lines.append)
    return lines


def segments(out: Path) -> list[dict[str, Any]]:
    """What run.json says of the only folder of cells."""
    (path,) = out.glob("*/*/run.json")
    return json.loads(path.read_text())["segments"]


def calibrated_weights(folder: Path) -> Path:
    """Weights whose batch norm does not come from the run's own images."""
    path = folder / "weights.pth"
    if not path.exists():
        model = load_model("timm/camkit_tiny", "random").model
        calibrate(model, noise(8, 3, 64, 64))
        torch.save(model.state_dict(), path)
    return path


def cell(out: Path, name: str = "conv-rest/shapleycam") -> Path:
    """The table of a cell of such a run."""
    return out / "timm__camkit_tiny" / f"{name}.csv"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def silent(line: str) -> None:
    """Takes a line and drops it."""
