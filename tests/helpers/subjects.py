"""What metrics are given: subjects of maps and scores as a test says, and those of a network's run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tiny import CPU, Headed, seeded
from torch import Tensor, nn

from camkit.config import RunConfig, ScoreOptions
from camkit.data import Item
from camkit.data.batches import Batch
from camkit.entries import METHODS
from camkit.metrics import Subject
from camkit.network.passes import Network
from camkit.results.cells import Cell
from camkit.runs.batch import Explained
from camkit.runs.evaluate import Evaluation


def nothing(*_: object, **__: object) -> Any:
    raise AssertionError("no metric here needs it")


def subject(
    images: Tensor,
    saliency: Tensor,
    score: Callable[[Tensor], Tensor] = nothing,
    again: Tensor | None = None,
    **more: Any,
) -> Subject:
    """Of saliency maps.

    Args:
        again: those of the masked images.
        more: options of scores, and fields of a subject, that are not as they are here.
    """
    given = {name: more.pop(name) for name in ScoreOptions.names() if name in more}
    probability = torch.zeros(len(images)) if score is nothing else score(images)
    fields: dict[str, Any] = {
        "target": torch.zeros(len(images), dtype=torch.int64),
        "logits": torch.zeros(len(images), 2),
        "logit": nothing,
        "options": ScoreOptions(**{"steps": 4} | given),
        "maps": None,
        "regions": None,
        "image_ids": [f"{place}.png" for place in range(len(images))],
        "seed": 0,
        "layer_grid": None,
        "explain_again": nothing if again is None else lambda masked: (score(masked), again),
        "explain_behind": nothing,
        "explain_as": nothing,
        "_find_trace": nothing,
    }
    return Subject(images=images, score=score, probability=probability, saliency=saliency, **fields | more)


def explained(
    model: nn.Module,
    images: Tensor,
    layer: str,
    methods: str | Sequence[str],
    utility: str = "logit",
    target: Sequence[int] | None = None,
    regions: Tensor | None = None,
    **config: Any,
) -> list[Subject]:
    """The subjects of one batch, one per method, as a run makes them.

    Args:
        target: None: the predicted classes.
        config: fields of :class:`camkit.config.RunConfig`.
    """
    network = Network(model, CPU)
    prepared = SimpleNamespace(
        network=network,
        paths={layer: layer},
        loaded=SimpleNamespace(preprocess=SimpleNamespace(rgb=lambda x: x)),
    )
    evaluation = Evaluation(prepared, RunConfig(model=(), **config), len(images))  # type: ignore[arg-type]
    traced = network.trace(images, [layer])
    logits = traced.logits.detach()
    classes = logits.argmax(dim=1) if target is None else torch.as_tensor(target)
    items = tuple(Item(f"{place}.png", Path(f"{place}.png"), None, "") for place in range(len(images)))
    batch = Explained(
        batch=Batch(items, None, ()),
        images=images,
        target=classes,
        probability=network.probability(logits, classes),
        kept=list(range(len(images))),
        traced=traced,
        regions=regions,
    )
    cells = [
        Cell(layer, layer, utility, METHODS[name])
        for name in ([methods] if isinstance(methods, str) else methods)
    ]
    return [evaluation._subject(batch, cell, evaluation._make(batch, cell)) for cell in cells]


class Pooled(nn.Module):
    """Global average pooling and a linear map with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.fc(maps.mean(dim=(2, 3)))


class Curved(nn.Module):
    """Each position counts in another way, and not as itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(6, 5, 3, padding=1), nn.Linear(5 * 6, 4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.fc(self.conv(maps).tanh().flatten(1))


def pooled_or_curved(head: Callable[[], nn.Module]) -> nn.Module:
    """Maps of 2 x 3 positions of 16 x 24 images."""
    return seeded(lambda: Headed(nn.Conv2d(3, 6, 8, stride=8), head()))
