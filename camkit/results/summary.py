"""summary.csv: one row per cell, from its rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from camkit.entries import IMAGE_MEAN, METHODS, all_columns
from camkit.errors import UsageError
from camkit.results.files import write_atomically
from camkit.results.folder import (
    FLAGS,
    KEYS,
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
    summary = []
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
            columns = [column for column in rows.columns if column not in KEYS]
            cell = (protocol["layer"], protocol["utility"], method)
            summary.append(
                {
                    "model": protocol["model"],
                    "layer": protocol["layer"],
                    "utility": protocol["utility"],
                    "method": method,
                    "target_rule": protocol["target_rule"],
                    "images": len(rows),
                    "degenerate": flags[(*cell, "degenerate")],
                    "degenerate_masked": flags[(*cell, "degenerate_masked")],
                    "top1": accuracy,
                    **cell_means(rows, columns),
                    "zero_probability": flags[(*cell, "zero_probability")],
                    "not_finite": flags[(*cell, "not_finite")],
                }
            )
    table = pd.DataFrame(summary, columns=None if summary else ["model", "layer", "utility", "method"])
    if columns_of_values(table.columns):
        table["value"] = ["yes" if is_value(name) else "no" for name in table["method"]]
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


def columns_of_values(columns: Iterable[str]) -> list[str]:
    """Those of `columns` that judge maps as divisions of the utility, see :attr:`Column.of_values`."""
    known = all_columns()
    return [column for column in columns if column in known and known[column].of_values]


def method_place(name: str) -> tuple[int, str]:
    """Sorts methods: camkit's own as they are registered, then all others by name, loaded or not."""
    own = [entry.name for entry in METHODS.values() if not entry.origin]
    return (own.index(name) if name in own else len(own), name)


def is_value(name: str) -> bool:
    """Whether maps of a method divide the utility among the positions.

    False where a method cannot be had here, as of a package that is not installed: none of those does.
    """
    try:
        return METHODS[name].value
    except UsageError:
        return False
