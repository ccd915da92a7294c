"""What a results folder holds of one model's cells, and what is wanted. Nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from camkit.config import RunConfig
from camkit.data import Item
from camkit.entries import METRICS
from camkit.network.targets import find_target
from camkit.results.arrays import Maps
from camkit.results.cells import Cell
from camkit.results.columns import row_columns
from camkit.results.folder import (
    ERRORS,
    FAILURES,
    FLAGS,
    PREDICTIONS,
    file_name,
    model_table,
    read_run,
)
from camkit.results.protocol import check_protocol
from camkit.results.table import Table, merge_rows
from camkit.share import Share, part_folders


class ModelRows:
    """The cells of one model in a results folder: what is there once :meth:`read` was called, what is wanted.

    Args:
        model: its name.
        cells: what is to be there, each with its protocol.
        order: image -> place in the data set.
        items: the images of the whole run.
        share: which of the images are this process's.
    """

    def __init__(
        self,
        model: str,
        cells: Mapping[Cell, Mapping[str, Any]],
        config: RunConfig,
        order: Mapping[str, int],
        items: Sequence[Item],
        share: Share,
    ) -> None:
        self.model = model
        self.config = config
        self.items = items
        self.share = share
        self.order = order
        self.target = find_target(config.target)
        self.merged = config.out / file_name(model)  # where all processes' rows come together
        self.folder = share.folder(config.out) / file_name(model)
        # Other processes' parts, those of a run that was killed among them: their rows are not made again.
        folders = [config.out, *share.folders(config.out), *part_folders(config.out)]
        self.everywhere = list(dict.fromkeys(folders))
        parts = [out / file_name(model) for out in self.everywhere]
        self.others = [part for part in parts if part != self.folder]
        self.cells = list(cells)
        self.protocols = {self._cell_folder(cell): protocol for cell, protocol in cells.items()}

    def check_protocols(self) -> None:
        """One results folder holds one protocol.

        Raises:
            UsageError: the folder holds results of another one.
            CamkitError: it cannot be read.
        """
        for protocol in self.protocols.values():
            check_protocol(self.everywhere, protocol)

    def read(self) -> None:
        """Find out what is there.

        Raises:
            CamkitError: it cannot be read.
        """
        metrics = {name: None for folder in self.protocols for name in self._run_file(folder)["metrics"]}
        columns = row_columns(metrics)
        self.tables: dict[Cell, Table] = {}
        self.maps: dict[Cell, Maps] = {}
        for cell in self.cells:
            path = self._path(cell, ".csv")
            self.tables[cell] = Table(path, columns, also=self._elsewhere(path))
            if self.config.save_maps and not cell.method.saliency:
                path = self._path(cell, ".npz")
                self.maps[cell] = Maps(path, also=self._elsewhere(path))
        self.predictions, self.errors, self.flags, self.failures = (
            model_table(self.folder, name, self.others) for name in (PREDICTIONS, ERRORS, FLAGS, FAILURES)
        )
        self._read_predictions()

    def _run_file(self, folder: Path) -> dict[str, Any]:
        """The run.json of a folder of cells, with what this run adds to it."""
        there = read_run(folder) if (folder / "run.json").exists() else {}
        methods = [cell.method.name for cell in self.cells if self._cell_folder(cell) == folder]
        return {
            **there,
            "protocol": self.protocols[folder],
            "methods": list(dict.fromkeys([*there.get("methods", ()), *methods])),
            "metrics": list(dict.fromkeys([*there.get("metrics", ()), *self.config.metrics])),
            "segments": there.get("segments", []),
        }

    def _read_predictions(self) -> None:
        paths = [self.predictions.path, *self.predictions.also]
        self.predicted = {image: int(row["predicted"]) for (image,), row in merge_rows(paths)[1].items()}

    def _elsewhere(self, path: Path) -> list[Path]:
        return [other / path.relative_to(self.folder) for other in self.others]

    def _cell_folder(self, cell: Cell) -> Path:
        return self.folder / f"{file_name(cell.layer)}-{cell.utility}"

    def _path(self, cell: Cell, suffix: str) -> Path:
        return self._cell_folder(cell) / (file_name(cell.method.name) + suffix)

    @property
    def begun(self) -> bool:
        """Whether an earlier run left rows."""
        return any(table.known or table.elsewhere for table in self.tables.values())

    def todo(self) -> list[tuple[list[Item], dict[Cell, list[str]]]]:
        """This process's unfinished images, grouped by what they lack."""
        groups: dict[tuple, list[Item]] = {}
        for item in self.share.of(self.items):
            lacking = tuple((cell, *metrics) for cell, metrics in self.wanted(item).items())
            if lacking:
                groups.setdefault(lacking, []).append(item)
        return [(items, {cell: metrics for cell, *metrics in lacking}) for lacking, items in groups.items()]

    def reload(self) -> None:
        """Find out anew what is there: other processes write too."""
        for table in (*self.tables.values(), self.errors, self.failures):
            table.reload()
        for maps in self.maps.values():
            maps.reload()
        self._read_predictions()

    def _failed_images(self) -> set[tuple[str, ...]]:
        """(layer, utility, method, image) in which a plugin failed."""
        return {key[:4] for key in (*self.failures.known, *self.failures.elsewhere)}

    def _lacking(self, item: Item) -> set[tuple[str, ...]]:
        """(layer, utility, method, image) of the cells in which an image lacks something."""
        return {(*cell.key, item.id) for cell in self.wanted(item)}

    def wanted(self, item: Item) -> dict[Cell, list[str]]:
        """The cells in which an image lacks something, and the metric groups that it lacks."""
        if not self.is_wanted(item):
            return {}
        missing = {cell: self._missing(cell, item) for cell in self.cells}
        return {cell: groups for cell, groups in missing.items() if groups is not None}

    def _missing(self, cell: Cell, item: Item) -> list[str] | None:
        """Metric groups that an image lacks in a cell; None where it lacks nothing, its map included."""
        table, key = self.tables[cell], (item.id,)
        if not table.has(key):
            return list(self.config.metrics)
        groups = [group for group in self.config.metrics if not table.has(key, METRICS[group].columns)]
        unsaved = cell in self.maps and item.id not in self.maps[cell].names
        return groups if groups or unsaved else None

    def is_wanted(self, item: Item) -> bool:
        """Whether an image has rows at all: not where the target rule is known to leave it out."""
        known = self.predicted.get(item.id)
        return known is None or self.target.keeps(known, item.label)

    def unreadable(self) -> int:
        """How many of the whole run's images could not be read, as far as is known."""
        self.errors.reload()
        return sum(self.errors.has((item.id,)) for item in self.items)
