"""Recorded values beside recomputed ones: how far apart they are, and whether that is rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from camkit.config import RunConfig
from camkit.results.columns import ROW
from camkit.results.table import Row

# How far a value may be from the recorded one: absolutely, or relative to it where it is above 1. Number
# formats with fewer bits round more, and each kind of device in another way.
TOLERANCE = {"float32": 1e-5, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
# In so many of a cell's images, or in one, a value may be this far away: there the last bits count for more.
# Columns that jump (:attr:`camkit.entries.Column.jumps`) may be this far away everywhere, and anywhere in so
# many images.
FEW, FEW_TOLERANCE = 0.1, 1e-3
# Classes, which no rounding moves.
EXACT = ("label", "target", "predicted")
TEXTS = tuple(name for name, column in ROW.items() if not column.is_number)

Values = Mapping[str, float]  # column -> value


def tolerance_of(config: RunConfig) -> float:
    """How far a value of a run may be from the recorded one."""
    return max(TOLERANCE[config.dtype], TOLERANCE["tf32"] if config.tf32 else 0)


class Comparison:
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
            if column in TEXTS or (not text and column not in made):
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
