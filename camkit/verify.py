"""`camkit verify`: recompute a seeded share of a finished run, and compare."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from camkit.benchmark import OutOfMemory, failures_named, load_batches, make_evaluation
from camkit.config import RunConfig
from camkit.data import Item, find_images
from camkit.errors import CamkitError, UsageError
from camkit.evaluate import Cell, CellFailure, CellScores, Predictions
from camkit.pixels import Batch
from camkit.plugins import load_plugins
from camkit.prepare import Prepared, Say, numerics, prepare
from camkit.protocol import check_agreement, unlike
from camkit.provenance import as_it_ran, describe_protocol, places_of
from camkit.registry import METHODS, METRICS
from camkit.results import PREDICTIONS, file_name, read_run, run_folders, summarise, summary_text
from camkit.tables import UTF8, Row, merge_rows

SHARE, AT_LEAST = 0.01, 5
# How far a value may be from the recorded one: absolutely, or relative to it where it is above 1. Number
# formats with fewer bits round more, and each kind of device in another way.
TOLERANCE = {"float32": 1e-5, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
# In so many of a cell's images, or in one, a value may be this far away: there the last bits count for more.
# Columns that jump (:attr:`camkit.registry.Metric.jumps`) may be this far away everywhere, and anywhere in so
# many images.
FEW, FEW_TOLERANCE = 0.1, 1e-3
# Classes, which no rounding moves.
EXACT = ("label", "target", "predicted")

Values = Mapping[str, float]  # column -> value


@dataclass(frozen=True)
class Check:
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


@dataclass
class _Recomputed:
    """What this machine makes of the picked images of one folder.

    Attributes:
        scores: method -> image -> column -> value, label and target among the columns.
        predictions: image -> column -> value.
        unread: image -> why it could not be read.
        failures: (method, image) -> what a plugin did wrong.
    """

    scores: dict[str, dict[str, Values]] = field(default_factory=dict)
    predictions: dict[str, Values] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def why_not(self, method: str, image: str) -> str:
        """Why there are no values."""
        if image in self.unread:
            return self.unread[image]
        return self.failures.get((method, image), "has no such row when it is recomputed")


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
        One row a cell and one for the predictions, see :class:`Check` and :func:`faults`.

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
    checks: list[Check] = []
    for cells in folders:
        settings = as_it_ran(cells, config)
        settings = replace(settings, batch_size=batch_size or settings.batch_size)
        checks += _verify_cells(cells, settings, seed, say)
    return pd.DataFrame(checks)


def faults(checks: pd.DataFrame) -> list[str]:
    """What is wrong with a verified folder, a line each; none where all agrees.

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
    cells = table.drop(columns="value", errors="ignore").set_index(["model", "layer", "utility", "method"])
    return cells.sort_index().sort_index(axis=1)


def _expect_known(folder: Path) -> None:
    run = read_run(folder)
    for kind, names, known in (("method", run["methods"], METHODS), ("metric", run["metrics"], METRICS)):
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{folder}: there is no {kind} {name!r} here. Name the plugin that has it: --plugin FILE"
                )


