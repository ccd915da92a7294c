"""The new rows of one model's cells: appended batch by batch, finished when a run ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from camkit.config import RunConfig
from camkit.data import ClassList, Item
from camkit.data.classes import IMAGENET
from camkit.errors import Say
from camkit.results.arrays import Curves, curve_paths, thin
from camkit.results.cells import Cell, CellFailure, CellScores, Predictions, Result
from camkit.results.columns import label_text, row_of
from camkit.results.files import remove_temporaries, writing
from camkit.results.folder import (
    CLASSES,
    ERRORS,
    FAILURES,
    PREDICTED_NAME,
    file_name,
    model_counts,
    model_table,
    read_run,
    write_classes,
    write_run,
)
from camkit.results.lock import hold
from camkit.results.merge import PATIENCE, fold, write_order
from camkit.results.mosaics import MOSAICS
from camkit.results.rows import ModelRows
from camkit.results.segments import Difference, add_costs, add_counts, add_segment, credit, now
from camkit.results.table import number
from camkit.share import Share


class ModelRun(ModelRows):
    """The cells of one model in a results folder that new rows are written into; see :class:`ModelRows`.

    The caller holds the lock of the model's folder.

    Args:
        classes: what the model's outputs stand for; None where that is not known.

    Raises:
        UsageError: the folder holds results of another protocol.
        CamkitError: it cannot be read or written.
    """

    def __init__(
        self,
        model: str,
        cells: Mapping[Cell, Mapping[str, Any]],
        config: RunConfig,
        order: Mapping[str, int],
        items: Sequence[Item],
        share: Share,
        segment: Mapping[str, Any],
        classes: ClassList | None = None,
    ) -> None:
        super().__init__(model, cells, config, order, items, share)
        self.classes = classes
        self.segment = dict(segment)
        self.curves: dict[tuple[Cell, str], Curves] = {}
        self.failed: set[tuple[str, ...]] = set()  # keys of failures.csv that this start made
        self._untold: Callable[[], None] | None = None
        self._costs: dict[Cell, Counter[str]] = {}  # see add_costs
        with hold(config.out, PATIENCE):
            self.check_protocols()
            for folder in (self.folder, *self.protocols):
                remove_temporaries(folder)
            if share.world == 1:
                fold(config.out, self.folder.name, self.order)
            else:
                write_order(config.out, self.order)
            for folder in self.protocols:
                write_run(folder, self._run_file(folder))
            if classes is not None and classes.name != IMAGENET:
                write_classes(self.merged, classes)
        self.read()

    def start(self, batch_size: int, numeric_record: Mapping[str, Any], say: Say) -> None:
        """Enter in run.json with what the rows to come are made.

        Args:
            batch_size: images in a pass.
            numeric_record: see :func:`camkit.network.numerics.numerics`.
            say: is told what is not as before, once there is a row.
        """
        self.segment |= {"batch_size": batch_size, **numeric_record}
        changed: dict[Difference, None] = {}
        for folder in self.protocols:
            run = read_run(folder)
            credit(run["segments"], self._places(folder))
            changed |= dict.fromkeys(add_segment(run["segments"], self.segment))
            write_run(folder, run)
        how_far = "" if any(one.plugin for one in changed) else " in their last digits"
        self._untold = (
            partial(
                say,
                f"{self.folder.name}: not as before: {'; '.join(map(str, changed))}.\n"
                f"New rows may differ from the old ones{how_far}.",
            )
            if changed
            else None
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
                    "label": label_text(item.label),
                    "predicted": str(predicted),
                    "probability": number(probability),
                    PREDICTED_NAME: self.classes.short_name(predicted) if self.classes else "",
                }
                for item, predicted, probability in zip(
                    result.items, result.predicted, result.probability, strict=True
                )
            )
            return
        if self._untold:
            self._untold()
            self._untold = None
        cell = result.cell
        if isinstance(result, CellFailure):
            self.failures.append(self._failure(result, item) for item in result.items)
            self.failed |= {(*cell.key, item.id, result.reason) for item in result.items}
            return
        explaining, scoring = result.seconds
        self._costs.setdefault(cell, Counter()).update(
            {"images": len(result.items), "explaining_seconds": explaining, "scoring_seconds": scoring}  # type: ignore[dict-item]
        )
        self.flags.append(
            {**_key_fields(cell), "image": item.id, "flag": flag}
            for flag, values in result.flags.items()
            for item, value in zip(result.items, values, strict=True)
            if value
        )
        for name, curves in result.curves.items():
            self._write_curves(result, name, curves.float().cpu().numpy())
        if cell in self.maps and result.maps is not None:
            self.maps[cell].append([item.id for item in result.items], result.maps.float().cpu().numpy())
        self.tables[cell].append(row_of(result, place) for place in range(len(result.items)))

    def _failure(self, failure: CellFailure, item: Item) -> dict[str, str]:
        scored = "yes" if failure.scored else ""
        return {**_key_fields(failure.cell), "image": item.id, "reason": failure.reason, "scored": scored}

    def failure_lines(self, items: Iterable[Item]) -> list[str]:
        """Plugin errors in the run's cells on these images: a line per reason, with the first image."""
        wanted, images = {cell.key for cell in self.cells}, {item.id for item in items}
        found: dict[str, list[str]] = {}
        for *cell, image, reason in model_table(self.merged, FAILURES).known:
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
        mine = {cell.key for cell in self.cells}
        again = {key[:4] for key in self.failed}

        def was_read(image: str) -> bool:
            lacking = self._lacking(items[image]) if image in items else set()
            return image in self.predicted and failed.issuperset(lacking)

        def is_past(key: tuple[str, ...]) -> bool:
            *cell, image, _ = key
            if tuple(cell) not in mine or image not in items or "scored" in failures.known[key]:
                return False
            replaced = key[:4] in again and key not in self.failed
            return replaced or key[:4] not in self._lacking(items[image])

        errors, failures = (model_table(self.merged, name) for name in (ERRORS, FAILURES))
        errors.compact(self.order, without={(image,) for (image,) in errors.known if was_read(image)})
        failures.compact(self.order, without={key for key in failures.known if is_past(key)})
        for folder in sorted(path.parent for path in self.merged.glob("*/run.json")):
            run = read_run(folder)
            counts = model_counts(folder, run["protocol"])
            if run != run | counts:
                write_run(folder, run | counts)

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
            counts: what it took, see :func:`camkit.results.segments.add_counts`.
        """
        for folder in self.protocols:
            run = read_run(folder)
            credit(run["segments"], self._places(folder))
            run["segments"][-1] |= {"ended": now(), "not_deterministic": self.segment["not_deterministic"]}
            add_counts(run["segments"][-1], counts)
            costs = {c.method.name: cost for c, cost in self._costs.items() if self._cell_folder(c) == folder}
            add_costs(run["segments"][-1], costs)
            write_run(folder, run | model_counts(folder, run["protocol"]))
        self._costs.clear()

    def withdraw(self) -> None:
        """Take back what was written before the first result, where there is none.

        Without rows a protocol has decided nothing: it must not stop a run with another one.
        """
        if self.predictions.known or self.errors.known:
            return
        for folder in self.protocols:
            if not any(folder.glob("*.csv")):
                with writing(folder):
                    (folder / "run.json").unlink(missing_ok=True)
        parts = (out / self.merged.name for out in self.everywhere)
        if not any(any(part.glob("*/run.json")) for part in parts):
            for name in (CLASSES, MOSAICS):
                with writing(self.merged):
                    (self.merged / name).unlink(missing_ok=True)


def _key_fields(cell: Cell) -> dict[str, str]:
    return dict(zip(("layer", "utility", "method"), cell.key, strict=True))
