"""What a block's scores say: means with intervals, marks, and comparisons on the images that all have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from camkit.report.scores import BLIND
from camkit.report.statistics import FEW_IMAGES, Sampled, bootstrap, holm
from camkit.report.study import Block

# Two cells whose scores of every image differ by less are the same method computed in another order.
SAME = 1e-3
SHOWN_DECIMALS = 4  # of fractions: two of the percent that tables show


@dataclass(frozen=True)
class Analysis:
    """A block with its bootstrap. Arrays are (methods, scores) if not said otherwise."""

    block: Block

    @cached_property
    def own(self) -> Sampled:
        """Each method's statistics over all of its images."""
        return self._bootstrap(self.block.values)

    def _bootstrap(self, values: np.ndarray) -> Sampled:
        means = {score.name: score.declared.mean for score in self.block.scores}
        own = {name: mean for name, mean in means.items() if mean is not None}
        return bootstrap(values.astype(np.float64), self.block.columns, own)

    @cached_property
    def common(self) -> Sampled:
        """Statistics over the images that every method has: what comparisons use."""
        if self.shared[:, self.block.counts.max(axis=0) > 0].all():
            return self.own
        return self._bootstrap(self.shared_values)

    @cached_property
    def shared(self) -> np.ndarray:
        """(images, scores): true where every method that has the score at all has it for the image."""
        missing = np.isnan(self.block.values)  # (images, methods, scores)
        return ~(missing & (self.block.counts > 0)).any(axis=1)

    @property
    def shared_values(self) -> np.ndarray:
        """The block's values (images, methods, scores) with NaN for images that comparisons leave out."""
        return np.where(self.shared[:, None], self.block.values, np.nan)

    @cached_property
    def common_images(self) -> np.ndarray:
        """Number of images that comparisons use, (scores,)."""
        return self.shared.sum(axis=0)

    @property
    def few(self) -> bool:
        return bool(self.block.counts[self.block.counts > 0].min() < FEW_IMAGES)

    @cached_property
    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        return self.own.interval()

    @property
    def sign(self) -> np.ndarray:
        """(scores,): 1 where higher is better, -1 where lower is."""
        return np.array([score.sign for score in self.block.scores])

    @cached_property
    def place(self) -> np.ndarray:
        """1 for the best method of each score, 2 for the second, else 0; controls have none.

        Methods that look the same at the digits shown share a place.
        """
        place = np.zeros(self.own.value.shape, dtype=int)
        shown = np.round(self.own.value * self.sign, SHOWN_DECIMALS)
        shown[self.block.controls] = np.nan
        shown[:, self.sign == 0] = np.nan
        for column in range(shown.shape[1]):
            values = np.unique(shown[:, column])
            values = values[~np.isnan(values)]
            for rank, value in enumerate(values[::-1][:2], start=1):
                place[shown[:, column] == value, column] = rank
        return place

    @cached_property
    def best_control(self) -> np.ndarray | None:
        """Row of the best control in each score, -1 where there is none, (scores,); None without controls."""
        if not self.block.controls.any():
            return None
        values = np.where(self.block.controls[:, None], self.common.value * self.sign, np.nan)
        rows = np.where(np.isnan(values), -np.inf, values).argmax(axis=0)
        return np.where(np.isnan(values).all(axis=0) | (self.sign == 0), -1, rows)

    @cached_property
    def beats_control(self) -> np.ndarray:
        """1 where a method beats the best control: the 95 % interval of the difference says so; else 0.

        NaN where that cannot be asked: of controls, without controls, without a score or its better side.
        """
        beats = np.full(self.own.value.shape, np.nan)
        if self.best_control is None:
            return beats
        rows = self.best_control[None]
        difference = self.common - self.common[rows, np.arange(rows.shape[1])[None]]
        low, high = difference.interval()
        asked = ~self.block.controls[:, None] & ~np.isnan(difference.value) & (self.best_control >= 0)
        beats[asked] = np.where(self.sign > 0, low > 0, high < 0)[asked]
        return beats

    @cached_property
    def blind_winners(self) -> dict[str, str]:
        """Score -> control that never saw the image and yet has the best mean of all."""
        winners = {}
        for place, score in enumerate(self.block.scores):
            values = self.common.value[:, place] * score.sign
            if np.isnan(values).all() or score.sign == 0:
                continue
            name = self.block.methods[int(np.nanargmax(values))]
            if name in BLIND:
                winners[score.name] = name
        return winners


@dataclass(frozen=True)
class Comparison:
    """Paired differences of a block's methods to one of them; arrays are (methods, scores).

    All are over the images that every method has.

    Attributes:
        baseline: row of the method compared with.
        difference: method minus baseline; `low`, `high`: ends of its 95 % interval.
        p: two-sided, Holm-corrected over all methods and scores of the block; NaN for the baseline, and
            where there is nothing to tell: no score of one of the two, or a score without a better side.
        won, tied: shares of images on which the method's score is better, or the same.
        same: no image's score differs by more than rounding.
    """

    analysis: Analysis
    baseline: int
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    won: np.ndarray
    tied: np.ndarray
    same: np.ndarray

    @property
    def asked(self) -> np.ndarray:
        """True where it can be asked whether a method differs from the baseline."""
        return ~np.isnan(self.p)

    @property
    def apart(self) -> np.ndarray:
        """True where a method can be told from the baseline (corrected p below 0.05, and not the same)."""
        return (self.p < 0.05) & ~self.same


def compare(analysis: Analysis, baseline: int) -> Comparison:
    """Compare every method of a block with the one in row `baseline`, image by image."""
    difference = analysis.common - analysis.common[baseline : baseline + 1]
    low, high = difference.interval()
    p = difference.p_value()
    p[baseline] = np.nan
    p[:, analysis.sign == 0] = np.nan
    values = analysis.shared_values
    better = np.where(analysis.sign == 0, np.nan, analysis.sign)
    gain = (values - values[:, baseline : baseline + 1]) * better
    compared = ~np.isnan(gain)
    images = compared.sum(axis=0)
    with np.errstate(invalid="ignore"):
        won, tied = ((gain > 0).sum(axis=0) / images, (gain == 0).sum(axis=0) / images)
    same = (np.where(compared, np.abs(gain), 0).max(axis=0) < SAME) & (images > 0)
    return Comparison(analysis, baseline, difference.value, low, high, holm(p), won, tied, same)
