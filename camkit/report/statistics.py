"""From one row per image to means, intervals, differences, p values and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import stats

from camkit.entries import Column
from camkit.report import intervals

# Below this an interval is shown with a warning: the images say too little of the scores' tails.
FEW_IMAGES = 30

# Deviations are rounded here: scores that are the same for every image have a mean that differs from them in
# the last bits, as have equal methods.
DECIMALS = 12


@dataclass(frozen=True)
class Estimates:
    """Statistics of methods and columns, with what is needed for their intervals and differences.

    Attributes:
        scores: (images, methods, columns), as they are; NaN where there is none.
        value: (methods, columns).
        influence: (images, methods, columns), the empirical influence of each image on the statistic.
        images: (methods, columns), how many images the statistic rests on.
        shares: (columns,), true for shares of images: scores of 0 and 1.
        bounds: (2, columns), between which a value must lie, infinite where that is not known.
    """

    scores: np.ndarray
    value: np.ndarray
    influence: np.ndarray
    images: np.ndarray
    shares: np.ndarray
    bounds: np.ndarray

    @cached_property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends (methods, columns) of the 95 % intervals, within the bounds; NaN with fewer than two images.

        Shares have Wilson's, all else that of :func:`camkit.report.intervals.mean_interval`.
        """
        low, high = intervals.mean_interval(self.value, intervals.spread(self.influence, self.images))
        low, high = np.maximum(low, self.bounds[0]), np.minimum(high, self.bounds[1])
        hits = np.nansum(self.scores[..., self.shares], axis=0)
        low[:, self.shares], high[:, self.shares] = intervals.share_interval(
            hits, self.images[:, self.shares]
        )
        return low, high

    def only(self, row: int) -> Estimates:
        """Those of one method, (1, columns)."""
        one = slice(row, row + 1)
        return replace(
            self,
            scores=self.scores[:, one],
            value=self.value[one],
            influence=self.influence[:, one],
            images=self.images[one],
        )

    def of_column(self, column: int) -> Estimates:
        """Those of one column, (methods, 1)."""
        one = slice(column, column + 1)
        return Estimates(
            self.scores[..., one],
            self.value[:, one],
            self.influence[..., one],
            self.images[:, one],
            self.shares[one],
            self.bounds[:, one],
        )

    def __sub__(self, other: Estimates) -> Differences:
        """Differences to methods of the same images, or to :meth:`only` one: NaN where one has no score."""
        first, second = (one.scores[..., self.shares] for one in (self, other))
        known = ~np.isnan(first) & ~np.isnan(second)
        pairs = [((first == x) & (second == y) & known).sum(axis=0) for x in (1, 0) for y in (1, 0)]
        influence = np.round(self.influence - other.influence, DECIMALS)
        return Differences(
            np.round(self.value - other.value, DECIMALS),
            intervals.spread(influence, np.minimum(self.images, other.images)),
            self.shares,
            np.stack(pairs),
        )


@dataclass(frozen=True)
class Differences:
    """Paired differences of methods.

    Attributes:
        value: (methods, columns).
        spread: of each.
        shares: (columns,), true for shares of images.
        pairs: (4, methods, shares), see :func:`camkit.report.intervals.paired_share_interval`.
    """

    value: np.ndarray
    spread: intervals.Spread
    shares: np.ndarray
    pairs: np.ndarray

    @cached_property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends (methods, columns) of the 95 % intervals; NaN with fewer than two images."""
        low, high = intervals.mean_interval(self.value, self.spread)
        low[:, self.shares], high[:, self.shares] = intervals.paired_share_interval(self.pairs)
        return low, high

    @cached_property
    def p_value(self) -> np.ndarray:
        """Two-sided p (methods, columns) for no difference; NaN with fewer than two images.

        McNemar's exact test for shares. For all else the paired t test, or, where the differences are skewed
        and it says less, the test by Hall's transformation; for ADCC with the standard error of the
        infinitesimal jackknife. Neither has a floor, as a share of resamples has, which Holm's correction of
        a hundred comparisons would run into.
        """
        p = intervals.mean_p(self.value, self.spread)
        p[:, self.shares] = intervals.paired_share_p(self.pairs)
        return p


def estimates(values: np.ndarray, columns: Mapping[str, Column]) -> Estimates:
    """The statistics (methods, columns) of scores (images, methods, columns).

    Each is the mean of its column, or the function of other columns' means that the column declares (ADCC:
    the harmonic mean of the means of its parts). NaN is left out of means. A column that declares `share` and
    yet holds other values than 0 and 1 has the interval of a mean.
    """
    values = values.astype(np.float64)
    images = len(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        count = (~np.isnan(values)).sum(axis=0)
        value = np.nansum(values, axis=0) / count
        influence = np.round(np.nan_to_num(values - value), DECIMALS) * (images / np.maximum(count, 1))
    names = list(columns)
    for place, column in enumerate(columns.values()):
        mean = column.mean_of(names)
        if mean is not None:
            parts = [names.index(part) for part in mean.parts]
            slopes = mean.slopes(value[:, parts])
            value[:, place] = mean.of(value[:, parts])
            influence[..., place] = (influence[..., parts] * slopes).sum(axis=-1)
    binary = (np.isnan(values) | (values == 0) | (values == 1)).all(axis=(0, 1))
    declared = np.array([column.share for column in columns.values()], dtype=bool)
    bounds = np.array([column.bounds for column in columns.values()], dtype=float).reshape(-1, 2).T
    return Estimates(values, value, influence, count, binary & declared, bounds)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction over all p values of an array of any shape; NaN is no member."""
    flat = p.ravel()
    order = np.argsort(flat)  # NaN last
    members = int((~np.isnan(flat)).sum())
    corrected = np.full(flat.shape, np.nan)
    factors = np.arange(members, 0, -1)
    corrected[order[:members]] = np.maximum.accumulate((factors * flat[order[:members]]).clip(max=1))
    return corrected.reshape(p.shape)


@dataclass(frozen=True)
class Ranks:
    """Average ranks of methods over several families of models (Demsar, JMLR 2006).

    Attributes:
        average: (methods,), 1 the best; ties share their ranks.
        p: of Friedman's test that all methods rank alike; NaN with fewer than three methods or two families.
        critical_difference: Nemenyi's: average ranks closer than this cannot be told apart; NaN with fewer
            than two families.
    """

    average: np.ndarray
    p: float
    critical_difference: float


def ranks(scores: np.ndarray, families: Sequence[str] | None = None) -> Ranks:
    """Ranks of (models, methods), the highest score being rank 1.

    The blocks of both tests have to be independent, which models of one architecture are not: the ranks in
    the models of a family are averaged first, and the methods ranked by these averages; a family is a block.

    Args:
        families: the models' families; None: each model is one of its own.
    """
    of_models = stats.rankdata(-scores, axis=1)
    names = list(range(len(scores))) if families is None else list(families)
    blocks = np.stack(
        [of_models[[other == name for other in names]].mean(axis=0) for name in dict.fromkeys(names)]
    )
    of_families = stats.rankdata(np.round(blocks, DECIMALS), axis=1)
    number, methods = of_families.shape
    average = of_families.mean(axis=0)
    if number == 1:
        return Ranks(average, float("nan"), float("nan"))
    with np.errstate(invalid="ignore"):  # NaN where all methods tie in all families
        p = float(stats.friedmanchisquare(*of_families.T).pvalue) if methods > 2 else float("nan")
    q = stats.studentized_range.ppf(intervals.LEVEL, methods, np.inf) / np.sqrt(2)
    return Ranks(average, p, float(q * np.sqrt(methods * (methods + 1) / (6 * number))))
