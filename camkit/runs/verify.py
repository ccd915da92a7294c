"""`camkit verify`: recompute a seeded share of a finished run, and compare."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from camkit.config import RunConfig
from camkit.data import DataSet, Item
from camkit.entries import METHODS, METRICS
from camkit.errors import CamkitError, Say, UsageError
from camkit.methods.fusion import at_layer
from camkit.network.numerics import numerics
from camkit.network.prepare import Prepared
from camkit.plugins import load_plugins
from camkit.results.cells import Cell
from camkit.results.columns import CELL_KEYS
from camkit.results.files import UTF8
from camkit.results.folder import GIVEN, PREDICTED_NAME, PREDICTIONS, file_name, read_run, run_folders
from camkit.results.protocol import check_agreement, unlike
from camkit.results.segments import places_of
from camkit.results.summary import summarise, summary_text
from camkit.results.table import Row, merge_rows
from camkit.runs.agreement import Comparison, tolerance_of
from camkit.runs.describe import by_model, describe_protocol, prepare_for
from camkit.runs.job import images_of
from camkit.runs.recompute import Recomputed, recompute
from camkit.runs.selection import data_of_run

SHARE, AT_LEAST = 0.01, 5


@dataclass(frozen=True)
class Checked:
    """One cell of a verified folder, or a model's predictions, in the terms of the command's table.

    Attributes:
        method: or `predictions.csv`.
        images: how many were picked.
        values: how many recorded values were compared.
        lacking: images of which something could not be compared; a line has named each.
        differing: how many values are further away than the tolerance allows.
        jumped: how many are too, but in few images, and by little or in columns that jump: they pass.
        largest: the largest difference, and `column` where it is.
    """

    model: str
    layer: str
    utility: str
    method: str
    images: int
    values: int
    lacking: int
    differing: int
    jumped: int
    largest: float
    column: str


def verify(
    folder: Path, config: RunConfig, say: Say = print, *, seed: int = 0, batch_size: int | None = None
) -> pd.DataFrame:
    """Recompute 1 % of the images of each cell of a results folder, at least five, and compare every value.

    Nothing in the folder is changed. `summary.csv` is also made again from the rows, and compared.

    Args:
        config: where the data are, the weights' file where there is one, the device; all that decides a
            number comes from the folder's run.json.
        say: takes each line that the user should see, one for each image that could not be compared.
        seed: which images are picked.
        batch_size: images in a pass; None: as in the run.

    Returns:
        One row per cell and one for the predictions, see :class:`Checked` and :func:`faults`.

    Raises:
        UsageError: there are no results in the folder, data or weights are not those of the run, or a
            plugin is missing.
        CamkitError: `summary.csv` does not follow from the rows, or a pass does not fit into memory.
    """
    load_plugins(config.plugin)
    folders = run_folders(folder)
    if not folders:
        raise UsageError(f"{folder}: no results there")
    for cells in folders:
        _expect_known(cells)
    check_agreement(folder)
    path = folder / "summary.csv"
    if not _follows(path, summary_text(summarise(folder))):
        raise CamkitError(
            f"{path} does not follow from the rows beside it: the run is unfinished, or files were changed "
            "after the run"
        )
    checks: list[Checked] = []
    for cells in folders:
        for name in read_run(cells).get(GIVEN, {}):
            say(f"{cells.relative_to(folder)}: {name}: its maps come from elsewhere and are not made again")
    for group in by_model([cells for cells in folders if _run_of(cells)["methods"]], config):
        if batch_size is not None:
            group = {cells: replace(settings, batch_size=batch_size) for cells, settings in group.items()}
        checks += _verify_model(group, seed, say)
    return pd.DataFrame(checks)


def faults(checks: pd.DataFrame) -> list[str]:
    """What is wrong with a verified folder, one line each; none where all agrees.

    Args:
        checks: what :func:`verify` gives.
    """
    found = []
    for check in checks[checks["values"] == 0].itertuples():
        found.append(f"{check.model}, {check.layer}, {check.utility}, {check.method}: no value was compared")
    differing, lacking, values = (checks[name].sum() for name in ("differing", "lacking", "values"))
    if lacking:
        found.append(f"{lacking} rows could not be compared with what was recomputed, see above")
    if differing:
        found.append(f"{differing} of {values} values differ from what was recomputed")
    return found


def _follows(path: Path, summary: str) -> bool:
    """Whether a summary.csv has the cells of `summary`."""
    try:
        return _by_cell(path.read_text(UTF8)).equals(_by_cell(summary))
    except (FileNotFoundError, ValueError, KeyError):  # what is no table, or lacks the cells' columns
        return False


def _by_cell(summary: str) -> pd.DataFrame:
    """The text of a summary.csv, cells and columns sorted: who wrote it last may have known other plugins.

    Without `value`, which does not come from the rows.
    """
    table = pd.read_csv(io.StringIO(summary), dtype=str, keep_default_na=False)
    cells = table.drop(columns="value", errors="ignore").set_index(CELL_KEYS)
    return cells.sort_index().sort_index(axis=1)


def _run_of(folder: Path) -> dict[str, Any]:
    """run.json, less the methods whose maps come from elsewhere: they cannot be made again."""
    run = read_run(folder)
    return run | {"methods": [name for name in run["methods"] if name not in run.get(GIVEN, {})]}


def _expect_known(folder: Path) -> None:
    run = _run_of(folder)
    for kind, names, known in (("method", run["methods"], METHODS), ("metric", run["metrics"], METRICS)):
        for name in names:
            if not known.knows(name):
                raise UsageError(
                    f"{folder}: there is no {kind} {name!r} here. Name the plugin that has it: --plugin FILE"
                )


def _verify_model(folders: Mapping[Path, RunConfig], seed: int, say: Say) -> Iterator[Checked]:
    """The folders of cells that one loaded model serves, with the settings of their runs."""
    config = next(iter(folders.values()))
    data = data_of_run(config)
    for folder in folders:
        run = read_run(folder)
        if data.fingerprint != run["protocol"]["data_fingerprint"]:
            raise UsageError(
                f"--data {config.data} is not the data of this run (another fingerprint); "
                f"that was named {run['segments'][-1]['data']!r}"
            )
    with numerics(config.tf32, config.deterministic):
        prepared = prepare_for(folders, data, say)
        for folder, settings in folders.items():
            yield from _verify_cells(folder, settings, prepared, data, seed, say)


def _verify_cells(
    folder: Path, config: RunConfig, prepared: Prepared, data: DataSet, seed: int, say: Say
) -> Iterator[Checked]:
    """One folder of cells; `config` has the run's own settings."""
    run = _run_of(folder)
    protocol = run["protocol"]
    place = (protocol["model"], protocol["layer"], protocol["utility"])
    say(", ".join(place))
    cells = _cells(run, config, prepared, data)
    out = replace(config, out=folder.parent.parent)
    items = {item.id: item for item in images_of(prepared, out, data, data.items, say, keep=False)[0]}
    tables = {method: _rows(folder / f"{file_name(method)}.csv") for method in run["methods"]}
    picked = {method: _pick(rows, seed) for method, rows in tables.items()}
    predictions = _rows(folder.parent / PREDICTIONS, without=PREDICTED_NAME)
    groups: dict[tuple[Item, ...], dict[Cell, list[str]]] = {}
    for method, rows in tables.items():
        there = tuple(items[image] for image in picked[method] if image in items)
        groups.setdefault(there, {})[cells[method]] = _metrics_of(rows.values(), config.metrics)
    made = recompute(prepared, config, groups, predictions)

    order = list(items)
    picked[PREDICTIONS] = list(dict.fromkeys(image for images in picked.values() for image in images))
    columns = {name: column for metric in config.metrics for name, column in METRICS[metric].columns.items()}
    jumping = {name for name, column in columns.items() if column.jumps}
    for name, rows in {**tables, PREDICTIONS: predictions}.items():
        comparison = _compare(rows, picked[name], made, name, items)
        if name != PREDICTIONS:
            places = places_of(run["segments"], name)
            _compare_names(rows, {order[place] for place in places if place < len(order)}, comparison)
        for image, reason in comparison.lacking.items():
            say(f"{', '.join(place)}, {name}: {image!r}: {reason}")
        differing, jumped = comparison.judge(len(picked[name]), jumping, tolerance_of(config))
        counts = (len(picked[name]), comparison.values, len(comparison.lacking), differing, jumped)
        yield Checked(*place, name, *counts, *comparison.largest())


