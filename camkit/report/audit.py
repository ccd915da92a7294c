"""Audit lines under a table: what a reader of its figures has to know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from camkit.entries import METRICS
from camkit.report.analysis import SAME, Analysis
from camkit.report.scores import WITHOUT_HESSIAN, Naming, identifier, is_control, known_scores, of_one_layer
from camkit.report.statistics import FEW_IMAGES
from camkit.report.study import Block
from camkit.results.cells import FLAGGED
from camkit.results.columns import SUMMARY, columns_of_values, is_value

CEILING = "region"
AXIOMS = ("null_share", "efficiency_error", "symmetry_error", "linearity_error")
KEPT = 1e-4  # what rounding in float32 makes of 0


def audit(analysis: Analysis, study: Sequence[Block], named: Naming = identifier) -> list[str]:
    """Lines for one block.

    Args:
        study: all blocks, among which cells identical to this block's are looked for.
        named: how the table calls its methods.
    """
    block = analysis.block
    return [
        *_images(analysis, named),
        *_same_cells(block, named),
        *_same_elsewhere(block, study, named),
        *_flags(block, named),
        *_localisation(analysis, named),
        *_axioms(block, named),
        *_no_values(block, named),
        *_controls(analysis, named),
    ]


def _images(analysis: Analysis, named: Naming) -> list[str]:
    block = analysis.block
    lines = []
    if analysis.few:
        fewest, unit = int(block.counts[block.counts > 0].min()), block.unit
        if block.counts.max() == 1:
            lines.append(f"Only one {unit}: there are no intervals, and nothing can be tested.")
        elif fewest == 1:
            lines.append(f"Some scores rest on one {unit}: they have no interval, and are not tested.")
        else:
            lines.append(
                f"Only {fewest} {unit}s: the intervals rest on fewer than {FEW_IMAGES} and are not to be "
                "trusted."
            )
    most = block.counts.max(axis=0)
    short = {
        name: [s.short for s, have, all_ in zip(block.scores, counts, most, strict=True) if 0 < have < all_]
        for name, counts in zip(block.methods, block.counts, strict=True)
    }
    by_scores: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, lacking in short.items():
        if lacking:
            by_scores[tuple(lacking)].append(named(name))
    for short_names, names in by_scores.items():
        every = len(short_names) == len(block.scores)
        scores = "some scores" if every else ", ".join(short_names)
        lines.append(
            f"Images are missing in {scores} of {', '.join(names)}: comparisons use those that all have."
        )
    if block.errors:
        lines.append(f"{block.errors} images could not be read (errors.csv).")
    if block.failures:
        failed = ", ".join(f"{named(name)} {n}" for name, n in block.failures.items())
        lines.append(f"Images on which a plugin failed (failures.csv): {failed}.")
    if block.unknown:
        unknown = ", ".join(block.unknown)
        lines.append(f"Score columns that no metric here declares are left out (--plugin): {unknown}.")
    return lines


def _largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Between two (images, scores), over the scores that both have; infinite where images do not match."""
    one, other = ~np.isnan(first), ~np.isnan(second)
    both = (one & other).any(axis=0)
    if not both.any() or (one[:, both] != other[:, both]).any():
        return float("inf")
    return float(np.nanmax(np.abs(first[:, both] - second[:, both])))


def _same_cells(block: Block, named: Naming) -> list[str]:
    """Methods of a block that are one and the same; ShapleyCAM without its Hessian term by name."""
    lines = []
    groups: dict[str, tuple[list[str], float]] = {}
    for place, name in enumerate(block.methods):
        for first, (names, largest) in groups.items():
            gap = _largest_difference(block.values[:, block.methods.index(first)], block.values[:, place])
            if gap < SAME:
                groups[first] = ([*names, name], max(gap, largest))
                break
        else:
            groups[name] = ([name], 0.0)
    for names, largest in groups.values():
        if len(names) > 1:
            degree = "identical" if largest == 0 else f"the same but for rounding (at most {largest:.0e})"
            lines.append(f"{listed([*map(named, names)])} are {degree} on every image.")
        for name, plain in WITHOUT_HESSIAN.items():
            if name in names and plain in names:
                one, other = (block.values[:, block.methods.index(each)] for each in (name, plain))
                exactly = _largest_difference(one, other) == 0
                effect = "was zero throughout" if exactly else "made no difference"
                lines.append(f"{named(name)} is {named(plain)}: its Hessian term {effect}.")
    return lines


