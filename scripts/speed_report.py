"""results/speed/: speed.csv (every repetition), dtype.csv (changes of scores), table.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
from speed_jobs import Line, Setting
from tabulate import tabulate

from camkit.runs.describe import processor

PACKAGES = ("camkit", "torch", "torchvision", "timm", "numpy", "pillow", "grad-cam", "torchcam")
HEADINGS = ("", "promised", "median", "range", "")
COLUMNS = ["section", "case", "repetition", "camkit", "other", "unit", "ratio", "promise", "limit"]
UNITS = {"memory": "megabytes"}
# Of the curves whose changes in another number format are told.
DTYPE_STEPS = 4


@dataclass(frozen=True)
class Change:
    """How far a score moves in another number format: max and mean of |change| over images and methods."""

    dtype: str
    score: str
    max: float
    mean: float


def write_report(
    out: Path, section: str, lines: Sequence[Line], changes: Sequence[Change], setting: Setting, load: float
) -> None:
    """Put one section's results in the place of its earlier ones; table.md is made of all that is there."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        (section, line.case, number, *pair, UNITS.get(section, "seconds"), ratio, line.promise, line.limit)
        for line in lines
        for number, (pair, ratio) in enumerate(zip(line.pairs, line.ratios, strict=True), 1)
    ]
    speed = _replace(out / "speed.csv", "section", {section}, pd.DataFrame(rows, columns=COLUMNS), "%.5g")
    new = pd.DataFrame([astuple(change) for change in changes], columns=[f.name for f in fields(Change)])
    dtype = _replace(out / "dtype.csv", "dtype", set(new["dtype"]), new, "%.3g")
    (out / "table.md").write_text(_markdown(speed, dtype, setting, load), encoding="utf-8")


def _replace(path: Path, key: str, names: set[str], new: pd.DataFrame, digits: str) -> pd.DataFrame:
    """The CSV with `new` for the rows whose `key` is among `names`."""
    if path.exists():
        old = pd.read_csv(path, keep_default_na=False)
        kept = old[~old[key].isin(names)]
        order = list(dict.fromkeys((*old[key], *new[key])))
        new = pd.concat([frame for frame in (kept, new) if len(frame)] or [new])
        new = new.sort_values(key, key=lambda column: column.map(order.index), kind="stable")
    new.to_csv(path, index=False, float_format=digits, lineterminator="\n")
    return pd.read_csv(path)


def _markdown(speed: pd.DataFrame, dtype: pd.DataFrame, setting: Setting, load: float) -> str:
    lines = [_row(case, rows) for case, rows in speed.groupby("case", sort=False)]
    parts = [
        "# Speed\n",
        "Made by `make speed`. Ratios, of sides that take turns in one run: the median over the repetitions, "
        "pair by pair, and their range. Floor: as many bare passes `model(x)` in inference mode, channels "
        "last, as the scores need. The repetitions are in `speed.csv`.\n",
        tabulate(lines, HEADINGS, tablefmt="github", disable_numparse=True),
    ]
    if len(dtype):
        cells = [(c.dtype, c.score, f"{c.max:.1e}", f"{c.mean:.1e}") for c in dtype.itertuples()]
        parts += [
            "\n## What a number format does to the scores\n",
            "Against float32, over the six sample photos and GradCAM, ShapleyCAM and ShapleyCAM-H "
            f"(EfficientNet-Lite0, `conv`, `rest`, curves of N = {DTYPE_STEPS} steps; scores are fractions "
            "in [0, 1]), where the same class is explained: of two classes that are nearly as likely, "
            "another format may take the other.\n",
            tabulate(cells, ("dtype", "score", "max", "mean"), tablefmt="github", disable_numparse=True),
        ]
    parts += ["\n## Machine\n", _machine(setting, load)]
    return "\n".join(parts) + "\n"


def _row(case: str, rows: pd.DataFrame) -> tuple[str, str, str, str, str]:
    ratios, promise, limit = rows["ratio"], rows["promise"].iloc[0], rows["limit"].iloc[0]
    met = ""
    if pd.isna(promise):
        promise = ""
    else:
        median = ratios.median()
        met = "met" if (median >= limit if promise.startswith("≥") else median <= limit) else "missed"
    return (
        case,
        promise,
        f"{ratios.median():.2f}",
        f"{ratios.min():.2f} to {ratios.max():.2f} ({len(ratios)})",
        met,
    )


def _machine(setting: Setting, load: float) -> str:
    found = [f"- {processor()}, {os.cpu_count()} cores, {setting.threads} threads"]
    found.append(f"- load (one minute) before the last section that was measured: {load:.2f}")
    found.append(f"- {platform.system()} {platform.release()}, Python {platform.python_version()}")
    found.append("- " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    return "\n".join(found)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