def _cells(run: Mapping[str, Any], config: RunConfig, prepared: Prepared, data: DataSet) -> dict[str, Cell]:
    """Method -> cell of a folder.

    Raises:
        UsageError: what decides its numbers is another thing here.
    """
    (layer,), (utility,) = config.layer, config.utility
    path = prepared.paths[layer]
    cells = {name: Cell(layer, path, utility, at_layer(METHODS[name], path)) for name in run["methods"]}
    any_cell = next(iter(cells.values()))
    difference = unlike(run["protocol"], describe_protocol(prepared, any_cell, config, data))
    if difference:
        raise UsageError(f"this is not what the run was made with: another {difference}")
    return cells


def _compare(
    rows: Mapping[str, Row], picked: Iterable[str], made: Recomputed, name: str, items: Container[str]
) -> Comparison:
    """A table's rows of the picked images beside what was recomputed.

    Args:
        name: of a method, or `predictions.csv`.
        items: the images of the data.
    """
    comparison = Comparison()
    values = made.predictions if name == PREDICTIONS else made.scores.get(name, {})
    for image in picked:
        if image not in values:
            comparison.lacks(image, made.why_not(name, image))
        elif image not in rows:
            comparison.lacks(image, "has no row")
        else:
            comparison.add(image, rows[image], values[image])
    for image in rows:
        if image not in items:
            comparison.lacks(image, "is not in the data")
    return comparison


def _compare_names(rows: Collection[str], listed: set[str], comparison: Comparison) -> None:
    """The images that a table has beside those that run.json says were made."""
    for image in rows:
        if image not in listed and image not in comparison.lacking:
            comparison.lacks(
                image, "has a row that run.json does not list: it was added, or its run was killed"
            )
    for image in sorted(listed.difference(rows)):
        comparison.lacks(image, "has no row, but run.json lists one")


def _rows(path: Path, without: str = "") -> dict[str, Row]:
    """Image -> row of a table, less one column."""
    return {
        image: {column: text for column, text in row.items() if column != without}
        for (image,), row in merge_rows([path])[1].items()
    }


def _pick(images: Iterable[str], seed: int) -> list[str]:
    """A seeded 1 % of a table's images, five at least: the same ones for tables of the same images."""
    images = sorted(images)
    wanted = min(len(images), max(AT_LEAST, math.ceil(SHARE * len(images))))
    return random.Random(f"verify {seed}").sample(images, wanted)


def _metrics_of(rows: Iterable[Row], metrics: Iterable[str]) -> list[str]:
    """The metric groups that a cell was asked for: other methods of its folder may have more."""
    filled = {column for row in rows for column, text in row.items() if text}
    return [name for name in metrics if filled.issuperset(METRICS[name].columns)]
