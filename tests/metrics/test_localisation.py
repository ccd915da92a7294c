"""Energy, pointing and what is certified, by hand."""

from __future__ import annotations

import pytest
import torch
from subjects import explained, subject
from tiny import Headed, noise
from torch import Tensor

from camkit.entries import METRICS, method
from camkit.network.trace import Trace

LEFT = torch.tensor([[[True, False], [True, False]]])


def logit(images: Tensor) -> Tensor:
    """The left half counts 1, the upper right corner a little, the lower one nothing."""
    return (images[:, 0] * torch.tensor([[1.0, 0.05], [1.0, 0.0]])).sum(dim=(1, 2))


def localisation(saliency: Tensor, regions: Tensor | None, images: Tensor | None = None) -> dict[str, Tensor]:
    images = torch.ones(len(saliency), 3, 2, 2) if images is None else images
    return METRICS["localisation"].function(subject(images, saliency, logit=logit, regions=regions))


def test_by_hand() -> None:
    saliency = torch.tensor([[[0.2, 1.0], [0.6, 0.2]], [[1.0, 0.0], [0.5, 0.5]]])
    found = localisation(saliency, LEFT.expand(2, 2, 2))
    assert found["energy"].tolist() == pytest.approx([0.4, 0.75])
    assert found["pointing"].tolist() == [0, 1]
    assert found["region_share"].tolist() == [0.5, 0.5]
    assert found["certified"].tolist() == [1, 1]
    assert found["energy_certified"].tolist() == pytest.approx([0.4, 0.75])
    assert not found["empty_map"].any()


@pytest.mark.parametrize(
    ("saliency", "share"),
    [
        ([[1.0, 1.0], [0.0, 0.0]], 1 / 2),
        ([[1.0, 1.0], [1.0, 0.0]], 2 / 3),
        ([[0.0, 1.0], [0.0, 1.0]], 0),
        ([[1.0, 0.9], [1.0, 0.9]], 1),
    ],
)
def test_several_maxima_count_by_expectation(saliency: list[list[float]], share: float) -> None:
    assert localisation(torch.tensor([saliency]), LEFT)["pointing"].item() == pytest.approx(share)


def test_an_empty_map_scores_chance_and_is_counted() -> None:
    corner = torch.tensor([[[True, False], [False, False]]])
    found = localisation(torch.zeros(1, 2, 2), corner)
    assert found["energy"].item() == found["pointing"].item() == found["region_share"].item() == 0.25
    assert found["empty_map"].tolist() == [True]


def test_without_a_region_there_is_no_score() -> None:
    for found in (
        localisation(torch.zeros(1, 2, 2), None),
        localisation(torch.zeros(1, 2, 2), ~(LEFT | True)),
    ):
        assert all(found[name].isnan().all() for name in METRICS["localisation"].columns)
        assert found["empty_map"].tolist() == [False]


@pytest.mark.parametrize(
    ("pixels", "certified"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1),  # the rest lowers it by 0.05, the region by 2
        ([0.2, 5.0, 0.2, 0.0], 0),  # 0.25 and 0.4
        ([1.0, -9.0, 1.0, 0.0], 1),  # without the rest it rises
        ([-1.0, 0.0, -1.0, 0.0], 0),  # the region speaks against the class
        ([-1.0, -60.0, -1.0, 0.0], 0),  # as does all else, even more
        ([0.0, 0.0, 0.0, 0.0], 0),  # nothing depends on anything
    ],
)
def test_certified_by_hand(pixels: list[float], certified: int) -> None:
    images = torch.tensor(pixels).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    found = localisation(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), LEFT, images)
    assert found["certified"].item() == certified
    assert found["energy"].item() == 0.5
    assert found["energy_certified"].isnan().item() == (not certified)


def test_three_passes_for_all_methods() -> None:
    calls: list[int] = []

    def counted(images: Tensor) -> Tensor:
        calls.append(len(images))
        return logit(images)

    made: dict[str, Tensor] = {}
    for seed in range(3):
        maps = noise(1, 2, 2, seed=seed).relu()
        one = subject(torch.ones(1, 3, 2, 2), maps, logit=counted, regions=LEFT, _made=made)
        METRICS["localisation"].function(one)
    assert calls == [1, 1, 1]


