"""What `--sample M` would cost and lose on your data, from curves of which every step was scored.

    camkit bench --model tf_efficientnet_lite0 --method gradcam,shapleycam,layercam,hirescam \
        --metrics deletion,insertion --curves --data /data/imagenet/val --limit 32 --out results/local/curves
    python scripts/curve_sampling.py results/local/curves -o results/curves

Compares estimators of the area under N steps at equal passes: `chord` is what `--sample` does; `plain` is
the mean of the sampled steps, `antithetic` half of them mirrored, `two-stage` half of them on a fixed grid
that the other half corrects; `share` scores all images at a coarse N and adds the mean difference of a share
that is scored at every step. All are without bias but `coarse`. The variances are exact: over every offset
that can be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

import click
import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from camkit.results.arrays import read_curves
from camkit.results.folder import run_folders

KINDS = ("deletion", "insertion")
SAMPLES = (4, 7, 13, 28)
# Share of the images that is scored at every step, beside a coarse N for all.
SHARES = ((14, 0.02), (14, 0.1), (28, 0.1))


def read(out: Path, kind: str) -> dict[str, np.ndarray]:
    """Method -> the curves of the images that all methods have, (images, points)."""
    (folder,) = run_folders(out)
    found = {path.name.split(".")[0]: read_curves(path) for path in sorted(folder.glob(f"*.{kind}_curve"))}
    images = sorted(set.intersection(*(set(curves) for curves in found.values())))
    return {
        method: np.stack([curves[image] for image in images]).astype(float)
        for method, curves in found.items()
    }


def area(curves: np.ndarray) -> np.ndarray:
    return trapezoid(curves, axis=1) / (curves.shape[1] - 1)


def nodes(interior: int, count: int) -> np.ndarray:
    """The steps that each offset draws, (interior, count)."""
    return 1 + (np.arange(count) * interior + np.arange(interior)[:, None]) // count


def plain(curves: np.ndarray, count: int, at: np.ndarray | None = None) -> np.ndarray:
    """Areas (images, offsets) from the mean of the steps `at` (offsets, count)."""
    steps = curves.shape[1] - 1
    at = nodes(steps - 1, count) if at is None else at
    ends = (curves[:, :1] + curves[:, -1:]) / (2 * steps)
    return ends + (steps - 1) / steps * curves[:, at].mean(axis=2)


def about(line: np.ndarray, curves: np.ndarray, count: int) -> np.ndarray:
    """Areas of what is known of the curves, and the estimated rest."""
    return area(line)[:, None] + plain(curves - line, count)


def through(curves: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Straight lines through the known points of the curves."""
    every = np.arange(curves.shape[1])
    return np.stack([np.interp(every, known, curve[known]) for curve in curves])


def chord(curves: np.ndarray, count: int) -> np.ndarray:
    return about(through(curves, np.array([0, curves.shape[1] - 1])), curves, count)


def antithetic(curves: np.ndarray, count: int) -> np.ndarray:
    steps = curves.shape[1] - 1
    half = nodes(steps - 1, count // 2)
    return plain(curves, count, np.concatenate([half, steps - half], axis=1))


def two_stage(curves: np.ndarray, count: int) -> np.ndarray:
    known = np.linspace(0, curves.shape[1] - 1, count // 2 + 2).round().astype(int)
    return about(through(curves, known), curves, count - count // 2)


ESTIMATORS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "plain": plain,
    "antithetic": antithetic,
    "two-stage": two_stage,
    "chord": chord,
}


def by_sampling(name: str, count: int, curves: np.ndarray) -> float:
    """What sampling adds to the variance of one image's area."""
    return float(((ESTIMATORS[name](curves, count) - area(curves)[:, None]) ** 2).mean())


def by_share(coarse: int, share: float, curves: np.ndarray) -> float:
    """What is added to the variance of a mean, times the number of images."""
    every = np.linspace(0, curves.shape[1] - 1, coarse + 1).round().astype(int)
    return float((1 / share - 1) * (area(curves) - area(curves[:, every])).var(ddof=1))


def measured(curves: dict[str, np.ndarray]) -> Iterator[dict[str, object]]:
    """A row per estimator and number of passes."""
    steps = next(iter(curves.values())).shape[1] - 1
    pairs = [curves[first] - curves[second] for first, second in combinations(curves, 2)]

    def row(name: str, passes: float, added: Callable[[np.ndarray], float]) -> dict[str, object]:
        single = [added(one) for one in curves.values()]
        own = [area(one).var(ddof=1) for one in curves.values()]
        mean = np.mean(np.divide(single, own))
        pair = [added(one) / area(one).var(ddof=1) for one in pairs]
        return {
            "estimator": name,
            "passes": passes,
            "mean": mean,
            "pair, least": min(pair),
            "pair, most": max(pair),
            "passes x variance, mean": passes / (steps - 1) * (1 + mean),
            "passes x variance, pair": passes / (steps - 1) * (1 + max(pair)),
            "one image": np.sqrt(np.mean(single)),
        }

    for count in SAMPLES:
        for name in ESTIMATORS:
            if not (name == "antithetic" and count % 2):
                yield row(name, count, partial(by_sampling, name, count))
    for coarse, share in SHARES:
        passes = coarse - 1 + share * (steps - coarse)
        yield row(f"share {share:.0%} of N = {coarse}", passes, partial(by_share, coarse, share))


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder for sampling.csv.")
def main(folder: Path, out: Path | None) -> None:
    """Compare estimators on a results folder that has whole curves."""
    tables = []
    for kind in KINDS:
        curves = read(folder, kind)
        images, points = next(iter(curves.values())).shape
        table = pd.DataFrame(measured(curves))
        click.echo(f"\n{kind}: {images} images, {points - 1} steps, {', '.join(curves)}")
        click.echo(table.round(4).to_string(index=False))
        tables.append(table.assign(kind=kind, images=images))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        pd.concat(tables).round(6).to_csv(out / "sampling.csv", index=False)


if __name__ == "__main__":
    main()
