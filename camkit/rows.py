"""What a results folder holds of one model's cells, and what is wanted. Nothing is written here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from camkit.config import RunConfig
from camkit.data import DataSet, Item
from camkit.evaluate import Cell
from camkit.prepare import Prepared, cells
from camkit.protocol import check_protocol
from camkit.provenance import describe_protocol
from camkit.registry import METRICS
from camkit.results import (
    ERRORS,
    FAILURES,
    FLAGS,
    KEYS,
    PREDICTIONS,
    file_name,
    model_table,
    read_run,
    score_columns,
)
from camkit.share import Share, part_folders
from camkit.tables import Maps, Table, merge_rows


class ModelRows:
    """The cells of one model in a results folder: what is there once :meth:`read` was called, what is wanted.

    Args:
        items: the images of the whole run.
        share: which of the images are this process's.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: RunConfig,
        data: DataSet,
        items: Sequence[Item],
        share: Share,
    ) -> None:
        model = file_name(prepared.loaded.row.name)
        self.config = config
        self.items = items
        self.share = share
        self.order = {item.id: place for place, item in enumerate(data.items)}
        self.folder = share.folder(config.out) / model
        # Other processes' parts, those of a run that was killed among them: their rows are not made again.
        folders = [config.out, *share.folders(config.out), *part_folders(config.out)]
        self.everywhere = list(dict.fromkeys(folders))
        self.others = [out / model for out in self.everywhere if out / model != self.folder]
        self.cells = cells(prepared, config)
        self.protocols = {
            self._cell_folder(cell): describe_protocol(prepared, cell, config, data) for cell in self.cells
        }

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
        columns = [*KEYS, *score_columns(metrics)]
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

    def todo(self) -> list[list[Item]]:
        """This process's images that lack something, those that lack the same together, in order."""
        groups: dict[tuple, list[Item]] = {}
        for item in self.share.of(self.items):
            lacking = tuple((cell, *metrics) for cell, metrics in self.wanted([item]).items())
            if lacking:
                groups.setdefault(lacking, []).append(item)
        return list(groups.values())

    def unfinished(self) -> list[Item]:
        """Images of the whole run that lack something; all processes' rows are read anew."""
        for table in (*self.tables.values(), self.errors, self.failures):
            table.reload()
        for maps in self.maps.values():
            maps.reload()
        self._read_predictions()
        return [item for item in self.items if self.wanted([item])]

    def untried(self) -> list[Item]:
        """Those of :meth:`unfinished` of which no process says that it tried to make what they lack."""
        unfinished, failed = self.unfinished(), self._failed_images()
        return [
            item
            for item in unfinished
            if not self.errors.has((item.id,)) and not failed.issuperset(self._lacking(item))
        ]

    def _failed_images(self) -> set[tuple[str, ...]]:
        """(layer, utility, method, image) in which a plugin failed."""
        return {key[:4] for key in (*self.failures.known, *self.failures.elsewhere)}

    def _lacking(self, item: Item) -> set[tuple[str, ...]]:
        """(layer, utility, method, image) of the cells in which an image lacks something."""
        return {(*cell_key(cell), item.id) for cell in self.wanted([item])}

    def wanted(self, items: Iterable[Item]) -> dict[Cell, list[str]]:
        """The cells that lack something for any of `items`, and the metric groups to compute for them."""
        wanted: dict[Cell, list[str]] = {}
        for cell in self.cells:
            missing = [self._missing(cell, item) for item in items if self.is_wanted(item)]
            if any(groups is not None for groups in missing):
                found = {group for groups in missing for group in groups or ()}
                wanted[cell] = [group for group in self.config.metrics if group in found]
        return wanted

    def _missing(self, cell: Cell, item: Item) -> list[str] | None:
        """Metric groups that an image lacks in a cell; None where it lacks nothing, its map included."""
        table, key = self.tables[cell], (item.id,)
        if not table.has(key):
            return list(self.config.metrics)
        groups = [group for group in self.config.metrics if not table.has(key, METRICS[group].columns)]
        unsaved = cell in self.maps and item.id not in self.maps[cell].names
        return groups if groups or unsaved else None

    def is_wanted(self, item: Item) -> bool:
        """Whether an image has rows at all: not where `--target correct` is known to leave it out."""
        known = self.predicted.get(item.id)
        return self.config.target != "correct" or known is None or known == item.label

    def unreadable(self) -> int:
        """How many of the whole run's images could not be read, as far as is known."""
        self.errors.reload()
        return sum(self.errors.has((item.id,)) for item in self.items)


def cell_key(cell: Cell) -> tuple[str, ...]:
    """A cell in the rows of flags.csv and failures.csv."""
    return cell.layer, cell.utility, cell.method.name
