"""The table of a results folder, in percent, as in the paper."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from tabulate import SEPARATING_LINE, tabulate

import camkit.methods
import camkit.metrics  # noqa: F401  (both fill the registries)
from camkit.models import ROWS
from camkit.registry import METHODS, METRICS
from camkit.utilities import UTILITIES

# Column of summary.csv -> heading; the arrow points to the better side.
HEADINGS = {
    "average_drop": "AD ↓",
    "coherency": "Coh ↑",
    "complexity": "Com ↓",
    "adcc": "ADCC ↑",
    "increase": "IC ↑",
    "drop_in_deletion": "ADD ↑",
    "deletion_auc": "Deletion ↓",
    "insertion_auc": "Insertion ↑",
}


def is_control(name: str) -> bool:
    return name in METHODS and "controls" in METHODS[name].groups


def terminal_table(summary: pd.DataFrame) -> str:
    """One block a model, layer and utility: methods, a line, the controls; all scores in percent."""
    blocks = []
    shown = [column for column in HEADINGS if column in summary and summary[column].notna().any()]
    for (model, layer, utility), block in summary.groupby(["model", "layer", "utility"], sort=False):
        top1 = block["top1"].iloc[0]
        accuracy = "" if pd.isna(top1) else f", top-1 {100 * top1:.2f} %"
        title = f"{model} · {layer} · {utility} ({block['images'].iloc[0]} images{accuracy})"
        controls = block["method"].map(is_control)
        rows = [_row(row, shown) for _, row in block[~controls].iterrows()]
        if rows and controls.any():
            rows.append(SEPARATING_LINE)
        rows += [_row(row, shown) for _, row in block[controls].iterrows()]
        headings = ["method", *(HEADINGS[column] for column in shown)]
        table = tabulate(
            rows, headings, tablefmt="simple", disable_numparse=True, stralign="right", colalign=("left",)
        )
        blocks.append(f"{title}\n{table}")
    return "\n\n".join(blocks)


def _row(row: pd.Series, columns: list[str]) -> list[str]:
    return [row["method"], *("" if pd.isna(row[c]) else f"{100 * row[c]:.2f}" for c in columns)]


def listing(what: str) -> pd.DataFrame:
    """What can be named: `models`, `methods`, `metrics` or `utilities`, one row each."""
    rows: list[dict[str, object]]
    if what == "models":
        rows = [
            {
                "name": row.name,
                "library": f"{row.library}/{row.entry}",
                "weights": row.package or row.tag,
                "conv": row.conv,
                "prepool": row.prepool,
                "top1_paper": row.top1,
            }
            for row in ROWS.values()
        ]
    elif what == "methods":
        rows = [
            {"name": m.name, "groups": ",".join(m.groups), "map": _first_line(m.function), "source": m.source}
            for m in METHODS.values()
        ]
    elif what == "metrics":
        rows = [
            {"name": m.name, "column": column, "better": better, "source": m.source}
            for m in METRICS.values()
            for column, better in m.directions.items()
        ]
    else:
        rows = [{"name": name, "utility": _first_line(function)} for name, function in UTILITIES.items()]
    return pd.DataFrame(rows)


def _first_line(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").strip().split("\n")[0]
