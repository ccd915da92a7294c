"""Results beside the figures published with arXiv 2501.06261 (`published/README.md`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd

from camkit.errors import CamkitError, UsageError
from camkit.report.analysis import Analysis
from camkit.report.audit import listed
from camkit.report.grid import Entry, Grid
from camkit.report.scores import Naming, identifier
from camkit.report.statistics import FEW_IMAGES
from camkit.report.study import Block
from camkit.report.tables import INTERVAL, cell_keys, percent, signed

FULL_SET = 50_000
# What counts as the full set: unreadable images end a run where they are more than 1 % (--max-errors).
NEARLY_FULL = 0.99
# On the full set: several times what library versions and memory format move a mean (at most 0.006 for single
# images), and what another draw moves RandomCAM's.
TOLERANCE = 0.005
KEY = ["model", "layer", "utility", "method"]
PROTOCOL = {"weights": "pretrained", "preprocess": "paper", "target_rule": "predicted"}
LEGEND = (
    f"‡: off. On the full set of {FULL_SET:,} images, less at most 1 %, a figure may differ by "
    f"{100 * TOLERANCE:.1f} points; on a subset the paper's may also lie anywhere in the {INTERVAL} interval "
    "of ours.",
    "§: the published figure is a known artefact.",
)


@cache
def published() -> pd.DataFrame:
    """The published means, indexed by model, layer, utility and method; fractions."""
    folder = files("camkit.report") / "published"
    tables = [
        pd.read_csv(path.open())  # type: ignore[arg-type]
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
        if path.name.endswith(".csv") and path.name != "artefacts.csv"
    ]
    return pd.concat(tables).set_index(KEY).sort_index()


@cache
def artefacts() -> dict[tuple[str, str, str], str]:
    """(model, layer, method) -> why the published figure is none to compare with."""
    table = pd.read_csv((files("camkit.report") / "published" / "artefacts.csv").open())  # type: ignore[arg-type]
    return {(row.model, row.layer, row.method): row.reason for row in table.itertuples()}


@dataclass(frozen=True)
class Check:
    """A block beside its published figures; arrays are (methods, scores), NaN where none is published.

    Attributes:
        rows: the block's rows that have a published figure; `columns`: its columns.
        ours, paper: means as fractions.
        low, high: where the paper's figure may lie; NaN where one image cannot say.
        images: that each of our means rests on; `full`: they are the full set, but for at most 1 % of it.
        artefact: (methods,), why a row is none to compare with, or empty.
    """

    analysis: Analysis
    rows: list[int]
    columns: list[int]
    ours: np.ndarray
    paper: np.ndarray
    low: np.ndarray
    high: np.ndarray
    images: np.ndarray
    full: np.ndarray
    artefact: list[str]

    @property
    def compared(self) -> np.ndarray:
        sound = np.array([not reason for reason in self.artefact])[:, None]
        return ~np.isnan(self.paper) & ~np.isnan(self.low) & sound

    @property
    def off(self) -> np.ndarray:
        return self.compared & ((self.paper < self.low) | (self.paper > self.high))


def check(analysis: Analysis) -> Check | None:
    """Compare one block; None where nothing is published for it."""
    block = analysis.block
    table = published()
    keys = [(block.model, block.layer, block.utility, method) for method in block.methods]
    rows = [place for place, key in enumerate(keys) if key in table.index]
    columns = [place for place, column in enumerate(block.columns) if column in table.columns]
    if not rows or not columns:
        return None
    pick = np.ix_(rows, columns)
    ours = analysis.own.value[pick]
    images = block.counts[pick]
    full = images >= NEARLY_FULL * FULL_SET
    # Without replacement: the mean of a subset that is nearly the full set can hardly differ from it.
    shrink = np.where(full, 0, np.sqrt(np.clip(1 - images / FULL_SET, 0, 1)))
    low, high = (ends[pick] for ends in analysis.intervals)
    paper = np.array(
        [table.loc[[keys[row]], [block.columns[c] for c in columns]].to_numpy()[0] for row in rows]
    )
    known = artefacts()
    return Check(
        analysis,
        rows,
        columns,
        ours,
        paper,
        ours - (ours - low) * shrink - TOLERANCE,
        ours + (high - ours) * shrink + TOLERANCE,
        images,
        full,
        [known.get((block.model, block.layer, block.methods[row]), "") for row in rows],
    )


def other_protocol(analysis: Analysis) -> str:
    """What of a block's protocol is not the paper's, or an empty string."""
    protocol = analysis.block.protocol
    return ", ".join(
        f"{name.replace('_', ' ')} is {protocol.get(name)!r}, the paper's {expected!r}"
        for name, expected in PROTOCOL.items()
        if protocol.get(name) != expected
    )


def check_all(analyses: Sequence[Analysis]) -> tuple[list[Check], list[str]]:
    """All blocks that can be compared, and a line for each that cannot.

    Raises:
        UsageError: none can.
    """
    checks, left_out = [], []
    for analysis in analyses:
        title = analysis.block.name
        found = check(analysis)
        if found is None:
            left_out.append(f"{title} is left out: nothing is published for it.")
        elif reason := other_protocol(analysis):
            left_out.append(f"{title} is left out: {reason}.")
        else:
            checks.append(found)
    if not checks:
        models = listed(sorted({model for model, *_ in published().index} - {"vit"}))
        raise UsageError(f"nothing to compare with the paper. {' '.join(left_out)}\nThe paper has {models}.")
    return checks, left_out


def check_grid(found: Check, named: Naming = identifier) -> Grid:
    """Three rows per method: ours, the paper's, the difference."""
    block = found.analysis.block
    rows: list[tuple[Entry, ...]] = []
    for place, row in enumerate(found.rows):
        ours, paper, off = found.ours[place], found.paper[place], found.off[place]
        sign = "§" if found.artefact[place] else ""
        rows += [
            (Entry(named(block.methods[row])), *(Entry(percent(value), value) for value in ours)),
            (Entry("· paper"), *(Entry(percent(value), value) for value in paper)),
            (
                Entry("· difference"),
                *(
                    Entry("" if np.isnan(d) else f"{'‡' if bad else sign}{signed(d)}", d, bold=bool(bad))
                    for d, bad in zip(ours - paper, off, strict=True)
                ),
            ),
        ]
    notes = [
        f"§ {named(block.methods[row])}: {reason}."
        for row, reason in zip(found.rows, found.artefact, strict=True)
        if reason
    ]
    return Grid(
        block.title,
        f"Results and published figures (arXiv 2501.06261), percent: {block.describe()}.",
        ("method", *(block.scores[column].heading for column in found.columns)),
        (tuple(rows),),
        (*notes, *_randomcam_by_utility(block)),
        sortable=False,
    )


