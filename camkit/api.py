"""For scripts and notebooks, in tensors and data frames: load_model, explain, score and bench."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

import camkit.runs.bench
from camkit.config import MethodOptions, RunConfig, ScoreOptions
from camkit.console import say
from camkit.data import sample_items
from camkit.data.pixels import read_file
from camkit.entries import METHODS
from camkit.errors import CamkitError, UsageError
from camkit.methods.fusion import at_layer
from camkit.network.activation import ACTIVATIONS, SOFTMAX
from camkit.network.inspect import as_it_came, expect_logits
from camkit.network.needs import Needs
from camkit.network.passes import Network
from camkit.network.prepare import Prepared, find_device, prepare
from camkit.network.trace import Trace
from camkit.network.utilities import find_utility
from camkit.plugins import load_plugins
from camkit.runs.cells import cells_of, what_is_lacking
from camkit.runs.elsewhere import METRICS_OF_MAPS, scores_of_maps
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


def load_model(
    name: str,
    *,
    weights: str = "pretrained",
    preprocess: str = "paper",
    size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    activation: str = SOFTMAX.name,
    device: str = "auto",
    seed: int = 0,
) -> Prepared:
    """A model that is ready to be explained.

    Args:
        name: as on the command line: `resnet50`, `timm/NAME`, `torchvision/NAME`, or a plugin's model.
        weights: `pretrained`, `random` (seeded; calibrated on the sample photos), or a file.
        size, mean, std: as on the command line: `"320x224"`, `"0.5,0.5,0.5"`; None: those of the transform.

    Raises:
        UsageError: no such model, file or device, or an option cannot be read.
        CamkitError: the weights cannot be had.
    """
    load_plugins()
    config = RunConfig(
        model=(name,), weights=weights, preprocess=preprocess, size=size, mean=mean, std=std,
        activation=activation, device=device, seed=seed,
    )  # fmt: skip
    return prepare(name, ("conv", "prepool"), sample_items() if weights == "random" else [], config, say)


def explain(
    model: Prepared | nn.Module,
    images: Images,
    *,
    method: str = "shapleycam",
    layer: str = "conv",
    utility: str = "rest",
    target: int | Sequence[int] | Tensor | None = None,
    seed: int = 0,
    activation: str = SOFTMAX.name,
    **options: Any,
) -> Explanation:
    """Explain images.

    Args:
        model: from :func:`load_model`, or any module that gives logits (B, K); a module takes tensors, and
            its layer is named by its module path. It is explained in eval mode, and comes back as it was.
        images: normalised images (B, 3, H, W); or photos, as paths or PIL images, which are preprocessed.
        target: class indices, one or one per image; None: the predicted ones.
        seed: of random methods.
        activation: of a module, `softmax` or `sigmoid`; a model from :func:`load_model` has its own.
        options: of methods, as `budget`, see :class:`camkit.config.MethodOptions`.

    Raises:
        UsageError: a name does not exist, `images` are not what the model takes, or an option is none.
        CamkitError: the model or its layer cannot have the method.
        PluginError: a plugin's method failed.
    """
    load_plugins()
    _expect_known("explain", options, MethodOptions.names())
    config = RunConfig(model=(), activation=activation, **options)
    with ExitStack() as after:
        after.enter_context(torch.inference_mode(False))
        network = _network(model, activation, after)
        path = model.paths.get(layer, layer) if isinstance(model, Prepared) else layer
        batch = _batch(images, model if isinstance(model, Prepared) else None).to(network.device)
        network.expect(batch)
        found = at_layer(METHODS[method], path)
        passed = Needs.of(found, network, path).trace(network, batch)
        expect_logits(type(network.model).__name__, passed.logits)
        classes = _classes(target, passed.logits.detach())
        preprocess = model.loaded.preprocess if isinstance(model, Prepared) else None
        trace = Trace(
            images=batch,
            image_ids=[str(place) for place in range(len(batch))],
            pixels=lambda: preprocess.rgb(batch) if preprocess else batch.clone(),
            target=classes,
            utility=find_utility(utility, network.activation.name),
            seed=seed,
            draw=0,
            network=network,
            layer=path,
            passed=passed,
            regions=None,
            options=config,
        )
        why = what_is_lacking(found, network, path)
        if why:
            raise CamkitError(f"method {method!r}: {why}")
        maps, saliency = make_maps(found, trace)
        probability = network.probability(trace.logits, classes)
        return Explanation(saliency, None if found.saliency else maps, classes, probability)


def score(
    model: Prepared | nn.Module,
    images: Images,
    maps: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
    *,
    metrics: Sequence[str] = METRICS_OF_MAPS,
    target: int | Sequence[int] | Tensor | None = None,
    activation: str = SOFTMAX.name,
    **options: Any,
) -> pd.DataFrame:
    """Score maps that were made elsewhere.

    Args:
        model, images, target, activation: as of :func:`explain`.
        maps: (B, h, w), or one (h, w) per image, of any resolution; negative values count as 0 in the
            saliency map.
        metrics: groups of scores that neither explain again (changed images, other classes) nor need a layer.
        options: of scores, as `steps`, see :class:`camkit.config.ScoreOptions`; and `seed`.

    Returns:
        One row per image: `target`, `probability` and the scores, fractions.

    Raises:
        UsageError: a metric needs more than maps, there is not one map (h, w) per image, or as
            :func:`explain`.
    """
    load_plugins()
    _expect_known("score", options, (*ScoreOptions.names(), "seed"))
    config = RunConfig(model=(), metrics=tuple(metrics), activation=activation, **options)
    with ExitStack() as after:
        network = _network(model, activation, after)
        batch = _batch(images, model if isinstance(model, Prepared) else None).to(network.device)
        given = [torch.as_tensor(one) for one in maps]
        if len(given) != len(batch) or any(one.ndim != 2 for one in given):
            shapes = ", ".join(str(tuple(one.shape)) for one in given[:3])
            raise UsageError(f"{len(given)} maps ({shapes}) of {len(batch)} images: expected one (h, w) each")
        logits = network.logits(batch)
        expect_logits(type(network.model).__name__, logits)
        classes = _classes(target, logits)
        found = scores_of_maps(network, batch, given, classes, config)
    table = {name: column.double().cpu().numpy() for name, column in found.items()}
    return pd.DataFrame({"target": classes.cpu().numpy(), **table})


def _expect_known(function: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """
    Raises:
        UsageError: a function does not take one of its options.
    """
    unknown = sorted(options.keys() - {*known})
    if unknown:
        raise UsageError(f"{function} takes no option {unknown[0]!r}. Options: {', '.join(known)}")


def _network(model: Prepared | nn.Module, activation: str, after: ExitStack) -> Network:
    """The passes through a model; a module is given back as it was when `after` ends."""
    if isinstance(model, Prepared):
        return model.network
    device = next((one.device for one in model.parameters()), find_device("cpu"))
    after.enter_context(as_it_came(model))
    network = Network(model, device, activation=ACTIVATIONS[activation])
    network.copies_input = True  # whether it changes its input is not known
    return network


def _classes(target: int | Sequence[int] | Tensor | None, logits: Tensor) -> Tensor:
    """The classes to explain, (B,).

    Raises:
        UsageError: one is none of the model's.
    """
    if target is None:
        return logits.argmax(dim=1)
    classes = torch.as_tensor(target, device=logits.device)
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise UsageError(f"target {target}: expected class indices, whole numbers")
    if classes.ndim > 1 or (classes.ndim == 1 and len(classes) != len(logits)):
        raise UsageError(f"target has the shape {tuple(classes.shape)}: expected one class, or one per image")
    if not ((classes >= 0) & (classes < logits.shape[1])).all():
        raise UsageError(f"target {target}: expected classes from 0 to {logits.shape[1] - 1}")
    return classes.expand(len(logits))


def _batch(images: Images, model: Prepared | None) -> Tensor:
    """Normalised images (B, 3, H, W), a tensor of its own outside inference mode.

    Raises:
        UsageError: they are something else.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or not images.is_floating_point():
            found = f"images are {images.dtype} of the shape {tuple(images.shape)}"
            raise UsageError(f"{found}, expected normalised images (B, 3, H, W)")
        return images.clone() if images.is_inference() else images
    if model is None:
        raise UsageError("a module takes normalised images (B, 3, H, W), a tensor; photos need load_model")
    preprocess = model.loaded.preprocess
    photos = [images] if isinstance(images, str | Path | Image.Image) else list(images)
    crops = []
    for photo in photos:
        if isinstance(photo, Image.Image):
            crops.append(preprocess.crop(photo.convert("RGB")))
        elif isinstance(photo, str | Path):
            crops.append(preprocess.pixels(read_file(Path(photo))))
        else:
            raise UsageError(f"images holds {type(photo).__name__}: expected a tensor, paths or PIL images")
    if not crops:
        raise UsageError("images is empty")
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
    _expect_known("bench", options, [*known])
    options["model"] = model
    for name, value in options.items():
        kind = known[name].metadata["kind"]
        if kind in ("names", "files") and isinstance(value, str | Path):
            options[name] = (str(value),)
        elif kind in ("names", "files") and isinstance(value, Iterable):
            options[name] = tuple(map(str, value))
        elif kind in ("file", "folder") and isinstance(value, str):
            options[name] = Path(value)
        elif name in ("data", "weights") and isinstance(value, Path):
            options[name] = str(value)
    config = RunConfig(**options)
    summary = camkit.runs.bench.bench(config, say=say)
    return None if summary is None else cells_of(summary, config)
