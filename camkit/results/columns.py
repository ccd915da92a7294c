"""The columns of the image CSV and of summary.csv: what each is called, and where its values come from.

Writing and reading follow from what is declared here; score columns are the metrics' (:class:`Column`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from camkit.config import DEFAULT_METRICS
from camkit.entries import METHODS, METRICS, NO_SCORES, all_columns
from camkit.errors import UsageError
from camkit.results.table import number

if TYPE_CHECKING:
    from camkit.results.cells import CellScores  # `camkit --help` does without torch

IMAGE = "image"  # identifies the rows of an image CSV


@dataclass(frozen=True)
class RowColumn:
    """A column of the image CSV beside scores.

    Attributes:
        of: takes a cell's results of a batch and a place in it, gives the field.
        is_number: whether it is read as a number; else it is text.
    """

    of: Callable[[CellScores, int], str]
    is_number: bool = False


def label_text(label: int | None) -> str:
    """A label as a field; empty where there is none."""
    return "" if label is None else str(label)


# In the order of the file; the scores come behind them.
ROW = {
    IMAGE: RowColumn(lambda result, place: result.items[place].id),
    "label": RowColumn(lambda result, place: label_text(result.items[place].label)),
    "target": RowColumn(lambda result, place: str(result.target[place]), is_number=True),
    "probability": RowColumn(
        lambda result, place: number(result.scores["probability"][place]), is_number=True
    ),
}


def row_of(result: CellScores, place: int) -> dict[str, str]:
    """The row of one image of a batch."""
    scores = {name: number(values[place]) for name, values in result.scores.items() if name not in ROW}
    return {name: column.of(result, place) for name, column in ROW.items()} | scores


def row_columns(metrics: Iterable[str] = ()) -> list[str]:
    """The columns of an image CSV: scores of the default groups, then of the known among `metrics`."""
    groups = (*DEFAULT_METRICS, *metrics)
    known = (METRICS[group] for group in groups if group in METRICS)
    return list(dict.fromkeys((*ROW, *(column for group in known for column in group.columns))))


@dataclass(frozen=True)
class CellRows:
    """What a row of summary.csv follows from.

    Attributes:
        protocol: of the cell's folder; `method`: the name.
        images: how many have a row.
        flags: name -> number of images.
        top1: of the model, see :func:`camkit.results.folder.top1`.
        means: the score columns, see :func:`camkit.results.summary.cell_means`.
    """

    protocol: Mapping[str, Any]
    method: str
    images: int
    flags: Mapping[str, int]
    top1: float
    means: Mapping[str, float]


@dataclass(frozen=True)
class SummaryColumn:
    """A column of summary.csv beside the means of scores.

    Attributes:
        of: gives its value.
        is_key: it is one of those that identify a row.
        behind: stands behind the scores.
        where: takes the table's columns, says whether this one is added at the end; None: it always is there.
    """

    of: Callable[[CellRows], str | int | float]
    is_key: bool = False
    behind: bool = False
    where: Callable[[Iterable[str]], object] | None = None


def _protocol(name: str, is_key: bool = True) -> SummaryColumn:
    return SummaryColumn(lambda cell: cell.protocol[name], is_key)


def _flag(name: str, behind: bool = False) -> SummaryColumn:
    return SummaryColumn(lambda cell: cell.flags.get(name, 0), behind=behind)


def columns_of_values(columns: Iterable[str]) -> list[str]:
    """Those of `columns` that judge maps as divisions of the utility, see :attr:`Column.of_values`."""
    known = all_columns()
    return [column for column in columns if column in known and known[column].of_values]


def is_value(name: str) -> bool:
    """Whether maps of a method divide the utility among the positions.

    False where a method cannot be had here, as of a package that is not installed: none of those does.
    """
    try:
        return METHODS[name].value
    except UsageError:
        return False


# In the order of the file.
SUMMARY = {
    "model": _protocol("model"),
    "layer": _protocol("layer"),
    "utility": _protocol("utility"),
    "method": SummaryColumn(lambda cell: cell.method, is_key=True),
    "target_rule": _protocol("target_rule", is_key=False),
    "images": SummaryColumn(lambda cell: cell.images),
    "degenerate": _flag("degenerate"),
    "degenerate_masked": _flag("degenerate_masked"),
    "top1": SummaryColumn(lambda cell: cell.top1),
    "zero_probability": _flag("zero_probability", behind=True),
    "not_finite": _flag("not_finite", behind=True),
    "value": SummaryColumn(lambda cell: "yes" if is_value(cell.method) else "no", where=columns_of_values),
}
CELL_KEYS = [name for name, column in SUMMARY.items() if column.is_key]
NO_SCORES.update(ROW, SUMMARY)


def summary_row(cell: CellRows) -> dict[str, str | int | float]:
    """The row of one cell, less the columns that depend on what else the table has."""
    before, behind = (
        {name: one.of(cell) for name, one in SUMMARY.items() if one.behind == place and one.where is None}
        for place in (False, True)
    )
    return {**before, **cell.means, **behind}