def _verify_cells(folder: Path, config: RunConfig, seed: int, say: Say) -> Iterator[Check]:
    """One folder of cells; `config` has the run's own settings."""
    run = read_run(folder)
    protocol = run["protocol"]
    place = (protocol["model"], protocol["layer"], protocol["utility"])
    say(", ".join(place))
    data = find_images(config.data, config.seed, config.layout, config.labels)
    if data.fingerprint != protocol["data_fingerprint"]:
        raise UsageError(
            f"--data {config.data} is not the data of this run (another fingerprint); "
            f"that was named {run['segments'][-1]['data']!r}"
        )
    tables = {method: _rows(folder / f"{file_name(method)}.csv") for method in run["methods"]}
    order = [item.id for item in data.items]
    picked = {method: _pick(rows, seed) for method, rows in tables.items()}
    predictions = _rows(folder.parent / PREDICTIONS)
    with numerics(config.tf32, config.deterministic):
        prepared = prepare(config.model[0], config.layer, data.items, config, say)
        (layer,), (utility,) = config.layer, config.utility
        cell = Cell(layer, prepared.paths[layer], utility, METHODS[run["methods"][0]])
        difference = unlike(protocol, describe_protocol(prepared, cell, config, data))
        if difference:
            raise UsageError(f"this is not what the run was made with: another {difference}")
        items = {item.id: item for item in data.items}
        groups: dict[tuple[Item, ...], dict[Cell, list[str]]] = {}
        for method, rows in tables.items():
            there = tuple(items[image] for image in picked[method] if image in items)
            metrics = _metrics_of(rows.values(), config.metrics)
            groups.setdefault(there, {})[replace(cell, method=METHODS[method])] = metrics
        made = _recompute(prepared, config, groups, predictions)

    picked[PREDICTIONS] = list(dict.fromkeys(image for images in picked.values() for image in images))
    jumping = {column for name in config.metrics for column in METRICS[name].jumps}
    for name, rows in {**tables, PREDICTIONS: predictions}.items():
        comparison = _compare(rows, picked[name], made, name, items)
        if name != PREDICTIONS:
            places = places_of(run["segments"], name)
            _compare_names(rows, {order[place] for place in places if place < len(order)}, comparison)
        for image, reason in comparison.lacking.items():
            say(f"{', '.join(place)}, {name}: {image!r}: {reason}")
        differing, jumped = comparison.judge(len(picked[name]), jumping, _tolerance(config))
        counts = (len(picked[name]), comparison.values, len(comparison.lacking), differing, jumped)
        yield Check(*place, name, *counts, *comparison.largest())


def _compare(
    rows: Mapping[str, Row], picked: Iterable[str], made: _Recomputed, name: str, items: Container[str]
) -> _Comparison:
    """A table's rows of the picked images beside what was recomputed.

    Args:
        name: of a method, or `predictions.csv`.
        items: the images of the data.
    """
    comparison = _Comparison()
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


def _compare_names(rows: Collection[str], listed: set[str], comparison: _Comparison) -> None:
    """The images that a table has beside those that run.json says were made."""
    for image in rows:
        if image not in listed and image not in comparison.lacking:
            comparison.lacks(
                image, "has a row that run.json does not list: it was added, or its run was killed"
            )
    for image in sorted(listed.difference(rows)):
        comparison.lacks(image, "has no row, but run.json lists one")


def _rows(path: Path) -> dict[str, Row]:
    return {image: row for (image,), row in merge_rows([path])[1].items()}


def _pick(images: Iterable[str], seed: int) -> list[str]:
    """A seeded 1 % of a table's images, five at least: the same ones for tables of the same images."""
    images = sorted(images)
    wanted = min(len(images), max(AT_LEAST, math.ceil(SHARE * len(images))))
    return random.Random(f"verify {seed}").sample(images, wanted)


def _metrics_of(rows: Iterable[Row], metrics: Iterable[str]) -> list[str]:
    """The metric groups that a cell was asked for: other methods of its folder may have more."""
    filled = {column for row in rows for column, text in row.items() if text}
    return [name for name in metrics if filled.issuperset(METRICS[name].columns)]


def _tolerance(config: RunConfig) -> float:
    return max(TOLERANCE[config.dtype], TOLERANCE["tf32"] if config.tf32 else 0)


def _recompute(
    prepared: Prepared,
    config: RunConfig,
    groups: Mapping[tuple[Item, ...], Mapping[Cell, Sequence[str]]],
    predictions: Mapping[str, Row],
) -> _Recomputed:
    """Scores of images, those with the same cells together.

    Args:
        groups: images -> the metric groups of each of their cells.
        predictions: what the run recorded; a class of it stays where another one is as near.
    """
    size = int(config.batch_size)
    evaluation = make_evaluation(prepared, config, size)
    made = _Recomputed()
    try:
        with failures_named(size, kept="Nothing was changed."):
            for items, cells in groups.items():
                for batch in load_batches(prepared, config, items, size):
                    made.unread |= {item.id: reason for item, reason in batch.errors}
                    if batch.pixels is None:
                        continue
                    (here,) = evaluation.run(batch, {})
                    assert isinstance(here, Predictions)
                    before = _classes(batch, predictions, here.classes)
                    for result in evaluation.run(batch, cells, before):
                        if isinstance(result, Predictions):
                            made.predictions |= _predictions(here, result, _tolerance(config))
                        elif isinstance(result, CellScores):
                            made.scores.setdefault(result.cell.method.name, {}).update(_scores(result))
                        else:
                            made.failures |= _failures(result)
    except OutOfMemory as error:
        raise CamkitError(f"out of memory at --batch-size {size}: try a smaller one") from error
    return made


