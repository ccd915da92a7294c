"""Which layer suits a model: for each method and score the one that scores best, and if that is shown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from camkit.report.analysis import Analysis
from camkit.report.grid import Entry, Grid
from camkit.report.intervals import LEVEL
from camkit.report.scores import Naming, Score, identifier, is_control, of_one_layer
from camkit.report.statistics import FEW_IMAGES, holm
from camkit.report.study import Block, count_of
from camkit.report.tables import INTERVAL, NO_INTERVAL, percent

OPEN = "≈"


@dataclass(frozen=True)
class Choice:
    """One method at several layers, over the images that all of them have; arrays are (scores,).

    Attributes:
        best: row of the layer with the best mean; -1 where there is none.
        value, low, high: that layer's mean, and the ends of its 95 % interval.
        p: that it does not beat every other layer. The largest p of the paired tests against each of them
            (intersection-union), times their number, since which layer looks best is found on the same
            images. NaN with one image, or where the other layers have the very same scores.
    """

    method: str
    layers: tuple[str, ...]
    images: int
    best: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def layer_grids(analyses: Sequence[Analysis], named: Naming = identifier) -> list[Grid]:
    """One table for each model and utility of a results folder that has several layers."""
    places: dict[tuple[str, str, str], list[Block]] = defaultdict(list)
    for analysis in analyses:
        block = analysis.block
        places[block.source, block.model, block.utility].append(block)
    grids = [_grid(blocks, named) for blocks in places.values()]
    return [grid for grid in grids if grid is not None]


def _grid(blocks: Sequence[Block], named: Naming) -> Grid | None:
    scores = [one for one in blocks[0].scores if one.sign and all(one in block.scores for block in blocks)]
    methods = dict.fromkeys(
        name for one in blocks for name in one.methods if of_one_layer(name) and not is_control(name)
    )
    choices = [one for name in methods if scores and (one := choose(blocks, name, scores)) is not None]
    if not choices:
        return None
    corrected = holm(np.stack([one.p for one in choices]))
    rows = tuple(
        (Entry(named(one.method)), *(_entry(one, column, p) for column, p in enumerate(p_of_scores)))
        for one, p_of_scores in zip(choices, corrected, strict=True)
    )
    first = blocks[0]
    place = f"{first.model} · {first.utility}" + ("" if first.alone else f" · {first.source}")
    images = max(one.images for one in choices)
    most = count_of(images, of=first.unit)
    few = [f"Only {most}: too few to choose a layer by."] if images < FEW_IMAGES else []
    return Grid(
        f"Which layer? {place} ({count_of(*(one.images for one in choices), of=first.unit)})",
        f"The layer with the best mean, for each method and score: {first.model}, utility {first.utility}.",
        ("method", *(score.heading for score in scores)),
        (rows,),
        (*_notes(choices, scores, corrected), *few),
        sortable=False,
    )


def _entry(choice: Choice, column: int, p: float) -> Entry:
    if choice.best[column] < 0:
        return Entry("")
    value, low, high = (ends[column] for ends in (choice.value, choice.low, choice.high))
    known = not np.isnan(low)
    reach = percent(max(high - value, value - low)) if known else NO_INTERVAL
    shown = p < 1 - LEVEL
    return Entry(
        f"{'' if shown else OPEN}{choice.layers[choice.best[column]]}",
        bold=bool(shown),
        detail=f"{percent(value)} ± {reach}",
        hint=f"{percent(low)} to {percent(high)}" if known else "",
    )


def _notes(choices: Sequence[Choice], scores: Sequence[Score], corrected: np.ndarray) -> list[str]:
    layers = dict.fromkeys(layer for one in choices for layer in one.layers)
    lines = [f"The layer with the best mean of {', '.join(layers)}, its mean and {INTERVAL} interval."]
    for column, score in enumerate(scores):
        found = Counter(one.layers[one.best[column]] for one in choices if one.best[column] >= 0)
        shown = int((corrected[:, column] < 1 - LEVEL).sum())
        words = ", ".join(f"{layer} for {count}" for layer, count in found.most_common())
        lines.append(f"{score.heading}: best is {words} of {len(choices)} methods; shown for {shown}.")
    lines.append(
        f"{OPEN}: not shown to beat every other layer (paired tests at 5 %, corrected for the layers and, by "
        "Holm, for the methods and scores of the table). Methods that see no single layer are left out."
    )
    return lines


def choose(blocks: Sequence[Block], method: str, scores: Sequence[Score]) -> Choice | None:
    """A method's best layer in each score; None where fewer than two layers have it or all scores are alike.

    Args:
        blocks: of one model and utility, one per layer.
    """
    having = [block for block in blocks if method in block.methods]
    names = [set(block.images) for block in having]
    images = [image for image in having[0].images if all(image in others for others in names)]
    if len(having) < 2 or not images:
        return None
    values = np.stack([_values(block, method, images, scores) for block in having], axis=1)
    if (np.nan_to_num(values) == np.nan_to_num(values[:, :1])).all():
        return None
    layers = tuple(block.layer for block in having)
    whole = replace(
        having[0],
        methods=tuple(f"layer {layer}" for layer in layers),
        scores=tuple(scores),
        images=tuple(images),
        values=values,
        explained=np.full((len(images), 2), np.nan),
    )
    return _choice(Analysis(whole), method, layers)


def _values(block: Block, method: str, images: Sequence[str], scores: Sequence[Score]) -> np.ndarray:
    place = {image: row for row, image in enumerate(block.images)}
    columns = [block.scores.index(score) for score in scores]
    return block.values[[place[image] for image in images], block.methods.index(method)][:, columns]


def _choice(analysis: Analysis, method: str, layers: tuple[str, ...]) -> Choice:
    found = analysis.common
    ranked = np.where(np.isnan(found.value), -np.inf, found.value * analysis.sign)
    columns = range(ranked.shape[1])
    best = np.where(np.isinf(ranked).all(axis=0), -1, ranked.argmax(axis=0))
    p = np.array([_p(analysis, int(best[column]), column) for column in columns])
    low, high = found.interval
    value, low, high = (
        np.array([ends[best[column], column] for column in columns]) for ends in (found.value, low, high)
    )
    return Choice(method, layers, len(analysis.block.units), best, value, low, high, p)


def _p(analysis: Analysis, best: int, column: int) -> float:
    """See :attr:`Choice.p`."""
    found = analysis.common
    known = ~np.isnan(found.value[:, column])
    others = [row for row in np.flatnonzero(known) if row != best]
    if best < 0 or not others:
        return float("nan")
    p = (found - found.only(best)).p_value[others, column]
    return float("nan") if np.isnan(p).any() else min(1.0, len(others) * float(p.max()))
