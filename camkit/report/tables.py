"""The tables of a study, in percent, as in the paper; and what can be named."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from camkit.entries import COSTLY, METHODS, METRICS, MODELS, UTILITIES
from camkit.network.models import ROWS, find_row
from camkit.registry import ALL, first_line
from camkit.report.analysis import Analysis
from camkit.report.audit import audit, no_values
from camkit.report.grid import Entry, Grid, terminal
from camkit.report.intervals import LEVEL
from camkit.report.scores import Naming, identifier, is_ceiling, is_control, known_scores, title_of
from camkit.report.study import Block, count_of
from camkit.results.columns import columns_of_values, is_value

INTERVAL = f"{100 * LEVEL:.0f} %"
NO_INTERVAL = "–"
LEGEND = (
    "Bold: best method; underlined: second.",
    f"±: as far as the {INTERVAL} interval reaches on its longer side; {NO_INTERVAL}: one image gives none.",
    "†: not shown to beat the best control (paired tests against every control at 5 %, corrected (Holm) over "
    "the methods and scores of the table).",
)


def percent(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:.2f}"


def signed(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{100 * value:+.2f}".replace("-", "−").replace("−0.00", "0.00").replace("+0.00", "0.00")


def terminal_table(summary: pd.DataFrame, width: int | None = None) -> str:
    """The means of a summary.csv: one block per model, layer and utility; controls and ceilings below a line.

    Args:
        width: see :func:`camkit.report.grid.terminal`.
    """
    grids = []
    scores = [score for score in known_scores(summary) if summary[score.name].notna().any()]
    for (model, layer, utility), block in summary.groupby(["model", "layer", "utility"], sort=False):
        top1 = block["top1"].iloc[0]
        accuracy = "" if pd.isna(top1) else f", top-1 {100 * top1:.2f} %"
        controls, ceilings = block["method"].map(is_control), block["method"].map(is_ceiling)
        groups = tuple(
            tuple(
                (Entry(row["method"]), *(Entry(percent(row[score.name])) for score in scores))
                for _, row in block[chosen].iterrows()
            )
            for chosen in (~(controls | ceilings), controls, ceilings)
        )
        title = f"{model} · {layer} · {utility} ({count_of(*block['images'])}{accuracy})"
        grids.append(Grid(title, "", ("method", *(score.heading for score in scores)), groups))
    judged = columns_of_values(score.name for score in scores)
    filled = summary.loc[summary[judged].notna().any(axis=1), "method"] if judged else ()
    others = [name for name in dict.fromkeys(filled) if not is_value(name)]
    return terminal(grids, [no_values(others, judged)] if others else [], width=width)


def score_grid(analysis: Analysis, study: Sequence[Block], named: Naming = identifier) -> Grid:
    """One block of the report: means, intervals, marks, the best control of each score, audit lines."""
    block = analysis.block
    rows = [
        (Entry(named(name)), *(_score_cell(analysis, row, column) for column in range(len(block.scores))))
        for row, name in enumerate(block.methods)
    ]
    groups = [
        tuple(row for row, member in zip(rows, members, strict=True) if member)
        for members in (block.explaining, block.controls, block.ceilings)
    ]
    if analysis.best_control is not None:
        best = [named(block.methods[row]) if row >= 0 else "" for row in analysis.best_control]
        groups.append(((Entry("best control"), *(Entry(name) for name in best)),))
    return Grid(
        block.title,
        f"CAM scores in percent: {block.describe()}.",
        ("method", *(score.heading for score in block.scores)),
        tuple(groups),
        tuple(audit(analysis, study, named)),
    )


def _score_cell(analysis: Analysis, row: int, column: int) -> Entry:
    value = analysis.own.value[row, column]
    if np.isnan(value):
        return Entry("")
    low, high = (ends[row, column] for ends in analysis.intervals)
    known = not np.isnan(low)
    reach = percent(max(high - value, value - low)) if known else NO_INTERVAL
    unbeaten = analysis.beats_control[row, column] == 0
    return Entry(
        f"{'†' if unbeaten else ''}{percent(value)}",
        value,
        bold=analysis.place[row, column] == 1,
        underline=analysis.place[row, column] == 2,
        detail=f"± {reach:>5}",
        hint=f"{percent(low)} to {percent(high)}" if known else "",
    )


def score_frame(analyses: Sequence[Analysis]) -> pd.DataFrame:
    """All that the report knows of each cell and score, one row each; fractions."""
    rows = []
    for analysis in analyses:
        block = analysis.block
        low, high = analysis.intervals
        beats = analysis.beats_control
        for row, name in enumerate(block.methods):
            for column, score in enumerate(block.scores):
                control = analysis.best_control
                rows.append(
                    {
                        **cell_keys(block),
                        "method": name,
                        "control": is_control(name),
                        "score": score.name,
                        "better": score.declared.better,
                        "images": block.counts[row, column],
                        "value": analysis.own.value[row, column],
                        "low": low[row, column],
                        "high": high[row, column],
                        "place": analysis.place[row, column] or "",
                        "best_control": ""
                        if control is None or control[column] < 0
                        else block.methods[control[column]],
                        "beats_best_control": ""
                        if np.isnan(beats[row, column])
                        else bool(beats[row, column]),
                        "p_holm": analysis.control_p[row, column],
                    }
                )
    return pd.DataFrame(rows)


def cell_keys(block: Block) -> dict[str, object]:
    return {"results": block.source, "model": block.model, "layer": block.layer, "utility": block.utility}


COST_LEGEND = (
    "Milliseconds per image, of the device, as these results were made: their scores, their batch size.",
    "What methods share (a layer's gradient, blank images) counts for the first one that needs it.",
)


def cost_grid(block: Block) -> Grid | None:
    """What each method took, as run.json has it; None where it has nothing."""
    taken: dict[str, Counter[str]] = {}
    for segment in block.segments:
        for method, cost in segment.get("costs", {}).items():
            taken.setdefault(method, Counter()).update(cost)
    parts = ("explaining_seconds", "scoring_seconds")
    rows = []
    for method in block.methods:
        cost = taken.get(method)
        if cost is None or not cost["images"]:
            continue
        milliseconds = [1000 * cost[part] / cost["images"] for part in parts]
        numbers = (*milliseconds, sum(milliseconds))
        rows.append((Entry(title_of(method)), *(Entry(f"{one:.1f}", one) for one in numbers)))
    if not rows:
        return None
    devices = ", ".join(dict.fromkeys(str(one["device"]) for one in block.segments if "device" in one))
    title = f"{block.name} ({devices})" if devices else block.name
    return Grid(title, "Cost.", ("Method", "explaining", "scoring", "both"), (tuple(rows),))


# Of the methods, what a terminal shows: formulas are too wide.
BRIEF = ("name", "title", "uses", "cost", "from")
COSTS = """\
Cost per image beside the pass that all methods share. pass: a pass through the network; head: one
through what follows the layer; grad: a gradient at the layer. C channels, P positions, L blocks.
or 0: where pooling and a linear map follow the layer (so it is with shapley and reciprocam, too)."""


def brief_listing(what: str) -> pd.DataFrame:
    """:func:`listing` as a terminal shows it: of the methods without formulas and empty columns."""
    frame = listing(what).astype(object).fillna("")
    if what != "methods":
        return frame
    return frame[[column for column in BRIEF if frame[column].any()]]


def groups_of_methods() -> str:
    """What the costs mean, and the members of each group, as text of at most 100 letters per line."""
    groups: dict[str, list[str]] = {}
    for one in METHODS.values():
        for group in one.groups:
            groups.setdefault(group, []).append(one.name)
    groups["maps that divide the utility"] = [one.name for one in METHODS.values() if one.value]
    lines = [
        textwrap.fill(f"{name}: {', '.join(members)}", 100, subsequent_indent="  ", break_on_hyphens=False)
        for name, members in groups.items()
    ]
    return "\n".join([COSTS, "", *lines, f"{ALL}: all but {COSTLY}"])


def listing(what: str) -> pd.DataFrame:
    """What can be named: `models`, `methods`, `metrics` or `utilities`, one row each.

    Of the methods `from` is the plugin or package, and `value` says which maps divide the utility.
    """
    rows: list[dict[str, object]]
    if what == "models":
        rows = [
            {
                "name": row.name,
                "family": row.family,
                "library": f"{row.library}/{row.entry}",
                "weights": row.package or row.tag,
                "conv": row.conv,
                "prepool": row.prepool,
                "top1_paper": row.top1,
            }
            for row in (*ROWS.values(), *map(find_row, MODELS))
        ]
    elif what == "methods":
        rows = [
            {
                "name": m.name,
                "groups": ",".join(m.groups),
                "uses": ", ".join(m.uses),
                "cost": m.cost,
                "from": m.origin,
                "title": m.title,
                "value": "yes" if m.value else "",
                "map": first_line(m.function),
                "source": m.source,
            }
            for m in METHODS.values()
        ]
        rows += [{"name": form, "map": text} for form, text in METHODS.forms.items()]
    elif what == "metrics":
        rows = [
            {
                "name": m.name,
                "column": name,
                "better": column.better,
                "passes": m.passes,
                "source": m.source,
            }  # fmt: skip
            for m in METRICS.values()
            for name, column in m.columns.items()
        ]
    else:
        rows = [{"name": one.name, "utility": first_line(one.function)} for one in UTILITIES.values()]
    return pd.DataFrame(rows)
