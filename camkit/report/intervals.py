"""Formulas of 95 % intervals and p values, on arrays of any shape `...`: means, shares, paired shares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """What the images say of a statistic's error, each (...).

    Attributes:
        images: how many the statistic rests on.
        error: its standard error; NaN with fewer than two images.
        skew: of the images' influence on it; 0 where they do not vary, and with fewer than three images.
    """

    images: np.ndarray
    error: np.ndarray
    skew: np.ndarray


def spread(influence: np.ndarray, images: np.ndarray) -> Spread:
    """The spread of statistics from the empirical influence that each image has on them.

    Args:
        influence: (total, ...), of sum 0. For a mean it is the deviation from the mean; 0 for images that
            have no value, and larger than the deviation by total / images for those that have one.
        images: how many have a value, (...).
    """
    total = len(influence)
    square, cube = ((influence**power).sum(axis=0) for power in (2, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = square * images / total**2
        error = np.where(images > 1, np.sqrt(variance / (images - 1)), np.nan)
        # The unbiased third moment: the plain one is too small in few images, and its intervals too short.
        third = cube * images**2 / total**3 * images**2 / ((images - 1) * (images - 2))
        skew = np.where((variance > 0) & (images > 2), third / variance**1.5, 0.0)
    return Spread(images, error, skew)


def mean_interval(value: np.ndarray, sure: Spread) -> tuple[np.ndarray, np.ndarray]:
    """Ends (...) of the interval of a mean or smooth function of means; NaN with fewer than two images.

    Each end is the farther one of Student's t interval and of Hall's, which takes the skewness out of the t
    statistic by a monotone cubic (Hall, J. R. Statist. Soc. B 54, 1992, 221-228). With strongly skewed
    scores, such as coherencies crowded below 1, t alone covers 83 to 90 % at 30 images, see
    scripts/interval_coverage.py.
    """
    images = np.maximum(sure.images, 2)
    t, root = stats.t.isf((1 - LEVEL) / 2, images - 1), np.sqrt(images)
    steep = np.where(np.abs(sure.skew) > 1e-6, sure.skew, 1e-6)  # the cubic's inverse has it in a divisor
    high, low = (
        (np.cbrt(1 + steep * (place / root - steep / (6 * images))) - 1) * 3 / steep * root
        for place in (-t, t)
    )
    return value - sure.error * np.maximum(t, low), value - sure.error * np.minimum(-t, high)


def mean_p(value: np.ndarray, sure: Spread) -> np.ndarray:
    """Two-sided p (...) for the value 0: below 0.05 just where :func:`mean_interval` leaves out 0.

    It is the larger one of Student's and of Hall's: for a mean of paired differences that are not skewed, the
    paired t test's. 1 where value and error are 0; NaN with fewer than two images.
    """
    images = np.maximum(sure.images, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.where(value == 0, 0 * sure.error, value / sure.error)
        y, skew = t / np.sqrt(images), sure.skew
        cubic = y + skew * y**2 / 3 + skew**2 * y**3 / 27 + skew / (6 * images)
    hall = np.where(np.isfinite(t) & (value != 0), cubic * np.sqrt(images), t)
    return 2 * stats.t.sf(np.minimum(np.abs(t), np.abs(hall)), images - 1)


def share_interval(hits: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends (...) of Wilson's interval of a share (J. Am. Statist. Assoc. 22, 1927); NaN below two images."""
    low, high = np.full(hits.shape, np.nan), np.full(hits.shape, np.nan)
    for place in zip(*np.nonzero(images > 1), strict=True):
        low[place], high[place] = _wilson(int(hits[place]), int(images[place]))
    return low, high


@cache
def _wilson(hits: int, images: int) -> tuple[float, float]:
    found = stats.binomtest(hits, images).proportion_ci(LEVEL, method="wilson")
    return found.low, found.high


def paired_share_interval(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends (...) of the interval of a difference of two shares on the same images; NaN below two images.

    Wilson's intervals of both, combined by their correlation, which is corrected for continuity (Newcombe,
    Statistics in Medicine 17, 1998, 2635-2650, method 10).

    Args:
        pairs: (4, ...), the images on which both are 1, only the first, only the second, none.
    """
    both, first, second, none = pairs
    images = pairs.sum(axis=0)
    ends = [share_interval(hits, images) for hits in (both + first, both + second)]
    shares = [np.divide(hits, images, where=images > 0, out=np.full(hits.shape, np.nan)) for hits in (
        both + first, both + second,
    )]  # fmt: skip
    (down, up), (down_2, up_2) = (
        (share - low, high - share) for share, (low, high) in zip(shares, ends, strict=True)
    )
    margins = np.sqrt(1.0 * (both + first) * (second + none) * (both + second) * (first + none))
    product = 1.0 * both * none - 1.0 * first * second
    corrected = np.where(product > 0, np.maximum(product - images / 2, 0), product)
    phi = np.divide(corrected, margins, where=margins > 0, out=np.zeros(margins.shape))
    difference = shares[0] - shares[1]
    low = difference - np.sqrt(down**2 - 2 * phi * down * up_2 + up_2**2)
    high = difference + np.sqrt(up**2 - 2 * phi * up * down_2 + down_2**2)
    return low, high


def paired_share_p(pairs: np.ndarray) -> np.ndarray:
    """Two-sided p (...) of McNemar's exact test that two shares are alike; NaN with fewer than two images.

    Of the images on which only one of the two is 1, each has it with probability 1/2.

    Args:
        pairs: as for :func:`paired_share_interval`.
    """
    first, second = pairs[1], pairs[2]
    p = np.minimum(2 * stats.binom.cdf(np.minimum(first, second), first + second, 0.5), 1)
    return np.where(pairs.sum(axis=0) > 1, p, np.nan)
