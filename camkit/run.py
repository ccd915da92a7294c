"""The cells of one model in a results folder: what is there, what is wanted, and the new rows."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from camkit.config import RunConfig
from camkit.data import DataSet, Item
from camkit.evaluate import Cell, CellScores, Predictions
from camkit.prepare import Prepared, find_methods
from camkit.registry import METRICS
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
    write_run,
)

# What all cells of one results folder have in common; the rest of the protocol belongs to a model and layer.
SHARED = (
    "target_rule", "steps", "preprocess", "exif", "dtype", "weights", "seed", "absent", "budget",
    "data_fingerprint", "definitions",
)  # fmt: skip


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
        self.segments: list[dict[str, Any]] = []
        self.provenance = _provenance(prepared, config, data)
        columns = [*KEYS, *score_columns(config.metrics)]
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

    def begin(self, batch_size: int, numeric_record: Mapping[str, Any]) -> None:
        """Start a segment of the run: rows made in one go, with one batch size."""
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.segments.append(
            {"started": started, **self.provenance, "batch_size": batch_size, "numerics": numeric_record}
        )
        self._write_run_files()

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

    def finish(self, images: int, seconds: float, waiting: float, passes: int) -> None:
        """Merge and sort the tables, write the maps, and complete run.json.

        Args:
            waiting: seconds spent waiting for data.
            passes: batches that went through the network.
        """
        order = {item.id: place for place, item in enumerate(self.items)}
        for table in self.tables.values():
            if table.rows:
                table.compact(order)
        for maps in self.maps.values():
            maps.finish(order)
        self.segments[-1] |= {
            "images": images,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 3),
            "waiting_for_data": round(waiting / seconds, 4),
            "passes": passes,
        }
        self._write_run_files()

    def _write_run_files(self) -> None:
        for folder, protocol in self.protocols.items():
            methods = [cell.method.name for cell in self.cells if self._cell_folder(cell) == folder]
            run = read_run(folder) if (folder / "run.json").exists() else {"methods": [], "segments": []}
            mine = {segment["started"] for segment in self.segments}
            segments = [segment for segment in run["segments"] if segment["started"] not in mine]
            write_run(
                folder,
                {
                    "protocol": protocol,
                    "methods": list(dict.fromkeys([*run["methods"], *methods])),
                    "segments": [*segments, *self.segments],
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
        "exif": config.exif,
        "transform": loaded.preprocess.describe(),
        "dtype": config.dtype,
        "weights": loaded.weights.kind,
        "weights_tag": loaded.weights.tag,
        "weights_sha256": loaded.weights.sha256,
        "seed": config.seed,
        "absent": config.absent,
        "budget": config.budget,
        "data_fingerprint": data.fingerprint,
        "definitions": DEFINITIONS_VERSION,
    }


def _provenance(prepared: Prepared, config: RunConfig, data: DataSet) -> dict[str, Any]:
    """With what the rows of a segment are made."""
    device = prepared.network.device
    return {
        "command": config.command(),
        "data": data.name,
        "data_images": len(data.items),
        "layout": data.layout,
        "labels": data.labels,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
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