def _randomcam_by_utility(block: Block) -> list[str]:
    """A line where the published RandomCAM, which knows no utility, differs between utilities."""
    table = published()["coherency"]
    place = (block.model, block.layer, block.utility, "randomcam")
    if place not in table.index:
        return []
    here = table[place]
    elsewhere = table.xs((block.model, block.layer, "randomcam"), level=("model", "layer", "method"))
    others = elsewhere[(elsewhere - here).abs() > 2 * TOLERANCE]
    return [
        f"RandomCAM does not depend on the utility, but its published coherency is {percent(here)} here and "
        f"{percent(value)} under {utility}: one of the two was not taken at {block.layer}."
        for utility, value in others.items()
    ]


def tally(checks: Sequence[Check], full: bool) -> tuple[int, int]:
    """How many figures over the full set, or over a subset of it, are compared; how many of them are off."""
    compared = sum(int((found.compared & (found.full == full)).sum()) for found in checks)
    return compared, sum(int((found.off & (found.full == full)).sum()) for found in checks)


def verdict(checks: Sequence[Check]) -> list[str]:
    """What the comparison says on the whole, and how much it can tell."""
    lines = []
    compared, off = tally(checks, full=True)
    if compared:
        words = f"{compared - off} of {compared} figures are within {100 * TOLERANCE:.1f} points"
        lines.append(f"Full set: {words} of the paper's: {'off' if off else 'reproduced'}.")
    compared, off = tally(checks, full=False)
    if compared:
        subset = [(found, found.compared & ~found.full) for found in checks]
        fewest = min(int(found.images[cells].min()) for found, cells in subset if cells.any())
        widths = np.concatenate([((found.high - found.low) / 2)[cells] for found, cells in subset])
        lines.append(
            f"Subset ({fewest} images or more): {compared - off} of {compared} figures are within what the "
            f"images allow; at most about {0.05 * compared:.0f} would not be by chance alone. It cannot see "
            f"differences below {100 * np.median(widths):.1f} points (median), and supposes images drawn "
            "from ImageNet's validation set."
        )
        if fewest < FEW_IMAGES:
            lines.append(f"Fewer than {FEW_IMAGES} images: this says next to nothing.")
    return lines or [
        "No figure is compared: one image has no interval, and an artefact is none to compare with."
    ]


def strict(checks: Sequence[Check]) -> None:
    """Raise a CamkitError unless figures over the full set were compared and none of them is off."""
    compared, off = tally(checks, full=True)
    if off:
        raise CamkitError(f"{off} of {compared} figures over the full set are off (--strict)")
    if not compared:
        raise CamkitError(
            f"--strict: no figure was checked over the full set of {FULL_SET:,} images "
            f"({NEARLY_FULL * FULL_SET:,.0f} are enough)"
        )


def randomcam_lines(checks: Sequence[Check], named: Naming = identifier) -> list[str]:
    """Where, in the published figures themselves, RandomCAM's ADCC is above a method's."""
    lines = []
    table = published()["adcc"]
    for layer, utility in dict.fromkeys((f.analysis.block.layer, f.analysis.block.utility) for f in checks):
        wins: dict[str, list[str]] = defaultdict(list)
        here = table.xs((layer, utility), level=("layer", "utility")).unstack("method")
        if "randomcam" not in here:
            continue
        for method in here.columns.drop("randomcam"):
            wins[method] += here.index[here["randomcam"] > here[method]].tolist()
        beaten = [f"{named(method)} on {listed(models)}" for method, models in wins.items() if models]
        if beaten:
            lines.append(
                f"Published, {layer}, {utility}: {named('randomcam')}'s ADCC is above {'; '.join(beaten)}."
            )
    return lines


def check_frame(checks: Sequence[Check]) -> pd.DataFrame:
    """One row per cell and score; fractions."""
    rows = []
    for found in checks:
        block = found.analysis.block
        for place, row in enumerate(found.rows):
            for column, score_place in enumerate(found.columns):
                rows.append(
                    {
                        **cell_keys(block),
                        "method": block.methods[row],
                        "score": block.columns[score_place],
                        "images": block.counts[row, score_place],
                        "ours": found.ours[place, column],
                        "paper": found.paper[place, column],
                        "difference": found.ours[place, column] - found.paper[place, column],
                        "allowed_low": found.low[place, column],
                        "allowed_high": found.high[place, column],
                        "off": found.off[place, column],
                        "artefact": found.artefact[place],
                    }
                )
    return pd.DataFrame(rows)
