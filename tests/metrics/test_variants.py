"""Deletion and insertion with other fills and orders, their difference, ties; values by hand and by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import scipy.stats
import torch
from subjects import subject
from tiny import noise
from torch import Tensor

from camkit.config import FILLS, ORDERS, RunConfig, variant
from camkit.entries import METRICS
from camkit.errors import UsageError
from camkit.metrics.subject import Subject, blur, pixel_ranks
from camkit.network.seeding import generator

WEIGHTS = np.random.default_rng(5).random((3, 4, 5))


def score(images: Tensor) -> Tensor:
    return (images.double() * torch.from_numpy(WEIGHTS)).sum(dim=(1, 2, 3)).tanh()


def images_and_maps() -> tuple[Tensor, Tensor]:
    """A batch of two that is not square; the second map has ties."""
    saliency = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(3))
    saliency[1] = (4 * saliency[1]).round() / 4
    return 0.3 * noise(2, 3, 4, 5).double(), saliency


def filled(images: Tensor, fill: str, ids: list[str], seed: int = 0) -> Tensor:
    drawn = [torch.randn(images.shape[1:], generator=generator(seed, name, "fill")) for name in ids]
    return {
        "zero": torch.zeros_like(images),
        "mean": images.flatten(2).mean(dim=2)[:, :, None, None].expand_as(images),
        "blur": blur(images),
        "noise": torch.stack(drawn).double(),
    }[fill]


def by_hand(start: Tensor, end: Tensor, saliency: Tensor, order: str, steps: int) -> list[float]:
    """One pixel after the other goes from `start` to `end`; the area by NumPy."""
    areas = []
    for first, last, one in zip(start.numpy(), end.numpy(), saliency.numpy(), strict=True):
        places = np.argsort(-one.ravel(), kind="stable")
        places = places if order == "most" else places[::-1]
        now, then = first.reshape(3, -1).copy(), last.reshape(3, -1)
        curve = [np.tanh((now * WEIGHTS.reshape(3, -1)).sum())]
        size = -(-one.size // steps)
        for begin in range(0, one.size, size):
            now[:, places[begin : begin + size]] = then[:, places[begin : begin + size]]
            curve.append(np.tanh((now * WEIGHTS.reshape(3, -1)).sum()))
        areas.append(float(np.trapezoid(curve, np.linspace(0, 1, len(curve)))))
    return areas


@pytest.mark.parametrize("steps", [4, 20, 3])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fill", FILLS)
def test_every_fill_and_order_against_numpy(fill: str, order: str, steps: int) -> None:
    """Asked for together or alone, where the steps divide the pixels and where they do not."""
    images, saliency = images_and_maps()
    other = filled(images, fill, ["0.png", "1.png"])
    expected = {
        "deletion": by_hand(images, other, saliency, order, steps),
        "insertion": by_hand(other, images, saliency, order, steps),
    }
    together = subject(images, saliency, score, steps=steps)
    for kind, areas in expected.items():
        name = variant(kind, fill, order)
        (column,) = METRICS[name].columns
        assert column == name.replace("-", "_") + "_auc"
        for one in (together, subject(images, saliency, score, steps=steps)):
            assert METRICS[name].function(one)[column].tolist() == pytest.approx(areas, abs=1e-9)


def test_the_old_columns_are_the_old_ones() -> None:
    assert list(METRICS["deletion"].columns) == ["deletion_auc"]
    assert METRICS["deletion"].curves == ("deletion_curve",)
    assert variant("deletion", "zero", "most") == "deletion"
    assert variant("insertion", "blur", "most") == "insertion"
    assert variant("insertion", "zero", "least") == "insertion-zero-least"


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("deletion-mean", "lower"),
        ("deletion-least", "higher"),
        ("insertion-zero", "higher"),
        ("insertion-least", "lower"),
    ],
)
def test_the_better_side_turns_with_the_order(name: str, better: str) -> None:
    (column,) = METRICS[name].columns.values()
    assert column.better == better


def test_fill_and_order_are_names_of_groups() -> None:
    config = RunConfig(
        model=(), metrics=("adcc", "deletion", "srg"), fill=("mean", "zero"), order=("least", "most")
    )
    assert config.metrics == (
        *("adcc", "deletion-mean-least", "deletion-mean", "deletion-least", "deletion"),
        *("srg-mean", "srg"),
    )
    assert RunConfig(model=(), metrics=("deletion",), order=("least",)).metrics == ("deletion-least",)
    with pytest.raises(UsageError, match="--fill and --order"):
        RunConfig(model=(), metrics=("adcc",), fill=("mean",))
    with pytest.raises(UsageError, match="--fill grey: expected one of"):
        RunConfig(model=(), metrics=("deletion",), fill=("grey",))


class Counted:
    """A score that counts the passes of whole batches."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        self.score, self.passes = score, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.score(images)


