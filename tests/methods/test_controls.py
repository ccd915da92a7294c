"""Controls and ceilings: what they are by definition, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Headed, maps, noise, run, saliency, seeded, trace
from torch import Tensor, nn

from camkit.entries import METHODS
from camkit.errors import CamkitError, UsageError
from camkit.methods.altered import moved
from camkit.methods.controls import patch_slices
from camkit.results.folder import read_scores


def model() -> nn.Module:
    return seeded(lambda: Headed(nn.Conv2d(3, 6, 8, stride=8), lambda maps: maps.tanh().mean(dim=(2, 3))))


def blocks(name: str, ids: list[str], size: tuple[int, int] = (20, 33), seed: int = 0) -> Tensor:
    return saliency(name, trace(model(), noise(len(ids), 3, *size), ids=ids, seed=seed))


@pytest.mark.parametrize("side", [8, 16, 5])
def test_blocks_are_constant_and_differ(side: int) -> None:
    """Of an image that they do not divide the last ones are cut."""
    (one,) = blocks(f"blocks-{side}", ["a"])
    seen = []
    for top in range(0, 20, side):
        for left in range(0, 33, side):
            block = one[top : top + side, left : left + side]
            assert (block == block[0, 0]).all()
            seen.append(block[0, 0].item())
    assert len(set(seen)) == len(seen) > 1
    assert (min(seen), max(seen)) == (0, pytest.approx(1, abs=1e-6))


def test_blocks_belong_to_image_and_seed() -> None:
    both = blocks("blocks-8", ["a", "b"])
    assert torch.equal(both[1:], blocks("blocks-8", ["b"]))
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(blocks("blocks-8", ["a"]), blocks("blocks-8", ["a"], seed=1))


def test_blocks_are_the_same_for_the_masked_image() -> None:
    """They never see it: their coherency is 1."""
    first, again = (trace(model(), noise(1, 3, 16, 24, seed=s), ids=["a"], draw=s) for s in (0, 1))
    assert torch.equal(saliency("blocks-8", first), saliency("blocks-8", again))


def test_blocks_are_uniform() -> None:
    """Of 400 blocks, scaled to [0, 1]."""
    values = np.sort(blocks("blocks-8", ["a"], (160, 160))[0, ::8, ::8].flatten().numpy())
    assert np.abs(values - np.linspace(0, 1, 400)).max() < 1.63 / 20  # Kolmogorov, 1 %


def test_two_of_the_family_are_in_the_group() -> None:
    members = [name for name, one in METHODS.items() if "controls" in one.groups and "blocks" in name]
    assert members == ["blocks-8", "blocks-16"]
    with pytest.raises(UsageError, match="blocks-N"):
        METHODS["blocks-0"]


@pytest.mark.parametrize("patches", [4, 7])
def test_drops_by_hand(patches: int) -> None:
    """A network whose logit is a weighted sum of pixels: a patch's loss is its part of the sum."""
    weight = noise(2, 3, 21, 28, seed=5)

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 4, 7, stride=7)

        def forward(self, images: Tensor) -> Tensor:
            sums = torch.einsum("bchw,kchw->bk", images, weight)
            return sums + 0 * self.features(images).mean(dim=(1, 2, 3))[:, None]

    images = noise(2, 3, 21, 28)
    found = saliency(f"drops-{patches}", trace(Sums(), images, target=[1, 0]))
    products = (images * weight[[1, 0]]).sum(dim=1)
    rows, columns = ([side * edge // patches for edge in range(patches + 1)] for side in (21, 28))
    expected = torch.zeros(2, 21, 28)
    for top, bottom in zip(rows, rows[1:], strict=False):
        for left, right in zip(columns, columns[1:], strict=False):
            patch = (slice(None), slice(top, bottom), slice(left, right))
            expected[patch] = products[patch].sum(dim=(1, 2))[:, None, None]
    expected -= expected.amin(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(found, expected / expected.amax(dim=(1, 2), keepdim=True), atol=1e-5, rtol=0)


def test_patches_are_no_smaller_than_pixels() -> None:
    assert len([*patch_slices(21, 28, 21)]) == 441
    with pytest.raises(CamkitError, match="22 patches along a side of 21 pixels: take fewer"):
        next(patch_slices(21, 28, 22))


def test_changed_maps_by_hand() -> None:
    one = trace(model(), noise(2, 3, 16, 24))
    plain = saliency("hirescam", one)
    torch.testing.assert_close(saliency("hirescam~same", one), plain)
    torch.testing.assert_close(saliency("hirescam~sqrt", one), plain.sqrt())
    torch.testing.assert_close(saliency("hirescam~square", one), plain**2)
    torch.testing.assert_close(saliency("hirescam~raised", one), 0.7 * plain + 0.3)


def test_a_share_is_moved_by_one_tile() -> None:
    """Of 2 x 2 and of 3 x 3 tiles: the total stays, what was in a tile lies in the next one."""
    for side in (2, 3):
        saliency = torch.rand(1, 6, 12, generator=torch.Generator().manual_seed(0))
        tile = torch.zeros(1, 6, 12, dtype=torch.bool)
        tile[:, : 6 // side, : 12 // side] = True
        found = moved(saliency, tile, 1.0)
        shifted = torch.cat([saliency[..., -12 // side :], saliency[..., : -12 // side]], dim=2)
        assert torch.equal(found, shifted)
        torch.testing.assert_close(moved(saliency, tile, 0.25), 0.75 * saliency + 0.25 * shifted)
        torch.testing.assert_close(found.sum(), saliency.sum())


def test_an_image_without_a_region_keeps_its_map() -> None:
    saliency = torch.rand(1, 4, 4)
    assert torch.equal(moved(saliency, torch.zeros(1, 4, 4, dtype=torch.bool), 0.5), saliency)


def test_a_change_of_no_method_is_unknown() -> None:
    with pytest.raises(UsageError, match="unknown method 'hirescan'"):
        METHODS["hirescan~sqrt"]


def test_ties_change_the_order_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    """Raster is what is made where nothing is said, to the byte; random moves the areas of maps with ties."""
    for name, options in {"default": {}, "raster": {"ties": "raster"}, "random": {"ties": "random"}}.items():
        settings = {"method": ("gradcam", "flat"), "metrics": ("adcc", "deletion"), "batch_size": 3}
        run(photos, tmp_path / name, **settings | options)
    for method in ("gradcam", "flat"):
        (default,), (raster,), (drawn,) = (
            list((tmp_path / name).glob(f"*/*/{method}.csv")) for name in ("default", "raster", "random")
        )
        assert default.read_bytes() == raster.read_bytes()
        one, other = read_scores(raster), read_scores(drawn)
        assert one.drop(columns="deletion_auc").equals(other.drop(columns="deletion_auc"))
        if method == "flat":
            assert (one["deletion_auc"] != other["deletion_auc"]).all()


def test_the_region_needs_a_layer() -> None:
    assert METHODS["region"].groups == ("ceilings",)
    regions = torch.zeros(2, 16, 24, dtype=torch.bool)
    regions[1] = True
    found = maps("region", trace(model(), noise(2, 3, 16, 24), regions=regions))
    assert found.tolist() == [[[0.0] * 3] * 2, [[1.0] * 3] * 2]
