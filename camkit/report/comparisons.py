"""Tables of `camkit compare`: paired differences to a baseline, and average ranks over several models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from camkit.errors import UsageError
from camkit.network.models import family_of
from camkit.registry import unknown_name
from camkit.report.analysis import Analysis, Comparison, compare
from camkit.report.grid import Entry, Grid
from camkit.report.scores import Naming, Score, identifier, is_control
from camkit.report.statistics import Ranks, ranks
from camkit.report.study import count_of
from camkit.report.tables import INTERVAL, NO_INTERVAL, cell_keys, signed

LEGEND = (
    f"{INTERVAL} interval of each difference by itself; p corrected (Holm) over all methods and scores of "
    f"one model, layer and utility; {NO_INTERVAL}: one image gives none.",
    "won, tied: share of images on which the method's score is better than the baseline's, or the same.",
)


def compare_all(analyses: Sequence[Analysis], baseline: str) -> list[Comparison]:
    """Every block that has the baseline.

    Raises:
        UsageError: none has it.
    """
    found = [compare(a, a.block.methods.index(baseline)) for a in analyses if baseline in a.block.methods]
    if not found:
        names = {name for analysis in analyses for name in analysis.block.methods}
        raise unknown_name("baseline", baseline, names)
    if all(len(one.analysis.block.methods) == 1 for one in found):
        raise UsageError(f"{baseline} is the only method in these results: nothing to compare it with")
    return found


def comparison_grids(comparison: Comparison, named: Naming = identifier) -> list[Grid]:
    """One table per score: every method against the baseline, and what cannot be told apart."""
    block = comparison.analysis.block
    baseline = named(block.methods[comparison.baseline])
    grids = []
    for column, score in enumerate(block.scores):
        if np.isnan(comparison.difference[:, column]).all() or score.sign == 0:
            continue
        rows = {
            control: tuple(
                _comparison_row(comparison, row, column, named)
                for row in range(len(block.methods))
                if row != comparison.baseline and (block.controls if control else block.explaining)[row]
            )
            for control in (False, True)
        }
        alike = [
            named(name)
            for row, name in enumerate(block.methods)
            if not np.isnan(comparison.p[row, column]) and not comparison.apart[row, column]
        ]
        common = count_of(comparison.analysis.common_images[column], of=block.unit)
        notes = [f"Cannot be told apart from {baseline} on {common}: {', '.join(alike)}."] if alike else []
        grids.append(
            Grid(
                f"{block.name} · {score.heading}, difference to {baseline}",
                f"Paired differences to {baseline} in percentage points: {block.describe()}.",
                ("method", "difference", f"{INTERVAL} interval", "p (Holm)", "images won", "tied", "verdict"),
                (rows[False], rows[True]),
                tuple(notes),
            )
        )
    return grids


def _comparison_row(comparison: Comparison, row: int, column: int, named: Naming) -> tuple[Entry, ...]:
    score = comparison.analysis.block.scores[column]
    difference, p = comparison.difference[row, column], comparison.p[row, column]
    if not comparison.asked[row, column]:
        return (Entry(named(comparison.analysis.block.methods[row])), *[Entry("")] * 6)
    low, high = comparison.low[row, column], comparison.high[row, column]
    if comparison.same[row, column]:
        verdict = "the same"
    elif np.isnan(p):
        verdict = "not tested"
    elif not comparison.apart[row, column]:
        verdict = "no difference shown"
    else:
        verdict = "better" if difference * score.sign > 0 else "worse"
    return (
        Entry(named(comparison.analysis.block.methods[row])),
        Entry(signed(difference), difference),
        Entry(NO_INTERVAL if np.isnan(low) else f"{signed(low)} to {signed(high)}"),
        Entry(NO_INTERVAL if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}", p),
        Entry(f"{100 * comparison.won[row, column]:.0f} %", comparison.won[row, column]),
        Entry(f"{100 * comparison.tied[row, column]:.0f} %", comparison.tied[row, column]),
        Entry(verdict, bold=verdict == "better"),
    )


def across_grids(comparisons: Sequence[Comparison], named: Naming = identifier) -> list[Grid]:
    """One table: under how many protocols each method is shown to beat the baseline, and to lose to it.

    A protocol is a results folder's model, layer and utility. They are not independent where they share
    images or architectures, so the counts are a description, not a test.
    """
    scores = {
        score.name: score for one in comparisons for score in one.analysis.block.scores if score.sign != 0
    }
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0, 0]))
    for one in comparisons:
        block = one.analysis.block
        for row, name in enumerate(block.methods):
            for column, score in enumerate(block.scores):
                if one.asked[row, column] and not np.isnan(one.p[row, column]):
                    found = counts[name][score.name]
                    better = one.difference[row, column] * score.sign > 0
                    found[0] += bool(one.apart[row, column] and better)
                    found[1] += bool(one.apart[row, column] and not better)
                    found[2] += 1
    baselines = {one.analysis.block.methods[one.baseline] for one in comparisons}
    rows = {
        control: tuple(
            (
                Entry(named(name)),
                *(Entry("{} : {} of {}".format(*found[key]) if key in found else "") for key in scores),
            )
            for name, found in counts.items()
            if is_control(name) == control
        )
        for control in (False, True)
    }
    return [
        Grid(
            f"Shown to be better : worse than {', '.join(map(named, sorted(baselines)))}, of protocols",
            f"Protocols under which a method beats the baseline: {len(comparisons)} in all.",
            ("method", *(score.short for score in scores.values())),
            (rows[False], rows[True]),
        )
    ]


def comparison_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row per cell and score; fractions. What cannot be asked is empty."""
    rows = []
    for one in comparisons:
        block = one.analysis.block
        for row, name in enumerate(block.methods):
            if row == one.baseline:
                continue
            for column, score in enumerate(block.scores):
                rows.append(
                    {
                        **cell_keys(block),
                        "method": name,
                        "baseline": block.methods[one.baseline],
                        "score": score.name,
                        "better": score.declared.better,
                        "images": one.analysis.common_images[column],
                        "difference": one.difference[row, column],
                        "low": one.low[row, column],
                        "high": one.high[row, column],
                        "p_holm": one.p[row, column],
                        "won": one.won[row, column],
                        "tied": one.tied[row, column],
                        "told_apart": "" if np.isnan(one.p[row, column]) else one.apart[row, column],
                    }
                )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class RankTable:
    """Average ranks in one score over the models of one layer and utility; controls have none.

    Attributes:
        place: layer, utility and, of a study with several, the results folder: models are ranked within one.
        families: family -> its models, see :attr:`camkit.network.models.ModelRow.family`.
    """

    score: Score
    place: tuple[str, ...]
    families: Mapping[str, tuple[str, ...]]
    methods: tuple[str, ...]
    ranks: Ranks

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(name for family in self.families.values() for name in family)

    @property
    def title(self) -> str:
        place = " · ".join((*self.place, self.score.heading))
        families = "1 family" if len(self.families) == 1 else f"{len(self.families)} families"
        return f"{place}, average rank over {families} of {len(self.models)} models"