def counted(metrics: tuple[str, ...], steps: int) -> int:
    counting = Counted(score)
    images, saliency = images_and_maps()
    one = subject(images, saliency, counting, steps=steps)
    counting.passes = 0  # the image's own
    for name in metrics:
        METRICS[name].function(one)
    return counting.passes


@pytest.mark.parametrize(
    ("metrics", "passes"),
    [
        (("deletion",), 3 + 1),
        (("deletion", "deletion"), 3 + 1),
        (("deletion", "deletion-least"), 2 * 3 + 1),
        (("deletion", "insertion-zero-least"), 3 + 1),  # the same images, backwards
        (("insertion", "deletion-blur-least"), 3 + 1),
        (("deletion", "insertion-zero"), 2 * 3 + 1),
        (("deletion", "deletion-mean"), 2 * (3 + 1)),
        (("srg",), 2 * 3 + 1),
        (("srg", "deletion", "deletion-least", "insertion-zero", "insertion-zero-least"), 2 * 3 + 1),
        (("srg-blur", "insertion", "insertion-least"), 2 * 3 + 1),
    ],
)
def test_passes_are_shared(metrics: tuple[str, ...], passes: int) -> None:
    """20 pixels in 4 steps: three passes a curve between its ends, and one for what is left of the image."""
    assert counted(metrics, steps=4) == passes


def test_curves_whose_images_differ_share_none() -> None:
    """20 pixels in 3 steps of 7: forwards 7 and 14 have gone, backwards 6 and 13 are there."""
    assert counted(("deletion", "insertion-zero-least"), steps=3) == 2 * 2 + 1


class TestSrg:
    def test_by_hand(self) -> None:
        images, saliency = images_and_maps()
        zero = torch.zeros_like(images)
        least, most = (by_hand(images, zero, saliency, order, 5) for order in ("least", "most"))
        found = METRICS["srg"].function(subject(images, saliency, score, steps=5))["srg"]
        assert found.tolist() == pytest.approx([a - b for a, b in zip(least, most, strict=True)], abs=1e-9)
        assert abs(found[0]) > 0.01

    @pytest.mark.parametrize("fill", FILLS)
    def test_the_mean_over_all_orders_is_zero(self, fill: str) -> None:
        """All 24 orders of four pixels: each is another one's opposite."""
        orders = torch.tensor(list(permutations((0.0, 1.0, 2.0, 3.0)))).view(24, 2, 2) / 3
        images = noise(1, 3, 2, 2).expand(24, 3, 2, 2)
        name = variant("srg", fill, "most")
        one = subject(
            images, orders, lambda x: x[:, 0, 0, 0].sigmoid() * x[:, 1, 1, 0].cos(), image_ids=["a"] * 24
        )
        found = METRICS[name].function(one)[name.replace("-", "_")]
        assert found.abs().max() > 0.01
        assert found.mean().item() == pytest.approx(0, abs=1e-6)


