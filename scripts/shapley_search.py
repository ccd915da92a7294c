"""Cheap maps against the Shapley values of a layer: what comes nearest for how many gradients?

    python scripts/shapley_search.py --layer prepool --layer conv --layer blocks.5 --data DIR --limit 12

Writes a CSV, one row a layer, map and image: the relative error, and the passes through the rest of the
network that the map costs. `scripts/shapley_table.py table` makes a table of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from torch import Tensor

import camkit.network.utilities  # noqa: F401  (fills the registry)
from camkit.config import DEFAULT_BUDGET, RunConfig
from camkit.data import find_images
from camkit.data.batches import batches
from camkit.entries import METHODS, UTILITIES
from camkit.methods.aumann import path_gradient
from camkit.metrics.shapley_value import YARDSTICK, relative_error
from camkit.network.prepare import prepare
from camkit.network.seeding import generator
from camkit.network.trace import Trace

BATCH_SIZE = 6
NODE = 0.5 - 3**-0.5 / 2  # the lower of the two Gauss-Legendre nodes on [0, 1]


def times_activation(trace: Trace, gradient: Tensor) -> Tensor:
    return (gradient * (trace.activation - trace.absent_activation)).sum(dim=1)


def masked(trace: Trace, share: Tensor) -> Tensor:
    """Sum over channels of A times the gradient at share x A, share (B, 1, h, w)."""
    return times_activation(
        trace, trace.gradient_at(torch.lerp(trace.absent_activation, trace.activation, share))
    )


def coins(trace: Trace, chance: float, draw: int) -> Tensor:
    """Random masks (B, 1, h, w), a position present with probability `chance`."""
    size = trace.activation.shape[2:]
    drawn = [
        torch.rand(size, generator=generator(trace.seed, name, "mask", draw)) for name in trace.image_ids
    ]
    return (torch.stack(drawn)[:, None] < chance).to(trace.activation)


def owen(trace: Trace, pairs: int, chance: float, spread: float = 1.0) -> Tensor:
    """Gradients at random masks and their complements; `spread` < 1 draws the masks towards their mean."""
    total = torch.zeros(())
    for draw in range(pairs):
        mask = coins(trace, chance, draw)
        low = chance + spread * (mask - chance)
        total = total + masked(trace, low) + masked(trace, 1 - low)
    return total / (2 * pairs)


def checkerboard(trace: Trace) -> Tensor:
    """Gradients at the two halves of a checkerboard."""
    h, w = trace.activation.shape[2:]
    board = (torch.arange(h)[:, None] + torch.arange(w)) % 2
    share = board.to(trace.activation).expand(len(trace.images), 1, h, w)
    return (masked(trace, share) + masked(trace, 1 - share)) / 2


def cubic(trace: Trace) -> Tensor:
    """aumann-2 and the cubic correction, sum over j of (T_ijj - T_iij) / 12, by random signs."""
    half = coins(trace, 0.5, 0)
    middle = masked(trace, torch.full_like(half, 0.5))
    with_squares = 8 * ((masked(trace, half) + masked(trace, 1 - half)) / 2 - middle)
    signs, step = 2 * half - 1, 0.1
    low, high = (
        (masked(trace, t + step * signs) - masked(trace, t - step * signs)) / (2 * step) for t in (0.25, 0.75)
    )
    own_squares = signs[:, 0] * (high - low) / 0.5
    return METHODS["aumann-2"].function(trace) + (with_squares - own_squares) / 12


def efficient(trace: Trace, nodes: int, additive: bool) -> Tensor:
    """aumann-N made to sum to u(A) - u(A0): what is missing is spread evenly, or in proportion."""
    maps = times_activation(trace, path_gradient(trace, nodes))
    none, everyone = trace.game.ends
    gain, total = everyone - none, maps.sum(dim=(1, 2))
    if additive:
        return maps + ((gain - total) / trace.game.players)[:, None, None]
    return maps * (gain / total)[:, None, None]


def removal_and_arrival(trace: Trace) -> Tensor:
    """Half of what a position's removal from all takes and half of what its arrival alone brings."""
    game = trace.game
    alone = torch.eye(game.players, dtype=torch.bool).expand(len(trace.images), -1, -1)
    none, everyone = (end[:, None] for end in game.ends)
    return ((game.utility(alone) - none + everyone - game.utility(~alone)) / 2).view_as(
        trace.activation[:, 0]
    )