def _same_elsewhere(block: Block, study: Sequence[Block], named: Naming) -> list[str]:
    """Methods with the very scores that they have for another layer or utility of this model.

    Methods that see no single layer, as most controls, are left out.
    """
    lines = []
    for other in study:
        if other is block or other.model != block.model or other.images != block.images:
            continue
        same = [
            name
            for place, name in enumerate(block.methods)
            if name in other.methods
            and not is_control(name)
            and of_one_layer(name)
            and other.columns == block.columns
            and _largest_difference(block.values[:, place], other.values[:, other.methods.index(name)]) == 0
        ]
        if same:
            where = f"{other.source}, {other.layer}, {other.utility}"
            lines.append(f"Identical to the cells of {where}: {', '.join(map(named, same))}.")
    return lines


def _flags(block: Block, named: Naming) -> list[str]:
    words = FLAGGED | {flag: said for entry in METRICS.values() for flag, said in entry.flags.items()}
    order = [*SUMMARY, *words]  # first those that summary.csv has
    lines = []
    for flag in sorted(words, key=order.index):
        having = [name for name in block.methods if (name, flag) in block.flags]
        if having:
            counts = ", ".join(f"{named(name)} {block.flags[name, flag]}" for name in having)
            lines.append(f"{words[flag].capitalize()}: {counts}.")
    return lines


def _localisation(analysis: Analysis, named: Naming) -> list[str]:
    """What chance and the region itself score."""
    block = analysis.block
    located = [name for name in ("energy", "energy_certified", "pointing") if name in block.columns]
    if not located or "region_share" not in block.columns:
        return []
    short = {score.name: score.short for score in block.scores}
    share = float(np.nanmean(analysis.own.value[:, block.columns.index("region_share")]))
    lines = [f"{listed([short[name] for name in located])}: chance is {100 * share:.2f}."]
    if CEILING in block.methods:
        found = analysis.own.value[block.methods.index(CEILING)]
        reached = [
            f"{short[name]} {100 * found[block.columns.index(name)]:.2f}"
            for name in located
            if not np.isnan(found[block.columns.index(name)])
        ]
        lines += [
            f"The region itself, through the layer's grid ({named(CEILING)}), has {', '.join(reached)}."
        ]
    else:
        lines += [f"What a map of the layer's grid can reach is not known (--method {CEILING})."]
    return lines


def _axioms(block: Block, named: Naming) -> list[str]:
    """Which methods keep which axiom on every image."""
    lines = []
    for score in block.scores:
        if score.name not in AXIOMS:
            continue
        values = block.values[..., block.columns.index(score.name)]  # (images, methods)
        asked = ~np.isnan(values).all(axis=0) & block.explaining
        if asked.any():
            kept = asked & (np.where(np.isnan(values), 0, values).max(axis=0) < KEPT)
            names = [named(block.methods[row]) for row in np.flatnonzero(kept)]
            lines.append(
                f"{score.short} is passed (0 but for rounding, on every image) by: "
                f"{listed(names) if names else 'none'}."
            )
    return lines


def _no_values(block: Block, named: Naming) -> list[str]:
    judged = columns_of_values(block.columns)
    filled = ~np.isnan(block.values[..., [block.columns.index(column) for column in judged]]).all(axis=(0, 2))
    names = [name for name, some in zip(block.methods, filled, strict=True) if some and not is_value(name)]
    return [no_values([*map(named, names)], judged)] if names and judged else []


def no_values(names: Sequence[str], columns: Sequence[str]) -> str:
    """What to know of methods whose maps `columns` judge as what they are not."""
    return (
        f"No division of the utility among positions (weights averaged over positions, or rectified): "
        f"{', '.join(names)}. Do not read {listed([score.short for score in known_scores(columns)])} there."
    )


def _controls(analysis: Analysis, named: Naming) -> list[str]:
    block = analysis.block
    if analysis.best_control is None:
        return ["No controls here (--method controls): what a map that explains nothing scores is not known."]
    won: dict[str, list[str]] = defaultdict(list)
    for score in block.scores:
        if score.name in analysis.blind_winners:
            won[analysis.blind_winners[score.name]].append(score.short)
    return [
        f"{listed(scores)} {'says' if len(scores) == 1 else 'say'} nothing here: {named(name)}, the same map "
        "for every image, has the best value."
        for name, scores in won.items()
    ]


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
