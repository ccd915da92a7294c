"""The cells of one model in a results folder: what is there, what is wanted, and the new rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camkit.config import RunConfig
from camkit.data import DataSet, Item
from camkit.evaluate import NOT_FINITE, Cell, CellFailure, CellScores, Predictions, Result
from camkit.lock import hold
from camkit.merge import PATIENCE, fold, write_order
from camkit.prepare import Prepared, Say, cells
from camkit.provenance import (
    add_counts,
    add_segment,
    check_protocol,
    credit,
    describe_protocol,
    describe_segment,
    now,
)
from camkit.registry import METRICS
from camkit.results import (
    ERRORS,
    FAILURES,
    FLAGS,
    KEYS,
    PREDICTIONS,
    file_name,
    model_counts,
    model_table,
    read_run,
    score_columns,
    write_run,
)
from camkit.share import Share, part_folders
from camkit.tables import Curves, Maps, Table, curve_paths, merge_rows, number, remove_temporaries, thin


class ModelRun:
    """The cells of one model in a results folder: what is there, what is wanted, and the new rows.

    The caller holds the lock of the model's folder.

    Args:
        items: the images of the whole run.
        share: which of the images are this process's.

    Raises:
        UsageError: the folder holds results of another protocol.
        CamkitError: it cannot be read or written.
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
        everywhere = list(dict.fromkeys([config.out, *share.folders(config.out), *part_folders(config.out)]))
        self.others = [out / model for out in everywhere if share.world > 1 and out / model != self.folder]
        self.cells = cells(prepared, config)
        self.segment = describe_segment(prepared, config, data)
        self.protocols = {
            self._cell_folder(cell): describe_protocol(prepared, cell, config, data) for cell in self.cells
        }
        with hold(config.out, PATIENCE):
            for protocol in self.protocols.values():
                check_protocol(everywhere, protocol)
            for folder in (self.folder, *self.protocols):
                remove_temporaries(folder)
            if share.world == 1:
                fold(config.out, model, self.order)
            else:
                write_order(config.out, self.order)
            for folder in self.protocols:
                write_run(folder, self._run_file(folder))
        self._open_tables()

    def _open_tables(self) -> None:
        metrics = {name: None for folder in self.protocols for name in read_run(folder)["metrics"]}
        columns = [*KEYS, *score_columns(metrics)]
        self.tables: dict[Cell, Table] = {}
        self.maps: dict[Cell, Maps] = {}
        self.curves: dict[tuple[Cell, str], Curves] = {}
        for cell in self.cells:
            path = self._path(cell, ".csv")
            self.tables[cell] = Table(path, columns, also=self._elsewhere(path))
            if self.config.save_maps and not cell.method.saliency:
                path = self._path(cell, ".npz")
                self.maps[cell] = Maps(path, also=self._elsewhere(path))
        self.predictions, self.errors, self.flags, self.failures = (
            model_table(self.folder, name, self.others) for name in (PREDICTIONS, ERRORS, FLAGS, FAILURES)
        )
        self.failed: set[tuple[str, ...]] = set()  # rows of failures.csv that this start made
        self._read_predictions()

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
        return {(*_key(cell), item.id) for cell in self.wanted([item])}

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
        unsaved = cell in self.maps and item.id not in self.maps[cell].maps
        return groups if groups or unsaved else None

    def is_wanted(self, item: Item) -> bool:
        """Whether an image has rows at all: not where `--target correct` is known to leave it out."""
        known = self.predicted.get(item.id)
        return self.config.target != "correct" or known is None or known == item.label

    def start(self, batch_size: int, numeric_record: Mapping[str, Any], say: Say) -> None:
        """Enter in run.json with what the rows to come are made.

        Args:
            batch_size: images in a pass.
            numeric_record: see :func:`camkit.prepare.numerics`.
        """
        self.segment |= {"batch_size": batch_size, **numeric_record}
        changed: dict[str, None] = {}
        for folder in self.protocols:
            run = read_run(folder)
            credit(run["segments"], self._places(folder))
            changed |= dict.fromkeys(add_segment(run["segments"], self.segment))
            write_run(folder, run)
        if changed:
            say(
                f"{self.folder.name}: not as before: {'; '.join(changed)}.\n"
                "New rows may differ from the old ones in their last digits."
            )

    def _places(self, folder: Path) -> dict[str, list[int]]:
        """Method -> places of the images that have a row."""
        return {
            cell.method.name: [self.order[image] for (image,) in table.known if image in self.order]
            for cell, table in self.tables.items()
            if self._cell_folder(cell) == folder
        }

    def write(self, result: Result) -> None:
        """Append one batch's rows; they are on disk when this returns."""
        if isinstance(result, Predictions):
            for item, predicted in zip(result.items, result.predicted, strict=True):
                self.predicted.setdefault(item.id, predicted)
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
        if isinstance(result, CellFailure):
            rows = [self._failure(cell, item, result.reason) for item in result.items]
            self.failures.append(rows)
            self.failed |= {tuple(row.values()) for row in rows}
            return
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
        for name, curves in result.curves.items():
            self._write_curves(result, name, curves.float().cpu().numpy())
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

    def _failure(self, cell: Cell, item: Item, reason: str) -> dict[str, str]:
        return {
            "layer": cell.layer,
            "utility": cell.utility,
            "method": cell.method.name,
            "image": item.id,
            "reason": reason,
        }

    def unreadable(self) -> int:
        """How many of the whole run's images could not be read, as far as is known."""
        self.errors.reload()
        return sum(self.errors.has((item.id,)) for item in self.items)

    def failure_lines(self) -> list[str]:
        """What failures.csv holds of the run's cells and images: a line each reason, with the first image."""
        wanted, images = {_key(cell) for cell in self.cells}, {item.id for item in self.items}
        found: dict[str, list[str]] = {}
        for *cell, image, reason in model_table(self._merged, FAILURES).known:
            if tuple(cell) in wanted and image in images:
                found.setdefault(reason, []).append(image)
        more = {reason: f" and {len(names) - 1} more" if names[1:] else "" for reason, names in found.items()}
        return [f"{reason} (image {names[0]}{more[reason]})" for reason, names in found.items()]

    def settle(self) -> None:
        """Drop errors and failures that are past (the rows were made, or another reason has come), then
        renew the counts in run.json.

        For who holds the lock of OUT/<model>, once all that was made is in its tables.
        """
        items, failed = {item.id: item for item in self.items}, self._failed_images()
        mine = {_key(cell) for cell in self.cells}
        again = {key[:4] for key in self.failed}

        def was_read(image: str) -> bool:
            lacking = self._lacking(items[image]) if image in items else set()
            return image in self.predicted and failed.issuperset(lacking)

        def is_past(key: tuple[str, ...]) -> bool:
            *cell, image, reason = key
            if tuple(cell) not in mine or image not in items or reason.endswith(NOT_FINITE):
                return False
            replaced = key[:4] in again and key not in self.failed
            return replaced or key[:4] not in self._lacking(items[image])

        errors, failures = (model_table(self._merged, name) for name in (ERRORS, FAILURES))
        errors.compact(self.order, without={(image,) for (image,) in errors.known if was_read(image)})
        failures.compact(self.order, without={key for key in failures.known if is_past(key)})
        for folder in sorted(path.parent for path in self._merged.glob("*/run.json")):
            run = read_run(folder)
            counts = model_counts(folder, run["protocol"])
            if run != run | counts:
                write_run(folder, run | counts)

    @property
    def _merged(self) -> Path:
        """OUT/<model>, which is not where one of several processes writes."""
        return self.config.out / self.folder.name

    def _write_curves(self, result: CellScores, name: str, curves: np.ndarray) -> None:
        """Before the rows: an image with a row has its curve."""
        place = (result.cell, name)
        if place not in self.curves:
            self.curves[place] = Curves(self._path(result.cell, f".{name}"))
        images = [item.id for item in result.items]
        self.curves[place].append(images, curves if self.config.curves else thin(curves))

    def write_errors(self, errors: Iterable[tuple[Item, str]]) -> None:
        self.errors.append({"image": item.id, "stage": "read", "reason": reason} for item, reason in errors)

    def finish(self) -> None:
        """Merge, settle and sort the tables, write the maps; a part is left as it is, for the merge."""
        if self.share.world > 1:
            return
        for table in (*self.tables.values(), self.predictions, self.flags):
            table.compact(self.order)
        for maps in self.maps.values():
            maps.finish(self.order)
        for cell in self.cells:
            for path in curve_paths(self._cell_folder(cell), file_name(cell.method.name)):
                Curves(path).finish(self.order)
        self.settle()

    def end(self, counts: Mapping[str, float]) -> None:
        """Complete run.json: what :meth:`start` began has ended.

        Args:
            counts: what it took, see :func:`camkit.provenance.add_counts`.
        """
        for folder in self.protocols:
            run = read_run(folder)
            credit(run["segments"], self._places(folder))
            run["segments"][-1] |= {"ended": now(), "not_deterministic": self.segment["not_deterministic"]}
            add_counts(run["segments"][-1], counts)
            write_run(folder, run | model_counts(folder, run["protocol"]))

    def _run_file(self, folder: Path) -> dict[str, Any]:
        there = read_run(folder) if (folder / "run.json").exists() else {}
        methods = [cell.method.name for cell in self.cells if self._cell_folder(cell) == folder]
        return {
            **there,
            "protocol": self.protocols[folder],
            "methods": list(dict.fromkeys([*there.get("methods", ()), *methods])),
            "metrics": list(dict.fromkeys([*there.get("metrics", ()), *self.config.metrics])),
            "segments": there.get("segments", []),
        }


def _key(cell: Cell) -> tuple[str, ...]:
    """A cell in the rows of flags.csv and failures.csv."""
    return cell.layer, cell.utility, cell.method.name


def _text(label: int | None) -> str:
    return "" if label is None else str(label)
