"""Cheap maps against the Shapley values of a layer: what comes nearest for how many gradients?

    python scripts/shapley_search.py --layer conv --layer blocks.5 --data DIR --limit 24 -o FILE.csv.gz

Writes a packed CSV, one row per layer, map and image: the square of the relative error, and
the passes through the rest of the network that the map costs beside the gradient at A.
`scripts/shapley_table.py table` makes a table of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from torch import Tensor

import camkit.network.utilities  # noqa: F401  (fills the registry)
from camkit.config import MethodOptions, RunConfig
from camkit.data import data_of
from camkit.data.batches import batches
from camkit.entries import METHODS, UTILITIES
from camkit.methods.aumann import completed, steps_back
from camkit.metrics.shapley_value import YARDSTICK, relative_square
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
    """Two nodes and the cubic correction, sum over j of (T_ijj - T_iij) / 12, by random signs."""
    half = coins(trace, 0.5, 0)
    middle = masked(trace, torch.full_like(half, 0.5))
    with_squares = 8 * ((masked(trace, half) + masked(trace, 1 - half)) / 2 - middle)
    signs, step = 2 * half - 1, 0.1
    low, high = (
        (masked(trace, t + step * signs) - masked(trace, t - step * signs)) / (2 * step) for t in (0.25, 0.75)
    )
    own_squares = signs[:, 0] * (high - low) / 0.5
    plain = masked(trace, torch.full_like(half, NODE)) + masked(trace, torch.full_like(half, 1 - NODE))
    return plain / 2 + (with_squares - own_squares) / 12


def removal_and_arrival(trace: Trace) -> Tensor:
    """Half of what a position's removal from all takes and half of what its arrival alone brings."""
    game = trace.game
    alone = torch.eye(game.players, dtype=torch.bool).expand(len(trace.images), -1, -1)
    none, everyone = (end[:, None] for end in game.ends)
    return ((game.utility(alone) - none + everyone - game.utility(~alone)) / 2).view_as(
        trace.activation[:, 0]
    )


# Quadrature rules on [0, 1]: N -> (node, weight) of each gradient on the path. Those with a node at 1 use the
# gradient at A, which most methods take; it is none of the N.
Rule = Callable[[int], list[tuple[float, float]]]