class Planted(torch.nn.Module):
    """The logit of class k is what tile k of 2 x 2 holds of red: which tile counts is known."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.AvgPool2d(8)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)[:, 0]
        tiles = maps.unflatten(2, (2, -1)).unflatten(1, (2, -1)).sum(dim=(2, 4))
        return tiles.flatten(1) / 4


def planted(name: str) -> dict[str, Tensor]:
    """Scores of all four tiles of a mosaic of 32 x 32."""
    image = noise(1, 3, 32, 32).abs()
    regions = torch.zeros(4, 32, 32, dtype=torch.bool)
    for tile in range(4):
        regions[tile, 16 * (tile // 2) : 16 * (tile // 2) + 16, 16 * (tile % 2) : 16 * (tile % 2) + 16] = True
    (one,) = explained(
        Planted(), image.expand(4, 3, 32, 32), "features", name, target=[0, 1, 2, 3], regions=regions
    )
    return METRICS["localisation"].function(one)


def test_a_planted_network() -> None:
    """HiResCAM is 0 outside the tile: what the resize spreads over the border alone is lost."""
    found = planted("hirescam")
    ceiling = planted("region")
    assert found["certified"].tolist() == [1, 1, 1, 1]
    assert found["pointing"].tolist() == [1, 1, 1, 1]
    assert (found["energy"] > 0.8).all()
    assert (ceiling["energy"] > 0.8).all()
    assert ceiling["pointing"].tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(ceiling["energy"], ceiling["energy"][:1].expand(4))


def test_planted_faults_are_caught() -> None:
    """A map that is turned by a tile, one of another class, and one whose sign is wrong."""

    @method("turned")
    def turned(trace: Trace) -> Tensor:
        return (trace.activation * trace.gradient).sum(dim=1).rot90(1, (1, 2))

    @method("other-class")
    def other_class(trace: Trace) -> Tensor:
        other = trace.gradient_of(lambda logits: logits.gather(1, (trace.target[:, None] + 1) % 4)[:, 0])
        return (trace.activation * other).sum(dim=1)

    @method("sign")
    def sign(trace: Trace) -> Tensor:
        return 1 - (trace.activation * trace.gradient).sum(dim=1)

    for name in ("turned", "other-class", "sign", "hirescam~moved-100"):
        assert (planted(name)["energy"] < 0.25).all(), name
        assert (planted(name)["pointing"] == 0).all(), name


def test_a_share_in_the_wrong_tile_is_what_it_says() -> None:
    """(1 - t) S + t S', S' with its tiles exchanged: the energy goes from E to (1 - t) E + t E'."""
    whole, wrong, half = (planted(f"hirescam{end}")["energy"] for end in ("", "~moved-100", "~moved-50"))
    torch.testing.assert_close(half, (whole + wrong) / 2)


@pytest.mark.parametrize("change", ["sqrt", "moved-25"])
def test_the_second_map_is_changed_alike(change: str) -> None:
    """What a score explains again is the same method's: the masked image's map has the same change."""
    image, region = noise(1, 3, 32, 32).abs(), torch.zeros(1, 32, 32, dtype=torch.bool)
    region[:, :16, :16] = True
    plain, changed = explained(
        Planted(), image, "features", ("hirescam", f"hirescam~{change}"), target=[0], regions=region
    )
    (_, first), (_, second) = (one.explain_again(image * image) for one in (plain, changed))
    expected = first.sqrt() if change == "sqrt" else 0.75 * first + 0.25 * first.roll(16, dims=2)
    torch.testing.assert_close(second, expected)
    assert not torch.equal(first, plain.saliency)


def test_the_region_is_a_map_of_the_layers_grid() -> None:
    """Of 3 x 2 cells: the share of each that lies in the region; 0 where it is not known."""
    model = Headed(torch.nn.Conv2d(3, 4, 8, stride=8), lambda maps: maps.mean(dim=(2, 3)))
    regions = torch.zeros(2, 24, 16, dtype=torch.bool)
    regions[0, :12, 4:] = True
    (one,) = explained(model, noise(2, 3, 24, 16), "features", "region", regions=regions)
    assert one.maps is not None
    assert one.maps.tolist() == [[[0.5, 1], [0.25, 0.5], [0, 0]], [[0, 0], [0, 0], [0, 0]]]
