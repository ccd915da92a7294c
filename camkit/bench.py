"""A run: models, images, cells in; results folder out."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

import camkit.methods
import camkit.metrics  # noqa: F401  (both fill the registries)
from camkit.config import RunConfig
from camkit.data import DataSet, Item, find_images
from camkit.errors import CamkitError, UsageError
from camkit.evaluate import Cell, CellScores, Evaluation, Predictions
from camkit.models import PAPER_ROWS, LoadedModel, calibrate, find_row, load_model
from camkit.pixels import Preprocess, batches
from camkit.registry import METHODS, METRICS, Method, unknown_name
from camkit.results import (
    DEFINITIONS_VERSION,
    KEYS,
    Maps,
    Table,
    check_protocol,
    file_name,
    number,
    read_run,
    score_columns,
    summarise,
    write_run,
    write_summary,
)
from camkit.tracing import Network, last_feature_layer
from camkit.utilities import UTILITIES

TARGETS = ("predicted", "label", "correct")
# What all cells of one results folder have in common; the rest of the protocol belongs to a model and layer.
SHARED = (
    "target_rule", "steps", "preprocess", "dtype", "weights", "seed", "data_fingerprint", "definitions"
)  # fmt: skip
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
            raise unknown_name("method", name, METHODS, also=f"; groups: {', '.join(sorted(groups))}, all")
        members = [m for m in METHODS.values() if name in ("all", m.name, *m.groups)]
        found |= {member.name: member for member in members}
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


def find_models(names: Iterable[str]) -> list[str]:
    """Model names, `all` being the paper's twelve.

    Raises:
        UsageError: a model does not exist.
    """
    listed = [row.name for name in names for row in (PAPER_ROWS if name == "all" else [find_row(name)])]
    return list(dict.fromkeys(listed))


def find_device(name: str) -> torch.device:
    """The device by its name; `auto`: CUDA, else MPS, else CPU.

    Raises:
        UsageError: this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from error
    return device


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
    loaded = load_model(name, config.weights, config.preprocess, config.seed)
    height, width = _input_size(loaded.preprocess)
    if not 1 <= config.steps <= height * width:
        raise UsageError(f"--steps {config.steps}: expected 1 to {height * width}, the number of pixels")
    probe = torch.zeros(1, 3, height, width, device=device)
    dtype = getattr(torch, config.dtype)
    network = Network(loaded.model, device, dtype)
    try:
        logits = network.logits(probe)
    except (RuntimeError, AssertionError, ValueError) as error:
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
    paths: dict[str, str] = {}
    for layer in layers:
        named = {"conv": loaded.row.conv, "prepool": loaded.row.prepool}
        if layer in named:
            paths[layer] = named[layer] or _last_layer(network, probe, name, say)
        else:
            paths[layer] = layer
    network.trace(probe, list(dict.fromkeys(paths.values())))
    return Prepared(loaded, network, paths)


def _input_size(preprocess: Preprocess) -> tuple[int, int]:
    height, width = preprocess.crop(Image.new("RGB", (512, 512))).shape[1:]
    return height, width


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


