"""What a block's scores say: means with intervals, marks, and comparisons on the images that all have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from camkit.report.intervals import LEVEL
from camkit.report.scores import is_blind
from camkit.report.statistics import FEW_IMAGES, Estimates, estimates, holm
from camkit.report.study import Block

# Two cells whose scores of every image differ by less are the same method computed in another order.
SAME = 1e-3
SHOWN_DECIMALS = 4  # of fractions: two of the percent that tables show


@dataclass(frozen=True)
class Analysis:
    """A block with its statistics. Arrays are (methods, scores) if not said otherwise."""

    block: Block

    @cached_property
    def own(self) -> Estimates:
        """Each method's statistics over all of its images."""
        return self._estimates(self.block.sampled)

    def _estimates(self, values: np.ndarray) -> Estimates:
        return estimates(values, {score.name: score.declared for score in self.block.scores})

    @cached_property
    def common(self) -> Estimates:
        """Statistics over the images that every method has: what comparisons use."""
        if self.shared[:, self.block.counts.max(axis=0) > 0].all():
            return self.own
        return self._estimates(self.shared_values)

    @cached_property
    def shared(self) -> np.ndarray:
        """(units, scores): true where every method that has the score at all has it for the unit."""
        missing = np.isnan(self.block.sampled)  # (units, methods, scores)
        return ~(missing & (self.block.counts > 0)).any(axis=1)

    @property
    def shared_values(self) -> np.ndarray:
        """The units' scores (units, methods, scores) with NaN for units that comparisons leave out."""
        return np.where(self.shared[:, None], self.block.sampled, np.nan)

    @cached_property
    def common_images(self) -> np.ndarray:
        """Number of units that comparisons use, (scores,)."""
        return self.shared.sum(axis=0)

    @property
    def few(self) -> bool:
        return bool(self.block.counts[self.block.counts > 0].min() < FEW_IMAGES)

    @property
    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95 % intervals; NaN where a single image gives none."""
        return self.own.interval

    @property
    def sign(self) -> np.ndarray:
        """(scores,): 1 where higher is better, -1 where lower is."""
        return np.array([score.sign for score in self.block.scores])

    @cached_property
    def place(self) -> np.ndarray:
        """1 for the best method of each score, 2 for the second, else 0; controls and ceilings have none.

        Methods that look the same at the digits shown share a place.
        """
        place = np.zeros(self.own.value.shape, dtype=int)
        shown = np.round(self.own.value * self.sign, SHOWN_DECIMALS)
        shown[~self.block.explaining] = np.nan
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
    def control_p(self) -> np.ndarray:
        """p that a method does not beat the best control, corrected (Holm) over methods and scores.

        Which control is the best is not known, only which one looks best on these images. So a method has to
        beat each of them: its p is the largest of the paired tests against all controls, 1 where it is not
        better (an intersection-union test: Berger, Technometrics 1982), which needs no correction for the
        choice. NaN where that cannot be asked: of controls and ceilings, without controls, a score or its
        better side, with one image.
        """
        p = np.full(self.own.value.shape, np.nan)
        for row in np.flatnonzero(self.block.controls):
            found = self.common - self.common.only(int(row))
            worse = (found.value * self.sign < 0) & ~np.isnan(found.p_value)
            p = np.fmax(p, np.where(worse, 1.0, found.p_value))
        p[~self.block.explaining] = np.nan
        p[:, self.sign == 0] = np.nan
        return holm(p)

    @property
    def beats_control(self) -> np.ndarray:
        """1 where it is shown that a method beats the best control (:attr:`control_p` below 0.05), else 0.

        NaN where that cannot be asked.
        """
        return np.where(np.isnan(self.control_p), np.nan, self.control_p < 1 - LEVEL)

    @cached_property
    def blind_winners(self) -> dict[str, str]:
        """Score -> control that never saw the image and yet has the best mean of all."""
        winners = {}
        for place, score in enumerate(self.block.scores):
            values = self.common.value[:, place] * score.sign
            if np.isnan(values[~self.block.ceilings]).all() or score.sign == 0:
                continue
            name = self.block.methods[int(np.nanargmax(np.where(self.block.ceilings, np.nan, values)))]
            if is_blind(name):
                winners[score.name] = name
        return winners


@dataclass(frozen=True)
class Comparison:
    """Paired differences of a block's methods to one of them; arrays are (methods, scores).

    All are over the images that every method has.

    Attributes:
        baseline: row of the method compared with.
        difference: method minus baseline; `low`, `high`: ends of its 95 % interval.
        p: two-sided, Holm-corrected over all methods and scores of the block; NaN where it is not asked, and
            with one image.
        asked: whether there is something to tell: not of the baseline or a ceiling, where one of the two has
            no score, or of a score without a better side.
        won, tied: shares of images on which the method's score is better, or the same.
        same: no image's score differs by more than rounding.
    """

    analysis: Analysis
    baseline: int
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    asked: np.ndarray
    won: np.ndarray
    tied: np.ndarray
    same: np.ndarray

    @property
    def apart(self) -> np.ndarray:
        """True where a method can be told from the baseline (corrected p below 0.05, and not the same)."""
        return (self.p < 1 - LEVEL) & ~self.same


def compare(analysis: Analysis, baseline: int) -> Comparison:
    """Compare every method of a block with the one in row `baseline`, image by image."""
    difference = analysis.common - analysis.common.only(baseline)
    low, high = difference.interval
    asked = ~np.isnan(difference.value) & (analysis.sign != 0)
    asked[baseline] = False
    asked[analysis.block.ceilings] = False
    p = np.where(asked, difference.p_value, np.nan)
    values = analysis.shared_values
    better = np.where(analysis.sign == 0, np.nan, analysis.sign)
    gain = (values - values[:, baseline : baseline + 1]) * better
    compared = ~np.isnan(gain)
    images = compared.sum(axis=0)
    with np.errstate(invalid="ignore"):
        won, tied = ((gain > 0).sum(axis=0) / images, (gain == 0).sum(axis=0) / images)
    same = (np.where(compared, np.abs(gain), 0).max(axis=0) < SAME) & (images > 0)
    return Comparison(analysis, baseline, difference.value, low, high, holm(p), asked, won, tied, same)