def rank_tables(analyses: Sequence[Analysis]) -> list[RankTable]:
    """One for each score, layer and utility with at least two models that share at least two methods."""
    tables = []
    places: dict[tuple[str, ...], list[Analysis]] = defaultdict(list)
    for analysis in analyses:
        block = analysis.block
        places[block.layer, block.utility, *([] if block.alone else [block.source])].append(analysis)
    for place, members in places.items():
        members = _on_shared_mosaics(members)
        if len(members) < 2:
            continue
        methods = [
            name
            for row, name in enumerate(members[0].block.methods)
            if members[0].block.explaining[row] and all(name in a.block.methods for a in members)
        ]
        for score in members[0].block.scores:
            if score.sign == 0 or len(methods) < 2 or any(score not in a.block.scores for a in members):
                continue
            values = np.stack(
                [
                    a.common.value[
                        [a.block.methods.index(name) for name in methods], a.block.scores.index(score)
                    ]
                    for a in members
                ]
            )
            if not np.isnan(values).any():
                models = [a.block.model for a in members]
                found = ranks(np.round(values * score.sign, 6), [family_of(name) for name in models])
                tables.append(RankTable(score, place, _families(models), tuple(methods), found))
    return tables


def _on_shared_mosaics(analyses: list[Analysis]) -> list[Analysis]:
    """Models over the mosaics that qualify for all of them; over photos as they are."""
    if not all(one.block.of_mosaics for one in analyses):
        return analyses
    shared = set.intersection(*({*one.block.units} for one in analyses))
    return [Analysis(one.block.only_units(shared)) for one in analyses] if shared else []


def _families(models: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Family -> its models, in the order of the models."""
    families: dict[str, tuple[str, ...]] = {}
    for name in models:
        families[family_of(name)] = (*families.get(family_of(name), ()), name)
    return families


def rank_grid(table: RankTable, named: Naming = identifier) -> Grid:
    """Methods by average rank; what can be told apart where there are families enough to say."""
    found = table.ranks
    order = np.argsort(found.average, kind="stable")
    tested = len(table.families) > 1
    best = found.average[order[0]]
    rows = tuple(
        (
            Entry(named(table.methods[place]), bold=place == order[0]),
            Entry(f"{found.average[place]:.2f}", found.average[place]),
            *([Entry("no" if found.average[place] - best >= found.critical_difference else "yes")] * tested),
        )
        for place in order
    )
    families = "; ".join(f"{name} ({', '.join(models)})" for name, models in table.families.items())
    notes = [
        "Models of one family are not independent: the ranks in them are averaged first, and the families "
        f"ranked over: {families}.",
        f"Average ranks closer than {found.critical_difference:.2f} cannot be told apart (Nemenyi, 95 %)."
        if tested
        else "One family says nothing of other models: nothing is tested.",
    ]
    if not np.isnan(found.p):
        notes.append(f"Friedman's test that all rank alike: p = {found.p:.3g}.")
    headings = ("method", "average rank", *(["among the best"] * tested))
    return Grid(table.title, "", headings, (rows,), tuple(notes))