class ModelRun:
    """The cells of one model in a results folder: what is there, what is wanted, and the new rows."""

    def __init__(self, prepared: Prepared, config: RunConfig, data: DataSet, items: Sequence[Item]) -> None:
        name = prepared.loaded.row.name
        self.config = config
        self.items = items
        self.folder = config.out / file_name(name)
        self.cells = [
            Cell(layer, prepared.paths[layer], utility, method)
            for layer in config.layer
            for utility in config.utility
            for method in find_methods(config.method)
        ]
        self.protocols = {
            self._cell_folder(cell): _protocol(prepared, cell, config, data) for cell in self.cells
        }
        for protocol in self.protocols.values():
            check_protocol(config.out, protocol, SHARED)
        self.segment = _segment(prepared, config, data)
        columns = [*KEYS, *score_columns(config.metrics)]
        self._write_run_files()
        self.tables = {cell: Table(self._path(cell, ".csv"), columns) for cell in self.cells}
        self.maps = {
            cell: Maps(self._path(cell, ".npz"))
            for cell in self.cells
            if config.save_maps and not cell.method.saliency
        }
        self.predictions = Table(
            self.folder / "predictions.csv", ("image", "label", "predicted", "probability")
        )
        self.errors = Table(self.folder / "errors.csv", ("image", "stage", "reason"))
        self.flags = Table(
            self.folder / "flags.csv",
            ("layer", "utility", "method", "image", "flag"),
            keys=("layer", "utility", "method", "image", "flag"),
        )

    def _cell_folder(self, cell: Cell) -> Path:
        return self.folder / f"{file_name(cell.layer)}-{cell.utility}"

    def _path(self, cell: Cell, suffix: str) -> Path:
        return self._cell_folder(cell) / (file_name(cell.method.name) + suffix)

    def wanted(self, items: Iterable[Item]) -> dict[Cell, list[str]]:
        """The cells that lack something for any of `items`, and the metric groups to compute for them."""
        wanted: dict[Cell, list[str]] = {}
        for cell in self.cells:
            missing = [self._missing(cell, item) for item in items if self._is_wanted(item)]
            if any(groups is not None for groups in missing):
                found = {group for groups in missing for group in groups or ()}
                wanted[cell] = [group for group in self.config.metrics if group in found]
        return wanted

    def _missing(self, cell: Cell, item: Item) -> list[str] | None:
        """Metric groups that an image lacks in a cell; None where it lacks nothing, its map included."""
        row = self.tables[cell].rows.get((item.id,))
        if row is None:
            return list(self.config.metrics)
        groups = [g for g in self.config.metrics if not all(row.get(column) for column in METRICS[g].columns)]
        unsaved = cell in self.maps and item.id not in self.maps[cell].maps
        return groups if groups or unsaved else None

    def _is_wanted(self, item: Item) -> bool:
        """Whether an image has rows at all: not where `--target correct` is known to leave it out."""
        known = self.predictions.rows.get((item.id,))
        return self.config.target != "correct" or known is None or known["predicted"] == str(item.label)

    def todo(self) -> list[Item]:
        return [item for item in self.items if self.wanted([item])]

    def write(self, result: Predictions | CellScores) -> None:
        """Append one batch's rows; they are on disk when this returns."""
        if isinstance(result, Predictions):
            self.predictions.append(
                {
                    "image": item.id,
                    "label": _text(item.label),
                    "predicted": str(predicted),
                    "probability": number(probability),
                }
                for item, predicted, probability in zip(
                    result.items, result.predicted, result.probability, strict=True
                )
            )
            return
        cell = result.cell
        self.flags.append(
            {
                "layer": cell.layer,
                "utility": cell.utility,
                "method": cell.method.name,
                "image": item.id,
                "flag": flag,
            }
            for flag, values in result.flags.items()
            for item, value in zip(result.items, values, strict=True)
            if value
        )
        if cell in self.maps and result.maps is not None:
            self.maps[cell].append([item.id for item in result.items], result.maps.float().cpu().numpy())
        self.tables[cell].append(
            {
                "image": item.id,
                "label": _text(item.label),
                "target": str(result.target[place]),
                **{column: number(values[place]) for column, values in result.scores.items()},
            }
            for place, item in enumerate(result.items)
        )

    def write_errors(self, errors: Iterable[tuple[Item, str]]) -> None:
        self.errors.append({"image": item.id, "stage": "read", "reason": reason} for item, reason in errors)

    def finish(self, images: int, seconds: float) -> None:
        """Merge and sort the tables, write the maps, and complete run.json."""
        order = {item.id: place for place, item in enumerate(self.items)}
        for table in self.tables.values():
            if table.rows:
                table.compact(order)
        for maps in self.maps.values():
            maps.finish(order)
        self.segment |= {"images": images, "seconds": round(seconds, 3)}
        self._write_run_files()

    def _write_run_files(self) -> None:
        for folder, protocol in self.protocols.items():
            methods = [cell.method.name for cell in self.cells if self._cell_folder(cell) == folder]
            run = read_run(folder) if (folder / "run.json").exists() else {"methods": [], "segments": []}
            segments = [s for s in run["segments"] if s["started"] != self.segment["started"]]
            write_run(
                folder,
                {
                    "protocol": protocol,
                    "methods": list(dict.fromkeys([*run["methods"], *methods])),
                    "segments": [*segments, self.segment],
                },
            )


def _text(label: int | None) -> str:
    return "" if label is None else str(label)


