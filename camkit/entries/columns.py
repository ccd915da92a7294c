"""A column of scores, and how it is averaged."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np  # `camkit --help` does without


class Mean(Protocol):
    """How a column's figure over a data set follows from the means of other columns, its `parts`."""

    @property
    def parts(self) -> Sequence[str]: ...

    def of(self, means: np.ndarray) -> np.ndarray:
        """The figures (...) of means (..., parts)."""
        ...

    def slopes(self, means: np.ndarray) -> np.ndarray:
        """Their derivatives by each of the means, (..., parts)."""
        ...


# Between which a score lies, see :attr:`Column.bounds`.
UNIT, CORRELATION, NOT_NEGATIVE = (0.0, 1.0), (-1.0, 1.0), (0.0, math.inf)


@dataclass(frozen=True)
class Column:
    """A column of scores.

    Attributes:
        better: `higher`, `lower`, or `neither` where it is no score of the map.
        heading: the field's short name; "" for the column's own.
        text: what it means, one sentence; "" for its heading.
        mean: how it is averaged over a data set; None: the plain mean.
        place: sorts the columns of a group in tables; in files they stand as they are registered.
        optional: NaN for maps that have no such score.
        of_values: judges a map as a division of the utility, see :attr:`Method.value`.
        signed: sees the map's sign; a grade compares changed maps, which have none, with the map without it.
        jumps: a last bit can move it far: 0 or 1, a correlation of ranks, an order of pixels.
        share: 0 or 1 for an image, so its mean is a share of images, with its own intervals and tests.
        bounds: between which it lies, and its mean; intervals end there.
    """

    better: str
    heading: str = ""
    text: str = ""
    mean: Mean | None = None
    place: int = 0
    optional: bool = False
    of_values: bool = False
    signed: bool = False
    jumps: bool = False
    share: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def mean_of(self, columns: Container[str]) -> Mean | None:
        """Its own mean where all parts of that are among `columns`: older definitions lack some."""
        return self.mean if self.mean and all(part in columns for part in self.mean.parts) else None
