"""Scores held against the right answer of mosaics: exchange rates, and which of two methods is better."""

from __future__ import annotations

from functools import cached_property
from itertools import combinations

import numpy as np

from camkit.methods.altered import HARMLESS, MARK, MOVED, SAME, is_altered
from camkit.report.analysis import Analysis
from camkit.report.gallery import agreement, read_maps
from camkit.report.scores import Score, is_ceiling
from camkit.report.study import Block

ENERGY = "energy"  # the truth that scores are held against
PLACED = 0.5  # energy above which a map is in the right place, and moving it is wrong
NOTICED = 0.95  # share of mosaics in which a score falls
APART = 0.1  # difference of energies from which on the truth orders two methods
SAME_MAPS = 0.95  # correlation of maps from which on two methods count once
RESAMPLES = 2000
NOISE = 1e-6  # of float32: a change of a score by less is none


class Truth:
    """A block of mosaics, whose maps have a right place."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.rows = {name: row for row, name in enumerate(block.methods)}
        self.bases = [
            name for name in block.methods if all(f"{name}{MARK}moved-{t}" in self.rows for t in MOVED)
        ]

    def _scores(self, method: str, score: str) -> np.ndarray:
        return self.block.values[:, self.rows[method], self.block.columns.index(score)].astype(np.float64)

    def exchange(self, score: Score) -> dict[str, object]:
        """`worse`, `noticed` and `paid` of the first method whose maps were changed."""
        if not self.bases:
            return {}
        base = self.bases[0]
        right = self._scores(base, ENERGY) > PLACED
        unchanged = f"{base}{MARK}{SAME}" if score.declared.signed else base
        if unchanged not in self.rows:
            return {"base": base}
        whole = self._scores(unchanged, score.name)
        losses = [(whole - self._scores(f"{base}{MARK}moved-{t}", score.name)) * score.sign for t in MOVED]
        gains = [
            (self._scores(name, score.name) - whole) * score.sign
            for change in HARMLESS
            if (name := f"{base}{MARK}{change}") in self.rows
        ]
        clustered = self._by_mosaic(np.stack([*losses, *gains], axis=1), right)
        clustered[np.abs(clustered) < NOISE] = 0
        if not len(clustered):
            return {"base": base}
        worse = tuple((clustered[:, : len(MOVED)] > 0).mean(axis=0).tolist())
        noticed = next((t / 100 for t, share in zip(MOVED, worse, strict=True) if share >= NOTICED), np.inf)
        found: dict[str, object] = {
            "base": base, "worse": worse, "noticed": noticed, "mosaics": len(clustered),
        }  # fmt: skip
        if gains:
            drawn = np.random.default_rng(0).integers(len(clustered), size=(RESAMPLES, len(clustered)))
            resampled = [paid(clustered[rows].mean(axis=0)) for rows in drawn]
            low, high = np.quantile(resampled, [0.025, 0.975], method="nearest")
            found |= {"paid": paid(clustered.mean(axis=0)), "paid_low": low, "paid_high": high}
        return found

    def _by_mosaic(self, values: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Means (mosaics, ...) over the kept tiles of each; mosaics without one are left out."""
        kept = kept & ~np.isnan(values).any(axis=1)
        names = np.array([*map(self.block.unit_of, self.block.images)])[kept]
        return np.array([values[kept][names == name].mean(axis=0) for name in dict.fromkeys(names)])

    def agreement(self, score: Score) -> dict[str, object]:
        """`agreement` and `pairs` over methods whose maps differ."""
        methods = self.distinct_methods
        analysis = Analysis(self.block)
        value = {
            name: analysis.common.value[self.rows[name], self.block.columns.index(score.name)] * score.sign
            for name in methods
        }
        energy = {
            name: analysis.common.value[self.rows[name], self.block.columns.index(ENERGY)] for name in methods
        }
        pairs = [
            (value[one] > value[other]) == (energy[one] > energy[other])
            for one, other in combinations(methods, 2)
            if abs(energy[one] - energy[other]) > APART and not np.isnan([value[one], value[other]]).any()
        ]
        return {"agreement": float(np.mean(pairs)) if pairs else np.nan, "pairs": len(pairs)}

    @cached_property
    def distinct_methods(self) -> list[str]:
        """Methods and controls; of those with nearly the same maps the first. Ceilings know the truth."""
        maps = read_maps(self.block)
        found: list[str] = []
        for name in self.block.methods:
            if is_altered(name) or is_ceiling(name):
                continue
            alike = [
                other
                for other in found
                if name in maps
                and other in maps
                and maps[name].shape == maps[other].shape
                and np.nanmean(agreement([maps[name], maps[other]])) > SAME_MAPS
            ]
            if not alike:
                found.append(name)
        return found


def paid(effects: np.ndarray) -> float:
    """The share t whose loss the largest gain makes up for, by straight lines between the shares tried.

    Args:
        effects: mean losses at each share of :data:`camkit.methods.altered.MOVED`, then mean gains.
    """
    losses, gain = effects[: len(MOVED)], effects[len(MOVED) :].max()
    if gain <= 0:
        return 0.0
    shares = np.array([0, *MOVED]) / 100
    highest = np.maximum.accumulate(np.array([0, *losses]))
    return float(np.interp(gain, highest, shares)) if gain <= highest[-1] else np.inf