def _protocol(prepared: Prepared, cell: Cell, config: RunConfig, data: DataSet) -> dict[str, Any]:
    """Everything that decides a number of a cell's folder."""
    loaded = prepared.loaded
    return {
        "model": loaded.row.name,
        "library_name": f"{loaded.row.library}/{loaded.row.entry}",
        "layer": cell.layer,
        "module": cell.path,
        "utility": cell.utility,
        "target_rule": config.target,
        "steps": config.steps,
        "preprocess": config.preprocess,
        "transform": loaded.preprocess.describe(),
        "dtype": config.dtype,
        "weights": loaded.weights.kind,
        "weights_tag": loaded.weights.tag,
        "weights_sha256": loaded.weights.sha256,
        "seed": config.seed,
        "data_fingerprint": data.fingerprint,
        "definitions": DEFINITIONS_VERSION,
    }


def _segment(prepared: Prepared, config: RunConfig, data: DataSet) -> dict[str, Any]:
    """With what, and when, some of the rows of a folder were made."""
    device = prepared.network.device
    return {
        "command": config.command(),
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "data": data.name,
        "data_images": len(data.items),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "batch_size": config.batch_size,
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda if device.type == "cuda" else None,
            **{name: version(name) for name in ("camkit", "torch", "torchvision", "timm", "numpy", "pillow")},
        },
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of the source tree that camkit runs from, with `-dirty` where files differ; None without."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, check=True)
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def bench(config: RunConfig, say: Say = print) -> pd.DataFrame:
    """Run a benchmark; see :class:`camkit.config.RunConfig`.

    Args:
        say: takes each line that the user should see.

    Returns:
        One row a cell of the results folder, as in its summary.csv.

    Raises:
        UsageError: a name does not exist, or the folder holds results of another protocol.
        CamkitError: weights or images cannot be had.
    """
    models = find_models(config.model)
    find_methods(config.method)
    for name in config.metrics:
        METRICS[name]
    find_utilities(config.utility)
    data = find_images(config.data, config.seed)
    if config.data == "sample":
        say("The data are scikit-image's six sample photos: a demonstration, not a benchmark (see --data).")
    items = list(data.items[: config.limit])
    if config.target != "predicted":
        labelled = [item for item in items if item.label is not None]
        if not labelled:
            raise UsageError(f"--target {config.target} needs labels, and these images have none")
        if len(labelled) < len(items):
            say(
                f"{len(items) - len(labelled)} images without a label are left out (--target {config.target})"
            )
        items = labelled
    for name in models:
        _bench_model(name, config, data, items, say)
        gc.collect()
    summary = summarise(config.out)
    write_summary(config.out, summary)
    return summary


def _bench_model(name: str, config: RunConfig, data: DataSet, items: Sequence[Item], say: Say) -> None:
    prepared = prepare(name, config.layer, data.items, config, say)
    run = ModelRun(prepared, config, data, items)
    todo = run.todo()
    if not todo:
        say(f"{name}: nothing to do, all {len(items)} images are there")
        return
    if len(todo) < len(items):
        say(f"{name}: going on with {len(todo)} of {len(items)} images")
    evaluation = Evaluation(
        prepared.network,
        prepared.loaded.preprocess,
        list(dict.fromkeys(prepared.paths.values())),
        target=config.target,
        batch_size=min(config.batch_size, len(items)),
        steps=config.steps,
        seed=config.seed,
    )
    started = time.perf_counter()
    pinned = prepared.network.device.type == "cuda"
    loader = batches(todo, prepared.loaded.preprocess, evaluation.batch_size, config.workers, pinned)
    faults = done = 0
    with _progress(name, len(todo)) as bar:
        try:
            for batch in loader:
                run.write_errors(batch.errors)
                wanted = run.wanted(batch.items)
                for result in evaluation.run(batch, wanted):
                    run.write(result)
                    if isinstance(result, CellScores):
                        bar.update(len(batch.items) / len(wanted))
                faults += len(batch.errors)
                done += len(batch.items)
                bar.n = done + faults  # exact again after a batch's fractions
        except torch.OutOfMemoryError as error:
            raise CamkitError(
                f"out of memory at --batch-size {evaluation.batch_size}; finished rows are kept. "
                "Start again with a smaller one."
            ) from error
        finally:
            run.finish(done, time.perf_counter() - started)
    if faults:
        say(f"{name}: {faults} images could not be read; see {run.errors.path}")
    if not done:
        raise CamkitError(f"none of the {len(todo)} images could be read; see {run.errors.path}")


def _progress(name: str, total: int) -> tqdm:
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=name,
        unit="img",
        mininterval=0.2 if terminal else 10,  # a log file needs no moving bar
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
    )