def gauss_legendre(count: int) -> list[tuple[float, float]]:
    places, weights = np.polynomial.legendre.leggauss(count)
    return list(zip(((places + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


def midpoints(count: int) -> list[tuple[float, float]]:
    return [((k + 0.5) / count, 1 / count) for k in range(count)]


def back_from_1(count: int) -> list[tuple[float, float]]:
    weight = 2 / (2 * count + 1)
    return [*((t, weight) for t in steps_back(count)), (1.0, weight / 2)]


def radau(count: int) -> list[tuple[float, float]]:
    """Gauss-Radau: exact for polynomials up to degree 2 N."""
    places = np.polynomial.legendre.legroots([0] * count + [-1, 1])
    places = np.sort((places + 1) / 2).clip(max=1)
    powers = np.arange(count + 1)
    weights = np.linalg.solve(places ** powers[:, None], 1 / (powers + 1))
    return list(zip([*places[:-1].tolist(), 1.0], weights.tolist(), strict=True))


RULES: dict[str, Rule] = {
    "Gauss-Legendre": gauss_legendre,
    "equal steps": midpoints,
    "steps back from A": back_from_1,
    "Gauss-Radau with A": radau,
}
STEPS = (1, 2, 3, 4)


def completions(maps: Tensor, gain: Tensor) -> dict[str, Tensor]:
    """Maps (B, h, w) as they are, and made to sum to gain (B,) in three ways."""
    total = maps.sum(dim=(1, 2))
    share = ((gain - total) / maps[0].numel())[:, None, None]
    return {
        "": maps,
        ", completed evenly": maps + share,
        ", completed by m": maps * (gain / total)[:, None, None],
        ", completed by |m|": completed(maps, gain),
    }


def on_the_path(trace: Trace) -> Iterator[tuple[str, int, Tensor]]:
    """Name, passes and map of each rule; a gradient counts as three passes, u(A0) as one."""
    none, everyone = trace.game.ends
    at: dict[float, Tensor] = {}

    def gradient(share: float) -> Tensor:
        if round(share, 9) not in at:
            at[round(share, 9)] = masked(trace, torch.full_like(trace.activation[:, :1], share))
        return at[round(share, 9)]

    plain = {"hirescam": (3, METHODS["hirescam"].function(trace))}
    plain["shapleycam-h"] = (9, METHODS["shapleycam-h"].function(trace))
    for rule, nodes in RULES.items():
        for count in STEPS:
            maps = torch.stack([weight * gradient(t) for t, weight in nodes(count)]).sum(dim=0)
            plain[f"{rule}, N = {count}"] = (3 * count, maps)
    for name, (cost, maps) in plain.items():
        for how, one in completions(maps, everyone - none).items():
            yield name + how, cost + (how != ""), one
    many = torch.stack([weight * gradient(t) for t, weight in midpoints(64)]).sum(dim=0)
    yield "the path integral (64 steps)", 192, many


# Name -> passes, map.
OTHERS: dict[str, tuple[int | str, Callable[[Trace], Tensor]]] = {
    "shapley": ("7, or budget (P - 1)", METHODS["shapley"].function),
    "Owen: random masks at 2 nodes, 1 antithetic pair": (6, lambda t: owen(t, 1, NODE)),
    "Owen: 8 pairs": (48, lambda t: owen(t, 8, NODE)),
    "Owen, masks drawn to a quarter, 1 pair": (6, lambda t: owen(t, 1, NODE, 0.25)),
    "the two halves of a checkerboard": (6, checkerboard),
    "cubic term by random signs": (27, cubic),
    "removal and arrival of each position": ("2 P", removal_and_arrival),
}


@click.command()
@click.option("--model", default="tf_efficientnet_lite0", show_default=True)
@click.option("--layer", default=["blocks.5"], show_default=True, multiple=True)
@click.option("--utility", default=["rest"], show_default=True, multiple=True)
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", default=6, show_default=True)
@click.option(
    "--budget", default=MethodOptions.budget, show_default=True, help="Permutations of the yardstick."
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="The packed CSV, FILE.csv.gz."
)
def main(
    model: str,
    layer: tuple[str, ...],
    utility: tuple[str, ...],
    data: str,
    limit: int,
    budget: int,
    out: Path,
) -> None:
    """Errors of the candidates on the images of --data."""
    config = RunConfig(model=(model,), layer=layer, data=data)
    items = data_of(config).items
    prepared = prepare(model, config.layer, items, config, say=click.echo)
    preprocess = prepared.loaded.preprocess
    rows: list[dict[str, object]] = []
    for batch in batches(items[:limit], preprocess, BATCH_SIZE, 0):
        if batch.pixels is None:
            continue
        pixels = preprocess.normalise(batch.pixels)
        passed = prepared.network.trace(pixels, list(prepared.paths.values()))
        for (name, path), score in product(prepared.paths.items(), utility):
            trace = Trace(
                pixels, [item.id for item in batch.items], partial(preprocess.denormalise, pixels),
                passed.logits.argmax(dim=1), config.seed, 0, prepared.network, None,
                MethodOptions(budget=budget), UTILITIES[score].function, path, passed,
            )  # fmt: skip
            rows += measured(f"{name}, {score}", trace)
    write(rows, out)


def measured(layer: str, trace: Trace) -> list[dict[str, object]]:
    """The rows of one layer and batch."""
    return [
        {"layer": layer, "map": candidate, "passes": cost, "image": image, "square": square}
        for candidate, cost, squares in measure(trace)
        for image, square in zip(trace.image_ids, squares.tolist(), strict=True)
    ]


def write(rows: Sequence[Mapping[str, object]] | pd.DataFrame, out: Path) -> None:
    """Write a packed CSV; the same rows make the same file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    packed = {"method": "gzip", "mtime": 0}
    pd.DataFrame(rows).to_csv(out, index=False, float_format="%.5g", lineterminator="\n", compression=packed)
    click.echo(str(out))


def measure(trace: Trace) -> Iterator[tuple[str, int | str, Tensor]]:
    """Name, passes and squared errors (B,) of each candidate; first the yardstick's noise, subtracted."""
    values, errors = trace.game.shapley(YARDSTICK)
    noise = errors.square().sum(dim=(1, 2)) / values.square().sum(dim=(1, 2))
    yield "noise of the yardstick, subtracted", "", noise
    with torch.no_grad():
        for name, cost, maps in on_the_path(trace):
            yield name, cost, relative_square(maps, values, errors)
        for name, (price, candidate) in OTHERS.items():
            yield name, price, relative_square(candidate(trace), values, errors)


if __name__ == "__main__":
    main()