def substituted(trace: Trace, nodes: int, power: float) -> Tensor:
    """Gauss-Legendre in s with t = s^power: for power > 1 the nodes crowd towards the absent activation."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros(())
    for s, weight in zip((places + 1) / 2, weights / 2, strict=True):
        share = torch.full_like(trace.activation[:, :1], s**power)
        total = total + weight * power * s ** (power - 1) * masked(trace, share)
    return total


def midpoints(trace: Trace, nodes: int) -> Tensor:
    """The midpoint rule: N equal steps."""
    shares = [(k + 0.5) / nodes for k in range(nodes)]
    return torch.stack([masked(trace, torch.full_like(trace.activation[:, :1], t)) for t in shares]).mean(
        dim=0
    )


def mix(trace: Trace) -> Tensor:
    """The mean of aumann-2 and of gradients at one antithetic pair of random masks."""
    return (METHODS["aumann-2"].function(trace) + owen(trace, 1, NODE)) / 2


# Name -> passes (a gradient counts as three: forward, and back at twice its cost), map.
CANDIDATES: dict[str, tuple[int | str, Callable[[Trace], Tensor]]] = {
    **{
        name: (cost, METHODS[name].function)
        for name, cost in (
            ("hirescam", 3), ("shapleycam-h", 9), ("aumann-1", 3), ("aumann-2", 6), ("aumann-3", 9),
            ("aumann-4", 12), ("aumann-6", 18), ("aumann-32", 96),
        )
    },
    "2 equal steps": (6, lambda t: midpoints(t, 2)),
    "3 equal steps": (9, lambda t: midpoints(t, 3)),
    "2 nodes, t = s^2": (6, lambda t: substituted(t, 2, 2)),
    "3 nodes, t = s^2": (9, lambda t: substituted(t, 3, 2)),
    "2 nodes, t = s^1.5": (6, lambda t: substituted(t, 2, 1.5)),
    "3 nodes, t = s^1.5": (9, lambda t: substituted(t, 3, 1.5)),
    "Owen: random masks at 2 nodes, 1 antithetic pair": (6, lambda t: owen(t, 1, NODE)),
    "Owen: 2 pairs": (12, lambda t: owen(t, 2, NODE)),
    "Owen: 8 pairs": (48, lambda t: owen(t, 8, NODE)),
    "masks of half the positions, 1 pair": (6, lambda t: owen(t, 1, 0.5)),
    "Owen, masks drawn half-way to their mean, 1 pair": (6, lambda t: owen(t, 1, NODE, 0.5)),
    "Owen, masks drawn to a quarter, 1 pair": (6, lambda t: owen(t, 1, NODE, 0.25)),
    "the two halves of a checkerboard": (6, checkerboard),
    "mean of aumann-2 and Owen, 1 pair": (12, mix),
    "aumann-2 with the cubic term by random signs": (27, cubic),
    "aumann-1, sum corrected in proportion": (5, lambda t: efficient(t, 1, additive=False)),
    "aumann-3, sum corrected evenly": (11, lambda t: efficient(t, 3, additive=True)),
    "aumann-2, sum corrected in proportion": (8, lambda t: efficient(t, 2, additive=False)),
    "aumann-2, sum corrected evenly": (8, lambda t: efficient(t, 2, additive=True)),
    "removal and arrival of each position": ("2 P", removal_and_arrival),
}  # fmt: skip


@click.command()
@click.option("--model", default="tf_efficientnet_lite0", show_default=True)
@click.option("--layer", default=["blocks.5"], show_default=True, multiple=True)
@click.option("--utility", default="rest", show_default=True)
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", default=6, show_default=True)
@click.option("--budget", default=DEFAULT_BUDGET, show_default=True, help="Permutations of the yardstick.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The CSV.")
def main(
    model: str, layer: tuple[str, ...], utility: str, data: str, limit: int, budget: int, out: Path
) -> None:
    """Errors of the candidates on the images of --data."""
    config = RunConfig(model=(model,), layer=layer)
    images = find_images(data, config.seed)
    prepared = prepare(model, config.layer, images.items, config, say=click.echo)
    preprocess = prepared.loaded.preprocess
    rows: list[dict[str, object]] = []
    for batch in batches(images.items[:limit], preprocess, BATCH_SIZE, 0):
        if batch.pixels is None:
            continue
        pixels = preprocess.normalise(batch.pixels)
        passed = prepared.network.trace(pixels, list(prepared.paths.values()))
        for name, path in prepared.paths.items():
            trace = Trace(
                pixels, [item.id for item in batch.items], partial(preprocess.denormalise, pixels),
                passed.logits.argmax(dim=1), config.seed, 0, prepared.network,
                UTILITIES[utility].function, path, passed, budget=budget,
            )  # fmt: skip
            rows += measured(name, trace)
    write(rows, out)


def measured(layer: str, trace: Trace) -> list[dict[str, object]]:
    """The rows of one layer and batch."""
    return [
        {"layer": layer, "map": candidate, "passes": cost, "image": image, "error": error}
        for candidate, cost, errors in measure(trace)
        for image, error in zip(trace.image_ids, errors.tolist(), strict=True)
    ]


def write(rows: Sequence[Mapping[str, object]], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out, index=False, float_format="%.5g", lineterminator="\n")
    click.echo(str(out))


def measure(trace: Trace) -> Iterator[tuple[str, int | str, Tensor]]:
    """Name, passes and errors (B,) of each candidate; first the yardstick's noise, which is subtracted."""
    values, errors = trace.game.shapley(YARDSTICK)
    noise = errors.flatten(1).norm(dim=1) / values.flatten(1).norm(dim=1)
    yield "noise of the yardstick, subtracted", "", noise
    with torch.no_grad():
        for name, (cost, candidate) in CANDIDATES.items():
            yield name, cost, relative_error(candidate(trace), values, errors)


if __name__ == "__main__":
    main()