class TestTies:
    def test_raster_is_the_order_of_the_pixels(self) -> None:
        saliency = (4 * torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))).round()
        expected = [np.argsort(np.argsort(-one.numpy().ravel(), kind="stable")) for one in saliency]
        np.testing.assert_array_equal(subject(noise(3, 3, 6, 5), saliency).ranks.flatten(1), expected)

    def test_equal_pixels_go_cell_by_cell(self) -> None:
        """A flat map over a grid of 2 x 3 cells: each cell's pixels are together, in raster order."""
        one = subject(noise(2, 3, 4, 6), torch.zeros(2, 4, 6), ties="random", layer_grid=(2, 3))
        for ranks in one.ranks:
            cells = ranks.view(2, 2, 3, 2).permute(0, 2, 1, 3).reshape(6, 4)
            assert (cells - cells[:, :1] == torch.arange(4)).all()
            assert sorted(cells[:, 0].tolist()) == [0, 4, 8, 12, 16, 20]

    def test_only_ties_are_drawn(self) -> None:
        saliency = torch.rand(1, 4, 6, generator=torch.Generator().manual_seed(0))
        raster, drawn = (
            subject(noise(1, 3, 4, 6), saliency, ties=ties, layer_grid=(2, 3)).ranks
            for ties in ("raster", "random")
        )
        assert torch.equal(raster, drawn)

    def test_the_draw_belongs_to_image_and_seed(self) -> None:
        def ranks(ids: list[str], seed: int = 0) -> Tensor:
            flat = torch.zeros(len(ids), 4, 6)
            more = {"ties": "random", "layer_grid": (2, 3), "image_ids": ids, "seed": seed}
            return subject(noise(len(ids), 3, 4, 6), flat, **more).ranks

        both = ranks(["a", "b"])
        assert torch.equal(both[1:], ranks(["b"]))
        assert not torch.equal(both[0], both[1])
        assert not torch.equal(ranks(["a"]), ranks(["a"], seed=1))

    def test_a_drawn_place_is_uniform(self) -> None:
        """Which of four cells goes first, in 400 images: no cell is preferred (chi-squared)."""
        flat = subject(
            torch.zeros(400, 3, 2, 2), torch.zeros(400, 2, 2), ties="random", layer_grid=(2, 2),
            image_ids=[str(place) for place in range(400)],
        )  # fmt: skip
        first = np.bincount(flat.ranks.flatten(1).argmin(dim=1), minlength=4)
        assert scipy.stats.chisquare(first).pvalue > 0.01

    def test_methods_without_a_layer_have_cells_of_32_pixels(self) -> None:
        ranks = subject(noise(1, 3, 64, 96), torch.zeros(1, 64, 96), ties="random").ranks[0]
        cells = ranks.view(2, 32, 3, 32).permute(0, 2, 1, 3).reshape(6, -1)
        assert (cells.amax(dim=1) - cells.amin(dim=1) == 32 * 32 - 1).all()


def weighted_logit(images: Tensor) -> Tensor:
    return (images.double() * torch.from_numpy(WEIGHTS)).sum(dim=(1, 2, 3))


@pytest.mark.parametrize("grid", [2, 3, 4])
def test_single_deletion_by_hand(grid: int) -> None:
    """Patches of 4 x 5 pixels that are not all alike: row r of three begins at floor(4 r / 3)."""
    images, _ = images_and_maps()
    maps = noise(2, 4, 5, seed=7)
    one = subject(images, maps.relu(), logit=weighted_logit, maps=maps, grid=grid)
    found = METRICS["single_deletion"].function(one)["single_deletion"]
    rows, columns = ([size * edge // grid for edge in range(grid + 1)] for size in (4, 5))
    for place in range(2):
        sums, drops = [], []
        for top, bottom in zip(rows, rows[1:], strict=False):
            for left, right in zip(columns, columns[1:], strict=False):
                sums.append(maps[place, top:bottom, left:right].double().sum())
                patch = images[place, :, top:bottom, left:right].numpy()
                drops.append((patch * WEIGHTS[:, top:bottom, left:right]).sum())
        assert found[place].item() == pytest.approx(scipy.stats.spearmanr(sums, drops).statistic, abs=1e-6)


def test_single_deletion_passes() -> None:
    """One per patch and one more, for all methods together."""
    counting, made = Counted(weighted_logit), {}
    images, saliency = images_and_maps()
    for seed in (1, 2):
        one = subject(images, saliency, logit=counting, maps=noise(2, 4, 5, seed=seed), grid=3, _made=made)
        METRICS["single_deletion"].function(one)
    assert counting.passes == 9 + 1


def test_ranks_are_asked_for_once() -> None:
    images, saliency = images_and_maps()
    one: Subject = subject(images, saliency, score)
    assert one.ranks is one.ranks
    assert torch.equal(one.ranks, pixel_ranks(saliency))
