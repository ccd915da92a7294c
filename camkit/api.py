"""For scripts and notebooks: tensors and data frames.

from camkit import bench, explain, load_model
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

import camkit.runs.bench
from camkit.config import DEFAULT_BUDGET, RunConfig, check_options
from camkit.data import sample_items
from camkit.data.pixels import read_file
from camkit.entries import METHODS, UTILITIES
from camkit.errors import UsageError
from camkit.network.passes import Network
from camkit.network.prepare import Prepared, find_device, prepare
from camkit.network.trace import Trace
from camkit.plugins import load_plugins
from camkit.runs.cells import cells_of
from camkit.runs.guard import make_maps

Images = Tensor | str | Path | Image.Image | Sequence[str | Path | Image.Image]


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` gives; tensors lie on the model's device.

    Attributes:
        saliency: saliency maps in [0, 1], (B, H, W).
        maps: signed maps at the layer's resolution, (B, h, w); None from methods that give saliency maps.
        target: explained classes, (B,).
        probability: of these classes, (B,).
    """

    saliency: Tensor
    maps: Tensor | None
    target: Tensor
    probability: Tensor


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def load_model(
    name: str,
    *,
    weights: str = "pretrained",
    preprocess: str = "paper",
    device: str = "auto",
    seed: int = 0,
) -> Prepared:
    """A model that is ready to be explained.

    Args:
        name: as on the command line: `resnet50`, `timm/NAME`, `torchvision/NAME`, or a plugin's model.
        weights: `pretrained`, `random` (seeded; calibrated on the sample photos), or a file.

    Raises:
        UsageError: no such model, file or device.
        CamkitError: the weights cannot be had.
    """
    load_plugins()
    config = RunConfig(model=(name,), weights=weights, preprocess=preprocess, device=device, seed=seed)
    return prepare(name, ("conv", "prepool"), sample_items() if weights == "random" else [], config, _say)


def explain(
    model: Prepared | nn.Module,
    images: Images,
    *,
    method: str = "shapleycam",
    layer: str = "conv",
    utility: str = "rest",
    target: int | Sequence[int] | Tensor | None = None,
    seed: int = 0,
    absent: str = "zero",
    budget: int = DEFAULT_BUDGET,
) -> Explanation:
    """Explain images.

    Args:
        model: from :func:`load_model`, or any module that gives logits (B, K); a module takes tensors, and
            its layer is named by its module path. It is explained in eval mode, and comes back as it was.
        images: normalised images (B, 3, H, W); or photos, as paths or PIL images, which are preprocessed.
        target: class indices, one or one an image; None: the predicted ones.
        seed, absent, budget: of random methods and of Shapley values, see :class:`camkit.config.RunConfig`.

    Raises:
        UsageError: a name does not exist, `images` are not what the model takes, or `budget` is too small.
        PluginError: a plugin's method failed.
    """
    load_plugins()
    check_options({"absent": absent, "budget": budget})
    found_utility = UTILITIES[utility].function
    found = METHODS[method]
    with ExitStack() as after:
        if isinstance(model, Prepared):
            network, path = model.network, model.paths.get(layer, layer)
            batch = _batch(images, model)
        else:
            if not isinstance(images, Tensor):
                raise UsageError("a module takes normalised images (B, 3, H, W); photos need load_model")
            device = next((one.device for one in model.parameters()), find_device("cpu"))
            after.enter_context(_as_it_came(model))
            network, path, batch = Network(model, device), layer, images
        if batch.ndim != 4:
            raise UsageError(f"images have the shape {tuple(batch.shape)}, expected (B, 3, H, W)")
        batch = batch.to(network.device)
        passed = network.trace(batch, [path])
        classes = _classes(target, passed.logits.detach())
        preprocess = model.loaded.preprocess if isinstance(model, Prepared) else None
        trace = Trace(
            images=batch,
            image_ids=[str(place) for place in range(len(batch))],
            pixels=lambda: preprocess.denormalise(batch) if preprocess else batch.clone(),
            target=classes,
            utility=found_utility,
            seed=seed,
            draw=0,
            network=network,
            layer=path,
            absent=absent,
            budget=budget,
            passed=passed,
        )
        maps, saliency = make_maps(found, trace)
        probability = trace.logits.softmax(dim=1).gather(1, classes[:, None])[:, 0]
        return Explanation(saliency, None if found.saliency else maps, classes, probability)


def _classes(target: int | Sequence[int] | Tensor | None, logits: Tensor) -> Tensor:
    """The classes to explain, (B,).

    Raises:
        UsageError: one is none of the model's.
    """
    if target is None:
        return logits.argmax(dim=1)
    classes = torch.as_tensor(target, device=logits.device).expand(len(logits))
    if not ((classes >= 0) & (classes < logits.shape[1])).all():
        raise UsageError(f"target {target}: expected classes from 0 to {logits.shape[1] - 1}")
    return classes


@contextmanager
def _as_it_came(model: nn.Module) -> Iterator[None]:
    """Give a module's modes, and its parameters' `requires_grad` and memory, back as they were."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(one, one.requires_grad, one.data) for one in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, wants_gradient, data in parameters:
            parameter.data = data
            parameter.requires_grad_(wants_gradient)


def _batch(images: Images, model: Prepared) -> Tensor:
    if isinstance(images, Tensor):
        return images
    preprocess = model.loaded.preprocess
    photos = [images] if isinstance(images, str | Path | Image.Image) else images
    crops = [
        preprocess.crop(photo.convert("RGB"))
        if isinstance(photo, Image.Image)
        else preprocess.pixels(read_file(Path(photo)))
        for photo in photos
    ]
    return preprocess.normalise(torch.stack(crops).to(model.network.device))


def bench(model: str | Sequence[str], **options: Any) -> pd.DataFrame | None:
    """Run a benchmark; the results folder (`out`) is the same as that of `camkit bench`.

    Args:
        options: those of the command line, as :class:`camkit.config.RunConfig` names them; names are given
            one, or several in a sequence.

    Returns:
        One row for each of this run's cells: scores are fractions, as in summary.csv. Of several processes
        the last to end has them, the others None.

    Raises:
        UsageError, CamkitError: see :func:`camkit.runs.bench.bench`.
    """
    known = {field.name: field for field in fields(RunConfig)}
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise UsageError(f"bench takes no option {unknown[0]!r}. Options: {', '.join(known)}")
    options["model"] = model
    for name, value in options.items():
        if isinstance(known[name].default, tuple) or name == "model":
            options[name] = (str(value),) if isinstance(value, str | Path) else tuple(map(str, value))
    if "out" in options:
        options["out"] = Path(options["out"])
    config = RunConfig(**options)
    summary = camkit.runs.bench.bench(config, say=_say)
    return None if summary is None else cells_of(summary, config)
