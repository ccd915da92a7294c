"""From names to things: methods, utilities, the device, and a loaded model with its layers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

import camkit.methods
import camkit.metrics  # noqa: F401  (both fill the registries)
from camkit.allocator import keep_freed_memory
from camkit.config import RunConfig
from camkit.data import Item
from camkit.errors import CamkitError, UsageError, is_out_of_memory
from camkit.evaluate import Cell
from camkit.loading import LoadedModel, load_model
from camkit.models import PAPER_ROWS, find_row
from camkit.pixels import Preprocess, batches
from camkit.registry import METHODS, METRICS, Method, unknown_name
from camkit.share import Share
from camkit.tracing import Network, last_feature_layer
from camkit.utilities import UTILITIES
from camkit.weights import calibrate

# Random weights take their batch-norm statistics from this many images, whatever the batch size or limit.
CALIBRATION_IMAGES = 16

Say = Callable[[str], None]


def find_methods(names: Iterable[str]) -> list[Method]:
    """Methods by name or by group (`paper`, `controls`, `all`), each once.

    Raises:
        UsageError: a name is neither.
    """
    groups = {group for method in METHODS.values() for group in method.groups}
    found: dict[str, Method] = {}
    for name in names:
        if name not in METHODS and name != "all" and name not in groups:
            also = f"; and {', '.join(METHODS.forms)}; groups: {', '.join(sorted(groups))}, all"
            raise unknown_name("method", name, METHODS, also)
        grouped = [m for m in METHODS.values() if name in ("all", *m.groups)]
        found |= {member.name: member for member in grouped or [METHODS[name]]}
    return list(found.values())


def find_utilities(names: Iterable[str]) -> list[str]:
    """Utility names.

    Raises:
        UsageError: a utility does not exist.
    """
    for name in names:
        if name not in UTILITIES:
            raise unknown_name("utility", name, UTILITIES)
    return list(names)


def check_names(methods: Iterable[str], utilities: Iterable[str], metrics: Iterable[str]) -> None:
    """All of them exist, and there are some.

    Raises:
        UsageError: one does not.
    """
    methods, utilities = list(methods), list(utilities)
    if not methods or not utilities:
        raise UsageError(f"no {'utility' if methods else 'method'} is named")
    find_methods(methods)
    find_utilities(utilities)
    for name in metrics:
        METRICS[name]


def find_models(names: Iterable[str]) -> list[str]:
    """Model names, `all` being the paper's twelve.

    Raises:
        UsageError: a model does not exist.
    """
    listed = [row.name for name in names for row in (PAPER_ROWS if name == "all" else [find_row(name)])]
    return list(dict.fromkeys(listed))


def cells_of(summary: pd.DataFrame, config: RunConfig) -> pd.DataFrame:
    """The rows of a run's cells in a summary that may hold others too."""
    methods = [method.name for method in find_methods(config.method)]
    return summary[
        summary["model"].isin(find_models(config.model))
        & summary["layer"].isin(config.layer)
        & summary["utility"].isin(config.utility)
        & summary["method"].isin(methods)
    ]


def find_device(name: str) -> torch.device:
    """The device by its name; `auto`: CUDA, else MPS, else CPU. Of several processes each takes its own GPU.

    Raises:
        UsageError: this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = Share.from_environment().device(name)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from error
    return device


@contextmanager
def numerics(tf32: bool, deterministic: bool) -> Iterator[dict[str, Any]]:
    """Set torch's numeric switches, all of them explicitly, and set them back.

    Gives the record for run.json of what moves only last bits (`tf32` moves more: the protocol has it); under
    `deterministic` its entry `not_deterministic` grows by each operation that runs and has no deterministic
    form in torch.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    switches = {(matmul, "allow_tf32"): tf32, (cudnn, "allow_tf32"): tf32}
    switches |= {(cudnn, "benchmark"): False, (cudnn, "deterministic"): deterministic}
    before = {(owner, name): getattr(owner, name) for owner, name in switches}
    algorithms = torch.are_deterministic_algorithms_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    exceptions: list[str] = []
    record = {
        "cudnn_benchmark": False,
        "deterministic": deterministic,
        "not_deterministic": exceptions,
    }
    show = warnings.showwarning

    def keep(message: Warning | str, *details: Any, **more: Any) -> None:
        operation, found, _ = str(message).partition(" does not have a deterministic implementation")
        if found:
            exceptions.append(operation)
        else:
            show(message, *details, **more)

    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    with warnings.catch_warnings():
        warnings.showwarning = keep
        try:
            for (owner, name), value in switches.items():
                setattr(owner, name, value)
            torch.use_deterministic_algorithms(deterministic, warn_only=True)
            yield record
        finally:
            torch.use_deterministic_algorithms(algorithms, warn_only=only_warn)
            for (owner, name), value in before.items():
                setattr(owner, name, value)


