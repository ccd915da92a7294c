"""summary.csv: one row per cell, from its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from camkit.entries import IMAGE_MEAN, METHODS, all_columns
from camkit.results.columns import CELL_KEYS, ROW, SUMMARY, CellRows, summary_row
from camkit.results.files import write_atomically
from camkit.results.folder import (
    FLAGS,
    PREDICTIONS,
    file_name,
    flag_counts,
    read_run,
    read_scores,
    run_folders,
    top1,
)


def summarise(out: Path) -> pd.DataFrame:
    """One row per cell with rows of everything below `out`: counts, top-1 and the mean of each score.

    Beside scores that judge maps as divisions of the utility among positions, `value` says which are such.
    """
    cells: list[CellRows] = []
    for folder in run_folders(out):
        run = read_run(folder)
        protocol = run["protocol"]
        flags = flag_counts(folder.parent / FLAGS)
        accuracy = top1(folder.parent / PREDICTIONS)
        for method in sorted(run["methods"], key=method_place):
            path = folder / f"{file_name(method)}.csv"
            rows = read_scores(path) if path.exists() else pd.DataFrame()
            if rows.empty:
                continue
            scores = [column for column in rows.columns if column not in ROW]
            place = (protocol["layer"], protocol["utility"], method)
            counts = {flag: images for (*cell, flag), images in flags.items() if tuple(cell) == place}
            means = cell_means(rows, scores)
            cells.append(CellRows(protocol, method, len(rows), counts, accuracy, means))
    table = pd.DataFrame(list(map(summary_row, cells)), columns=None if cells else CELL_KEYS)
    for name, column in SUMMARY.items():
        if column.where and column.where(table.columns):
            table[name] = [column.of(cell) for cell in cells]
    return table


def summary_text(summary: pd.DataFrame) -> str:
    """What stands in summary.csv."""
    return summary.to_csv(index=False, float_format="%.9g", lineterminator="\n")


def write_summary(out: Path, summary: pd.DataFrame) -> None:
    write_atomically(out / "summary.csv", summary_text(summary))


def cell_means(rows: pd.DataFrame, columns: list[str]) -> dict[str, float]:
    """Mean of each score column over the images that have it; NaN where none has.

    A column with a mean of its own (`adcc`) has that; the mean of its values is `adcc_image_mean`.
    """
    means = {column: float(rows[column].mean()) for column in columns}
    known = {name: column.mean_of(means) for name, column in all_columns().items() if name in means}
    own = {name: mean for name, mean in known.items() if mean}
    for name in own:
        means[name + IMAGE_MEAN] = means[name]
    for name, mean in own.items():
        means[name] = float(mean.of(np.array([means[part] for part in mean.parts])))
    return means


def method_place(name: str) -> tuple[int, str]:
    """Sorts methods: camkit's own as they are registered, then all others by name, loaded or not."""
    own = [entry.name for entry in METHODS.values() if not entry.origin]
    return (own.index(name) if name in own else len(own), name)
