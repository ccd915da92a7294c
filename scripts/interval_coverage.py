"""How often 95 % intervals hold the truth: the table in docs/report.md.

    camkit bench --model tf_efficientnet_lite0 --method paper,controls --metrics adcc --data DIR --out RUN
    python scripts/interval_coverage.py RUN

The images of RUN stand for all images. Studies of few of them are drawn (with replacement), and it is counted
in how many of them the interval holds the mean over all images. Beside camkit's intervals stand Student's t
and scipy's bootstrap (BCa), which are of means only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import click
import numpy as np
import pandas as pd
from scipy import stats

from camkit.entries import Column
from camkit.report.scores import known_scores
from camkit.report.statistics import Estimates, estimates
from camkit.report.study import Block, load_study

RESAMPLES = 999
# Below this the scores of all images are the same but for rounding: an interval has nothing to hold.
CONSTANT = 1e-6


def held(ends: tuple[np.ndarray, np.ndarray], truth: np.ndarray) -> np.ndarray:
    """Share of studies, the rows of (studies, columns), whose interval holds the truth (columns,)."""
    return ((ends[0] <= truth + 1e-9) & (truth - 1e-9 <= ends[1])).mean(axis=0)


def student(found: Estimates) -> tuple[np.ndarray, np.ndarray]:
    """Student's t interval of each mean."""
    images = len(found.scores)
    half = stats.t.isf(0.025, images - 1) * found.scores.std(axis=0, ddof=1) / np.sqrt(images)
    return found.value - half, found.value + half


def bca(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scipy's bootstrap intervals of the means of (images, studies, columns)."""
    settings = {"n_resamples": RESAMPLES, "batch": 50, "rng": np.random.default_rng(0)}
    with np.errstate(invalid="ignore"), warnings.catch_warnings(action="ignore"):  # of columns of one value
        found = stats.bootstrap((scores,), np.mean, axis=0, method="BCa", **settings)
    return found.confidence_interval.low, found.confidence_interval.high


def of_means(block: Block, declared: dict[str, Column], images: int, studies: int) -> Iterator[dict]:
    """A row for each method and score that varies."""
    rng = np.random.default_rng(images)
    for place, method in enumerate(block.methods):
        everything = block.values[:, place : place + 1].astype(np.float64)
        truth, varies = estimates(everything, declared).value[0], np.ptp(everything[:, 0], axis=0) > CONSTANT
        drawn = everything[rng.integers(0, len(everything), (images, studies)), 0]
        found = estimates(drawn, declared)
        few = drawn[:, : studies // 20]
        shares = {
            "camkit": held(found.interval, truth),
            "Student": held(student(found), truth),
            "BCa": held(bca(few), truth),
        }
        for column, name in enumerate(declared):
            if varies[column]:
                here = {
                    one: share[column]
                    for one, share in shares.items()
                    if one == "camkit" or declared[name].mean is None
                }
                yield {"of": "mean", "score": name, "images": images, "method": method, **here}


def of_differences(block: Block, declared: dict[str, Column], images: int, studies: int) -> Iterator[dict]:
    """A row for each score and pair of methods between which it differs."""
    rng = np.random.default_rng(images)
    everything = block.values.astype(np.float64)
    whole = estimates(everything, declared)
    for one, other in combinations(range(len(block.methods)), 2):
        truth = (whole.only(one) - whole.only(other)).value[0]
        varies = np.ptp(everything[:, one] - everything[:, other], axis=0) > CONSTANT
        drawn = everything[:, [one, other]][rng.integers(0, len(everything), (images, studies))]
        found = estimates(drawn[:, :, 0], declared) - estimates(drawn[:, :, 1], declared)
        gaps = drawn[:, :, 0] - drawn[:, :, 1]
        plain = student(estimates(gaps, {name: Column("neither") for name in declared}))
        shares = {"camkit": held(found.interval, truth), "Student": held(plain, truth)}
        for column, name in enumerate(declared):
            if varies[column]:
                here = {
                    kind: share[column]
                    for kind, share in shares.items()
                    if kind == "camkit" or declared[name].mean is None
                }
                pair = f"{block.methods[one]} − {block.methods[other]}"
                yield {"of": "difference", "score": name, "images": images, "method": pair, **here}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Least, median and greatest coverage over methods or pairs, percent."""
    kinds = [name for name in rows.columns if name not in ("of", "score", "images", "method")]

    def words(shares: pd.Series) -> str:
        known = 100 * shares.dropna()
        return f"{known.min():.1f} / {known.median():.1f} / {known.max():.1f}" if len(known) else ""

    table = rows.groupby(["of", "images", "score"], sort=False)[kinds].agg(words).reset_index()
    headings = {score.name: score.short for score in known_scores(table["score"])}
    return table.assign(score=table["score"].map(headings))


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--images", default="12,30", show_default=True, help="Images in a study.")
@click.option("--studies", default=10_000, show_default=True, help="Of each method, score and size.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="All rows as CSV, there.")
def main(run: Path, images: str, studies: int, out: Path | None) -> None:
    """Measure the coverage of 95 % intervals on the per-image scores of RUN."""
    (block,) = load_study([run])
    declared = {score.name: score.declared for score in block.scores}
    sizes = [int(size) for size in images.split(",")]
    rows = pd.DataFrame(
        row
        for of in (of_means, of_differences)
        for size in sizes
        for row in of(block, declared, size, studies)
    )
    if out is not None:
        rows.to_csv(out, index=False, float_format="%.4f")
    click.echo(
        f"{block.title}; {studies:,} studies; least / median / greatest over methods or pairs, percent\n"
    )
    click.echo(summary(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
