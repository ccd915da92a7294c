"""The table of a results folder, in percent, as in the paper."""

from __future__ import annotations

import pandas as pd
from tabulate import SEPARATING_LINE, tabulate

from camkit.registry import METHODS

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
        table = tabulate(rows, headings, tablefmt="simple", stralign="right", colalign=("left",))
        blocks.append(f"{title}\n{table}")
    return "\n\n".join(blocks)


def _row(row: pd.Series, columns: list[str]) -> list[str]:
    return [row["method"], *("" if pd.isna(row[c]) else f"{100 * row[c]:.2f}" for c in columns)]
