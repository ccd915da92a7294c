"""results/speed/: speed.csv (every repetition), dtype.csv (changes of scores), table.md."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
from speed_jobs import Line, Setting
from tabulate import tabulate

PACKAGES = ("camkit", "torch", "torchvision", "timm", "numpy", "pillow", "grad-cam", "torchcam")
HEADINGS = ("", "promised", "median", "range", "")
UNITS = {"memory": "megabytes"}


@dataclass(frozen=True)
class Change:
    """How far a score moves in another number format: max and mean of |change| over images and methods."""

    dtype: str
    score: str
    max: float
    mean: float


def write_report(
    out: Path, lines: Sequence[Line], changes: Sequence[Change], setting: Setting, load: float
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        (line.section, line.case, number, *pair, UNITS.get(line.section, "seconds"), ratio)
        for line in lines
        for number, (pair, ratio) in enumerate(zip(line.pairs, line.ratios, strict=True), 1)
    ]
    columns = ["section", "case", "repetition", "camkit", "other", "unit", "ratio"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.to_csv(out / "speed.csv", index=False, float_format="%.5g", lineterminator="\n")
    names = [field.name for field in fields(Change)]
    pd.DataFrame([astuple(change) for change in changes], columns=names).to_csv(
        out / "dtype.csv", index=False, float_format="%.3g", lineterminator="\n"
    )
    (out / "table.md").write_text(_markdown(lines, changes, setting, load), encoding="utf-8")


def _markdown(lines: Sequence[Line], changes: Sequence[Change], setting: Setting, load: float) -> str:
    parts = [
        "# Speed\n",
        "Made by `make speed`. Ratios, of sides that take turns in one run: the median over the repetitions, "
        "pair by pair, and their range. Floor: as many bare passes `model(x)` in inference mode, channels "
        "last, as the scores need. The repetitions are in `speed.csv`.\n",
        tabulate([_row(line) for line in lines], HEADINGS, tablefmt="github", disable_numparse=True),
    ]
    if changes:
        cells = [(c.dtype, c.score, f"{c.max:.1e}", f"{c.mean:.1e}") for c in changes]
        parts += [
            "\n## What a number format does to the scores\n",
            "Against float32, over the six sample photos and the paper's ten methods (EfficientNet-Lite0, "
            "`conv`, `rest`; scores are fractions in [0, 1]):\n",
            tabulate(cells, ("dtype", "score", "max", "mean"), tablefmt="github", disable_numparse=True),
        ]
    parts += ["\n## Machine\n", _machine(setting, load)]
    return "\n".join(parts) + "\n"


def _row(line: Line) -> tuple[str, str, str, str, str]:
    median = statistics.median(line.ratios)
    met = ""
    if line.limit is not None:
        met = "met" if (median >= line.limit if line.inverse else median <= line.limit) else "missed"
    spread = f"{min(line.ratios):.2f} to {max(line.ratios):.2f} ({len(line.ratios)})"
    return line.case, line.promise, f"{median:.2f}", spread, met


def _machine(setting: Setting, load: float) -> str:
    found = [f"- {_processor()}, {os.cpu_count()} cores, {setting.threads} threads"]
    found.append(f"- load (one minute) at the start: {load:.2f}")
    found.append(f"- {platform.system()} {platform.release()}, Python {platform.python_version()}")
    found.append("- " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    return "\n".join(found)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
