"""A cell, and what one batch of it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from camkit.data import Item
from camkit.entries import Method

# What is flagged in every cell, and how reports call that; metrics declare flags of their own.
FLAGGED = {
    "degenerate": "degenerate maps (constant or not finite)",
    "zero_probability": "images of probability 0 (AD and ADD 0)",
    "not_finite": "scores that are not finite (left empty)",
}


@dataclass(frozen=True)
class Cell:
    """One row of a table: `layer` is what the user calls it, `path` the module it stands for."""

    layer: str
    path: str
    utility: str
    method: Method

    @property
    def key(self) -> tuple[str, str, str]:
        """The cell in the rows of flags.csv and failures.csv."""
        return self.layer, self.utility, self.method.name


@dataclass(frozen=True)
class Predictions:
    """What the model says of the images as they are.

    Attributes:
        predicted: class indices; those that an earlier run found stay.
        probability: of these classes.
        here: class indices that this pass found, and `probability_here` of them.
    """

    items: tuple[Item, ...]
    predicted: tuple[int, ...]
    probability: tuple[float, ...]
    here: tuple[int, ...]
    probability_here: tuple[float, ...]


@dataclass(frozen=True)
class CellScores:
    """One cell's results for one batch.

    Attributes:
        target: the explained classes.
        scores: column -> one value per image.
        curves: name -> (B, points), what a metric's score is the summary of; on the CPU, as the maps are.
        flags: name (as `degenerate`) -> the images it holds for, true or false.
        maps: signed maps (B, h, w) at the layer's resolution; None for methods that give saliency maps.
        saliency: saliency maps (B, H, W), on the device.
        seconds: that explaining took, and scoring; what cells share is the first one's.
    """

    cell: Cell
    items: tuple[Item, ...]
    target: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    curves: Mapping[str, Tensor]
    flags: Mapping[str, tuple[bool, ...]]
    maps: Tensor | None
    saliency: Tensor
    seconds: tuple[float, float]


@dataclass(frozen=True)
class CellFailure:
    """What a plugin did wrong in one cell, on one batch or on some of its images.

    Attributes:
        scored: there are scores all the same.
    """

    cell: Cell
    items: tuple[Item, ...]
    reason: str
    scored: bool = False


Result = Predictions | CellScores | CellFailure