def _classes(batch: Batch, predictions: Mapping[str, Row], classes: int) -> dict[str, int]:
    """Image -> the class that the run recorded, where it is one that the model has."""
    texts = {item.id: predictions.get(item.id, {}).get("predicted", "") for item in batch.items}
    known = {image: int(text) for image, text in texts.items() if text.isdecimal()}
    return {image: number for image, number in known.items() if number < classes}


def _predictions(here: Predictions, recorded: Predictions, tolerance: float) -> dict[str, Values]:
    """What should be recorded of each image: the class that is, where it is as probable as the first."""
    made: dict[str, Values] = {}
    for place, item in enumerate(here.items):
        probability = here.probability[place]
        tie = abs(recorded.probability[place] - probability) <= tolerance
        predicted = (recorded if tie else here).predicted[place]
        made[item.id] = {"label": _label(item), "predicted": predicted, "probability": probability}
    return made


def _scores(result: CellScores) -> dict[str, Values]:
    return {
        item.id: {
            "label": _label(item),
            "target": result.target[place],
            **{name: values[place] for name, values in result.scores.items()},
        }
        for place, item in enumerate(result.items)
    }


def _failures(result: CellFailure) -> dict[tuple[str, str], str]:
    return {(result.cell.method.name, item.id): result.reason for item in result.items}


def _label(item: Item) -> float:
    return math.nan if item.label is None else item.label


class _Comparison:
    """The recorded values of one table beside those that were recomputed.

    Attributes:
        lacking: image -> why something of it could not be compared.
        values: how many were compared.
    """

    def __init__(self) -> None:
        self.lacking: dict[str, str] = {}
        self.values = 0
        self._gaps: dict[str, list[float]] = {}

    def lacks(self, image: str, reason: str) -> None:
        self.lacking[image] = reason

    def add(self, image: str, row: Row, made: Values) -> None:
        """Compare one image's row: whatever either side has, the other one must have."""
        if row["label"] or not math.isnan(made["label"]):
            self._compare("label", row["label"], made["label"])
        for column in dict.fromkeys([*row, *made]):
            text = row.get(column, "")
            if column in ("image", "label") or (not text and column not in made):
                continue
            if not text:
                self.lacks(image, f"has no value in {column}")
            elif column not in made:
                self.lacks(image, f"has a value in {column}, which was not recomputed")
            else:
                self._compare(column, text, made[column])

    def _compare(self, column: str, text: str, value: float) -> None:
        self.values += 1
        self._gaps.setdefault(column, []).append(_gap(text, value))

    def judge(self, images: int, jumping: Iterable[str], tolerance: float) -> tuple[int, int]:
        """How many values differ, and how many more jumped as a few may."""
        differing = jumped = 0
        for column, gaps in self._gaps.items():
            allowed = 0.0 if column in EXACT else tolerance
            if column in jumping:
                allowed = max(allowed, FEW_TOLERANCE)
            far = [gap for gap in gaps if allowed < gap < math.inf]
            near = column in jumping or (column not in EXACT and max(far, default=0) <= FEW_TOLERANCE)
            few = near and len(far) <= max(1, int(FEW * images))
            jumped += len(far) if few else 0
            differing += gaps.count(math.inf) + (0 if few else len(far))
        return differing, jumped

    def largest(self) -> tuple[float, str]:
        """The largest difference and its column; 0 and nothing where there is none."""
        gap, column = max(((max(gaps), column) for column, gaps in self._gaps.items()), default=(0.0, ""))
        return gap, column if gap else ""


def _gap(text: str, value: float) -> float:
    """Distance of a recorded field from a value, in units of max(1, |value|).

    Infinite where the field is no number, or where one of both is NaN.
    """
    try:
        was = float(text)
    except ValueError:
        return math.inf
    if was == value or (math.isnan(was) and math.isnan(value)):
        return 0.0
    gap = abs(was - value) / max(1.0, abs(value))
    return math.inf if math.isnan(gap) else gap