@dataclass(frozen=True)
class Prepared:
    """A loaded model, ready to be explained: `paths` maps each layer's name to its module path."""

    loaded: LoadedModel
    network: Network
    paths: Mapping[str, str]


def prepare(name: str, layers: Sequence[str], data: Sequence[Item], config: RunConfig, say: Say) -> Prepared:
    """Load a model and find its layers.

    Args:
        data: images from which random weights take their batch-norm statistics.

    Raises:
        UsageError: a layer does not exist, or the model does not take the images' size.
        CamkitError: the weights cannot be had or do not fit.
    """
    device = find_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    loaded = load_model(name, config.weights, config.preprocess, config.seed)
    loaded = replace(loaded, preprocess=replace(loaded.preprocess, orient=config.exif == "apply"))
    _, height, width = loaded.preprocess.shape
    if not 1 <= config.steps <= height * width:
        raise UsageError(f"--steps {config.steps}: expected 1 to {height * width}, the number of pixels")
    probe = torch.zeros(1, 3, height, width, device=device)
    dtype = getattr(torch, config.dtype)
    try:
        network = Network(loaded.model, device, dtype)
        logits = network.logits(probe)
    except (RuntimeError, AssertionError, ValueError, MemoryError) as error:
        if is_out_of_memory(error):
            raise CamkitError(f"{name} does not fit into the memory of {device}") from error
        raise UsageError(
            f"{name} cannot take {height}x{width} images: {str(error).strip().splitlines()[0]}\n"
            "Use --preprocess native, the transform that belongs to the weights."
        ) from error
    if logits.ndim != 2:
        raise UsageError(
            f"{name} gives {tuple(logits.shape)}, expected logits (B, classes): not a classifier"
        )
    if config.weights == "random":
        images = _first_images(data, loaded.preprocess)
        calibrate(loaded.model, loaded.preprocess.normalise(images.to(device)))
    named: Mapping[str, str | None] = {"conv": loaded.row.conv, "prepool": loaded.row.prepool}
    if any(layer in named and named[layer] is None for layer in layers):
        named = dict.fromkeys(named, _last_layer(network, probe, name, say))
    paths = {layer: named.get(layer) or layer for layer in layers}
    network.trace(probe, list(dict.fromkeys(paths.values())))
    if config.compile:
        network.compile()
    return Prepared(loaded, network, paths)


def cells(prepared: Prepared, config: RunConfig) -> list[Cell]:
    """All cells of one model in a run: its layers by its utilities by its methods.

    Raises:
        UsageError: a method does not exist.
    """
    return [
        Cell(layer, prepared.paths[layer], utility, method)
        for layer in config.layer
        for utility in config.utility
        for method in find_methods(config.method)
    ]


def _last_layer(network: Network, probe: torch.Tensor, name: str, say: Say) -> str:
    noise = torch.randn(probe.shape, generator=torch.Generator().manual_seed(0)).to(probe.device)
    path = last_feature_layer(network.model, noise)
    if path is None:
        raise UsageError(
            f"no feature layer before pooling was found in {name}: name one with --layer MODULE.PATH"
        )
    say(f"{name}: layer conv and prepool both stand for {path!r}, the last feature layer before pooling")
    return path


def _first_images(data: Sequence[Item], preprocess: Preprocess) -> torch.Tensor:
    """uint8 (B, 3, H, W): the first readable images."""
    found: list[torch.Tensor] = []
    for batch in batches(data, preprocess, batch_size=1, workers=0):
        if batch.pixels is not None:
            found.append(batch.pixels)
        if len(found) == CALIBRATION_IMAGES:
            break
    if not found:
        raise CamkitError("no image could be read, and random weights take their statistics from images")
    return torch.cat(found)
