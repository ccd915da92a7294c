"""Tables of grades, see :mod:`camkit.report.grades`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from camkit.entries import METRICS
from camkit.methods.altered import MOVED
from camkit.report.exchange import APART, NOTICED
from camkit.report.grades import Grade, Report
from camkit.report.grid import Entry, Grid

LEGEND = (
    f"notices: smallest share of a map in a wrong tile that worsens the score in {100 * NOTICED:.0f} % of "
    "mosaics.",
    "paid: the share in a wrong tile that a change of histogram alone (square root, square, raised) makes up "
    "for.",
    f"agrees: pairs of methods whose energies differ by more than {100 * APART:.0f} points, ordered alike.",
    "beats controls: how often the best method of one half of the images beats every control on the other.",
    "area: share of the score's variance within images that the map's mean and roughness explain.",
    "images: from so many on two samples rank the methods alike.",
    "×: misses its threshold (docs/scores.md).",
)
HEADINGS = ("score", "notices", "paid", "agrees", "beats controls", "area", "images", "passes")


def grade_grid(report: Report) -> Grid:
    """The grades of one model, layer and utility as a table."""
    block = report.block
    rows = tuple(_row(one) for one in report.grades)
    parts = [one.size for one in (report.mosaics, report.photos) if one]
    return Grid(
        f"{block.model} · {block.layer} · {block.utility} ({'; '.join(parts)})",
        f"What scores are worth: layer {block.layer}, utility {block.utility}.",
        HEADINGS,
        (rows,),
        tuple(report.notes),
    )


def _row(one: Grade) -> tuple[Entry, ...]:
    passed = one.passed

    def cell(part: str, text: str, value: float) -> Entry:
        if np.isnan(value):
            return Entry("")
        return Entry(text if passed[part] else f"{text} ×", value)

    def share(value: float) -> str:
        return "never" if np.isinf(value) else f"{100 * value:.0f} %"

    interval = "" if np.isnan(one.paid) else f" ({_upto(one.paid_low)} to {_upto(one.paid_high)})"
    return (
        Entry(one.score.heading),
        cell("noticed", share(one.noticed), one.noticed),
        cell("paid", _upto(one.paid) + interval, one.paid),
        cell("agreement", f"{100 * one.agreement:.0f} % of {one.pairs}", one.agreement),
        cell("chance", share(one.chance), one.chance),
        cell("area", share(one.area), one.area),
        cell("images", "more" if np.isinf(one.images) else f"{one.images:.0f}", one.images),
        Entry(passes_of(one.score.name)),
    )


def _upto(value: float) -> str:
    return "all" if np.isinf(value) else f"{100 * value:.0f} %"


def passes_of(column: str) -> str:
    """What a column costs, in passes per image and method beside the one that explains."""
    known = [one.passes for one in METRICS.values() if column in one.columns and one.passes]
    # Of several groups that have it, one may cost nothing.
    return "0" if "0" in known else next(iter(known), "")


def grade_frame(reports: Sequence[Report]) -> pd.DataFrame:
    """One row per score; shares as fractions, `inf` for never."""
    rows: list[Mapping[str, object]] = []
    for report in reports:
        block = report.block
        for one in report.grades:
            rows.append(
                {
                    "model": block.model,
                    "layer": block.layer,
                    "utility": block.utility,
                    "score": one.score.name,
                    "better": one.score.declared.better,
                    "changed": one.base,
                    **{f"worse_{t}": share for t, share in zip(MOVED, one.worse, strict=True)},
                    "noticed": one.noticed,
                    "paid": one.paid,
                    "paid_low": one.paid_low,
                    "paid_high": one.paid_high,
                    "mosaics": one.mosaics,
                    "agreement": one.agreement,
                    "pairs": one.pairs,
                    "chance": one.chance,
                    "area": one.area,
                    "images": one.images,
                    "missed": ",".join(name for name, good in one.passed.items() if not good),
                }
            )
    return pd.DataFrame(rows)
