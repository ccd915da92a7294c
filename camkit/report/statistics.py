"""The only averaging: from one row an image to means, intervals, differences, p values and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from camkit.entries import Mean

RESAMPLES = 10_000


LEVEL = 0.95


# Below this an interval is shown with a warning: the resamples know too little of the scores' tails.
FEW_IMAGES = 30


COUNTS = 2**22  # counts of images in resamples that are in memory at a time


# Resampled differences are rounded here: equal methods differ by the last bits of a matrix product.
DECIMALS = 12


def resampled_means(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Column means (resamples, columns) of bootstrap samples of the rows of (images, columns).

    All columns share their resamples, so differences of two of them are paired. NaN is left out of a mean.
    Memory: :data:`COUNTS` counts, beside what comes back.
    """
    images = len(values)
    present = ~np.isnan(values)
    filled = np.where(present, values, 0.0)
    whole = present.all(axis=0)
    means = np.empty((resamples, values.shape[1]))
    chunk = min(resamples, max(1, COUNTS // images))
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        counts = _draw(rng, size, images)
        total = np.full((size, values.shape[1]), float(images))
        total[:, ~whole] = counts @ present[:, ~whole]
        with np.errstate(invalid="ignore"):
            means[start : start + size] = counts @ filled / total
    return means


def _draw(rng: np.random.Generator, samples: int, images: int) -> np.ndarray:
    """How often each image is in each bootstrap sample, (samples, images)."""
    counts = np.empty((samples, images))
    rows = max(
        1, 2**16 // images
    )  # in one go: few enough to stay in the cache, many enough to be worth a call
    for start in range(0, samples, rows):
        block = counts[start : start + rows]
        drawn = rng.integers(0, images, block.shape) + images * np.arange(len(block))[:, None]
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    return counts


@dataclass(frozen=True)
class Sampled:
    """Statistics with what is needed for their intervals; any shape `...`, such as (methods, scores).

    Attributes:
        value: (...), of the images as they are.
        resampled: (resamples, ...), of bootstrap samples.
        influence: (images, ...), the empirical influence of each image on the statistic.
        images: (...), how many images the statistic rests on.
    """

    value: np.ndarray
    resampled: np.ndarray
    influence: np.ndarray
    images: np.ndarray

    def __getitem__(self, place: tuple | slice | int) -> Sampled:
        place = place if isinstance(place, tuple) else (place,)
        return Sampled(
            self.value[place],
            self.resampled[(slice(None), *place)],
            self.influence[(slice(None), *place)],
            self.images[place],
        )

    def __sub__(self, other: Sampled) -> Sampled:
        """Paired differences: both must come from one bootstrap. Shapes broadcast from the right."""
        return Sampled(
            np.round(self.value - other.value, DECIMALS),
            np.round(self.resampled - other.resampled, DECIMALS),
            np.round(self.influence - other.influence, DECIMALS),
            np.minimum(self.images, other.images),
        )

    def interval(self, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """Ends (...) of the expanded percentile interval; NaN where the value is.

        Quantiles of the resamples, a little further out than (1 -+ level) / 2: as much as Student's t is
        wider than the normal distribution (Hesterberg, The American Statistician 2015).
        """
        images = np.maximum(self.images, 2)
        tail = stats.norm.sf(np.sqrt(images / (images - 1)) * stats.t.isf((1 - level) / 2, images - 1))
        ordered = np.sort(self.resampled, axis=0)
        return _quantiles(ordered, tail), _quantiles(ordered, 1 - tail)

    def p_value(self) -> np.ndarray:
        """Two-sided p (...) for the value 0, by t: value over its standard error from the influence.

        For a mean of paired differences it is the paired t-test; for ADCC the standard error is that of the
        infinitesimal jackknife. Unlike a share of resamples it has no floor, which Holm's correction of a
        hundred comparisons would run into. 1 where value and error are 0.
        """
        total = len(self.influence)
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt((self.influence**2).sum(axis=0) / total**2 * self.images / (self.images - 1))
            t = np.where(self.value == 0, 0.0, self.value / error)
        return 2 * stats.t.sf(np.abs(t), self.images - 1)


def _quantiles(ordered: np.ndarray, quantile: np.ndarray) -> np.ndarray:
    """A quantile of its own for each column of (resamples, ...), which are sorted; linear in between."""
    place = quantile * (len(ordered) - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, len(ordered) - 1)
    below, above = (np.take_along_axis(ordered, index[None], axis=0)[0] for index in (low, high))
    return below + (place - low) * (above - below)


def bootstrap(
    values: np.ndarray,
    columns: Sequence[str],
    own: Mapping[str, Mean] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Sampled:
    """The statistics (methods, columns) of scores (images, methods, columns), from one set of resamples.

    Each statistic is the mean of its column; a column of `own` has a mean of its own (ADCC: the harmonic mean
    of the means of its parts) and is resampled as such. NaN is left out of means.
    """
    images, methods, scores = values.shape
    flat = values.reshape(images, methods * scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        count = (~np.isnan(values)).sum(axis=0)
        value = np.nansum(values, axis=0) / count
        influence = np.nan_to_num(values - value) * (images / count)
    resampled = resampled_means(flat, resamples, seed).reshape(resamples, methods, scores)
    for place, name in enumerate(columns):
        mean = (own or {}).get(name)
        if mean is not None:
            if not {*mean.parts} <= {*columns}:
                value[:, place] = resampled[..., place] = np.nan
                continue
            parts = [columns.index(part) for part in mean.parts]
            slopes = mean.slopes(value[:, parts])
            value[:, place] = mean.of(value[:, parts])
            resampled[..., place] = mean.of(resampled[..., parts])
            influence[..., place] = (influence[..., parts] * slopes).sum(axis=-1)
    return Sampled(value, resampled, influence, count)


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
    """Average ranks of methods over several models (Demsar, JMLR 2006).

    Attributes:
        average: (methods,), 1 the best; ties share their ranks.
        p: of Friedman's test that all methods rank alike; NaN with fewer than three methods.
        critical_difference: Nemenyi's: average ranks closer than this cannot be told apart.
    """

    average: np.ndarray
    p: float
    critical_difference: float


def ranks(scores: np.ndarray, level: float = LEVEL) -> Ranks:
    """Ranks of (models, methods), the highest score being rank 1."""
    models, methods = scores.shape
    average = stats.rankdata(-scores, axis=1).mean(axis=0)
    with np.errstate(invalid="ignore"):  # NaN where all methods tie on all models
        p = float(stats.friedmanchisquare(*scores.T).pvalue) if methods > 2 else float("nan")
    q = stats.studentized_range.ppf(level, methods, np.inf) / np.sqrt(2)
    return Ranks(average, p, float(q * np.sqrt(methods * (methods + 1) / (6 * models))))
