"""What a score is worth: what it says of place, whether it agrees with the truth, whether chance beats it.

docs/scores.md has the definitions and the thresholds, which were fixed in advance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata

from camkit.entries import METRICS
from camkit.methods.altered import MARK, MOVED, is_altered
from camkit.report.analysis import Analysis
from camkit.report.exchange import ENERGY, Truth
from camkit.report.intervals import LEVEL
from camkit.report.scores import Score
from camkit.report.statistics import Estimates, holm
from camkit.report.study import Block

SHAPE = ("complexity", "roughness")  # what a score should not be a function of
STABLE = 0.9  # rank correlation of two halves
SPLITS = 20  # random halves
FEWEST = 20  # images or mosaics, so that a half has ten
SIZES = (10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Thresholds:
    """What a score has to reach; a grade without one of the parts is not asked for it."""

    noticed: float = 0.25
    paid: float = 0.1
    agreement: float = 0.9
    chance: float = 0.95
    area: float = 0.25
    images: int = 100


THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Grade:
    """One score of one model, layer and utility. NaN where that cannot be said of these results.

    Attributes:
        worse: share of the mosaics in which the score is worse with t = 10, 25, 50, 100 % of the map in the
            wrong tile.
        noticed: the smallest of these t for which that is 95 %; infinite where it is for none.
        paid: the t whose mean loss the largest gain of a change of histogram makes up for; infinite where
            that is more than a whole map in the wrong tile loses. `paid_low`, `paid_high`: its 95 % interval
            over mosaics.
        mosaics: on which both rest.
        agreement: share of pairs of methods, their energies more than 0.1 apart, that the score orders alike.
        pairs: their number.
        chance: share of random halves of the images on which the method that is best on the other half beats
            every control (paired tests, Holm).
        area: share of the score's variance within images that the map's mean and roughness explain.
        images: from how many images on two samples rank the methods alike (rank correlation 0.9); infinite
            where half of the images is not enough.
    """

    score: Score
    base: str = ""
    worse: tuple[float, ...] = (np.nan,) * len(MOVED)
    noticed: float = np.nan
    paid: float = np.nan
    paid_low: float = np.nan
    paid_high: float = np.nan
    mosaics: int = 0
    agreement: float = np.nan
    pairs: int = 0
    chance: float = np.nan
    area: float = np.nan
    images: float = np.nan

    @property
    def passed(self) -> dict[str, bool]:
        """Part -> whether it reaches its threshold; parts that are not known are left out."""
        t = THRESHOLDS
        parts = {
            "noticed": (self.noticed, self.noticed <= t.noticed),
            "paid": (self.paid, self.paid <= t.paid),
            "agreement": (self.agreement, self.agreement >= t.agreement),
            "chance": (self.chance, self.chance >= t.chance),
            "area": (self.area, self.area <= t.area),
            "images": (self.images, self.images <= t.images),
        }
        return {name: bool(good) for name, (value, good) in parts.items() if not np.isnan(value)}


@dataclass(frozen=True)
class Report:
    """The grades of one model, layer and utility.

    Attributes:
        mosaics, photos: the results that they rest on.
        notes: what is missing, in words.
    """

    mosaics: Block | None
    photos: Block | None
    grades: list[Grade] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def block(self) -> Block:
        found = self.mosaics or self.photos
        assert found is not None
        return found


def grade(study: Sequence[Block]) -> list[Report]:
    """Grades by model, layer and utility: from mosaics what has a truth, from photos the rest.

    Results whose scores all have a known answer, which are not graded, are left out.

    Args:
        study: with altered methods, see :func:`camkit.report.study.load_study`.
    """
    places: dict[tuple[str, str, str], dict[bool, list[Block]]] = {}
    for block in study:
        found = places.setdefault((block.model, block.layer, block.utility), {True: [], False: []})
        found[block.of_mosaics].append(block)
    reports = [_report(found[True], found[False]) for found in places.values()]
    return [report for report in reports if report.grades]


def _report(of_mosaics: Sequence[Block], of_photos: Sequence[Block]) -> Report:
    """The grades of the first results of each kind: results are never pooled."""
    mosaics, photos = (next(iter(found), None) for found in (of_mosaics, of_photos))
    report = Report(mosaics, photos)
    report.notes.extend(
        f"Left out, as there are other results of this model, layer and utility: {block.source}."
        for block in (*of_mosaics[1:], *of_photos[1:])
    )
    rest = photos or mosaics
    assert rest is not None
    plain = rest.only_methods(lambda name: not is_altered(name))
    halves = [] if plain is None or len(plain.units) < FEWEST else halved(plain)
    if len(rest.units) < FEWEST:
        report.notes.append(f"Fewer than {FEWEST} images or mosaics: too few for halves of them.")
    if mosaics and photos and len(mosaics.units) < FEWEST:
        report.notes.append(f"Fewer than {FEWEST} mosaics: what is said of place may be chance.")
    if mosaics and photos and (others := _other_options(mosaics, photos)):
        report.notes.append(f"Mosaics and photos differ in more than the images: {', '.join(others)}.")
    truth = None if mosaics is None or ENERGY not in mosaics.columns else Truth(mosaics)
    if mosaics is None:
        report.notes.append("No mosaics here (--data mosaic:PATH): nothing is said of place.")
    elif truth is None:
        report.notes.append("No energy here (--metrics localisation): nothing is said of place.")
    elif not truth.bases:
        report.notes.append(f"No changed maps here (--method hirescam{MARK}all): no exchange rate.")
    chosen = {score.name: score for block in (mosaics, photos) if block for score in block.scores}
    for name, score in chosen.items():
        if score.sign == 0 or score.name in KNOWN:
            continue
        parts: dict[str, object] = {}
        if truth is not None and name in truth.block.columns:
            parts |= truth.exchange(score) | truth.agreement(score)
        if plain is not None and name in plain.columns:
            parts |= {
                "chance": chance(plain, halves, score),
                "area": area(plain, name),
                "images": reliability(Analysis(plain), name),
            }
        report.grades.append(Grade(score, **parts))  # type: ignore[arg-type]
    return report


# Localisation is the truth that scores are graded by, and an axiom is passed or not.
KNOWN = (*METRICS["localisation"].columns, *METRICS["axioms"].columns)


def _other_options(mosaics: Block, photos: Block) -> list[str]:
    """In which options two protocols differ that need not."""
    own = ("data_fingerprint", "transform", "mosaic", "confidence", "regions")
    one, other = mosaics.protocol, photos.protocol
    names = [name for name in {**one, **other} if name not in own]
    return [name.replace("_", " ") for name in names if one.get(name) != other.get(name)]


def halved(block: Block) -> list[tuple[Estimates, Estimates]]:
    """Statistics of random halves of the units, :data:`SPLITS` times."""
    halves = []
    for seed in range(SPLITS):
        units = np.random.default_rng(seed).permutation(len(block.units))
        first, second = (
            {block.units[unit] for unit in half}
            for half in (units[: len(units) // 2], units[len(units) // 2 :])
        )
        halves.append(tuple(Analysis(block.only_units(half)).common for half in (first, second)))
    return halves  # type: ignore[return-value]


def chance(block: Block, halves: Sequence[tuple[Estimates, Estimates]], score: Score) -> float:
    """Share of random halves on which the method that is best on the other half beats every control.

    Which method is the best is found on images that do not test it. Paired tests against all controls that
    have the score, Holm; NaN where none has it, or no method, or there are no halves.
    """
    if not halves:
        return np.nan
    column, sign = block.columns.index(score.name), score.sign
    methods = np.flatnonzero(block.explaining)
    beaten = []
    for first, second in halves:
        means = first.value[methods, column] * sign
        if np.isnan(means).all():
            return np.nan
        best = second.only(int(methods[np.nanargmax(means)])).of_column(column)
        found = best - second.of_column(column)  # (methods, 1): the best one less each
        p = np.where(found.value * sign > 0, found.p_value, 1.0)
        asked = block.controls & ~np.isnan(found.value[:, 0])
        if not asked.any():
            return np.nan
        beaten.append(bool((holm(p[asked]) < 1 - LEVEL).all()))
    return float(np.mean(beaten))


def area(block: Block, name: str) -> float:
    """R^2 of a linear fit to the score by the map's mean and roughness, both within images."""
    if not {*SHAPE} <= {*block.columns}:
        return np.nan
    columns = [block.columns.index(one) for one in (name, *SHAPE)]
    values = block.values[:, :, columns].astype(np.float64)
    values = values[:, ~np.isnan(values).all(axis=(0, 2))]
    values = values[~np.isnan(values).any(axis=(1, 2))]
    within = (values - values.mean(axis=1, keepdims=True)).reshape(-1, len(columns))
    score, shape = within[:, 0], within[:, 1:]
    total = (score**2).sum()
    if len(score) < 10 or total == 0:
        return np.nan
    fit = shape @ np.linalg.lstsq(shape, score, rcond=None)[0]
    return float((fit**2).sum() / total)


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; 0 where one ranks nothing."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def reliability(analysis: Analysis, name: str) -> float:
    """From how many images on two disjoint samples rank the methods alike: mean rank correlation 0.9."""
    block, column = analysis.block, analysis.block.columns.index(name)
    methods = np.flatnonzero(block.explaining)
    values = analysis.shared_values[:, methods, column]
    values = values[:, ~np.isnan(values).all(axis=0)]
    values = values[~np.isnan(values).any(axis=1)]
    if values.shape[1] < 3 or len(values) < FEWEST:
        return np.nan
    for size in SIZES:
        if 2 * size > len(values):
            return np.inf
        correlations = []
        for seed in range(SPLITS):
            order = np.random.default_rng(seed).permutation(len(values))
            means = [values[part].mean(axis=0) for part in (order[:size], order[size : 2 * size])]
            correlations.append(_rank_correlation(*means))
        if np.mean(correlations) >= STABLE:
            return float(size)
    return np.inf
