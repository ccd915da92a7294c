"""RISE and occlusion, against other people's code and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TinyNet, maps, noise, saliency, seeded, trace
from torch import Tensor

from camkit.entries import METHODS
from camkit.methods.images import PUBLISHED_MASKS, random_masks, windows
from camkit.methods.saliency import min_max
from camkit.network.seeding import generator

IMAGES = noise(2, 3, 64, 96, seed=1)


class TestOcclusion:
    @pytest.mark.parametrize("size", [(64, 96), (40, 40)])
    @pytest.mark.parametrize("utility", ["softmax", "rest"])
    @pytest.mark.peers
    def test_captums_with_the_same_window(self, size: tuple[int, int], utility: str) -> None:
        captum = pytest.importorskip("captum.attr")
        traced = trace(seeded(TinyNet), noise(2, 3, *size), "features.5", utility)
        side = min(size) // 8

        def forward(images: Tensor) -> Tensor:
            return traced.utility(traced.network.model(images), traced.target.repeat(len(images) // 2))

        peer = captum.Occlusion(forward)
        window, step = (3, side, side), (3, side // 2, side // 2)
        expected = peer.attribute(traced.images, window, strides=step, baselines=0)[:, 0]
        passes = traced.network.passes
        found = saliency("occlusion", traced)
        assert traced.network.passes - passes == 1 + len(list(windows(*size)))
        torch.testing.assert_close(found, min_max(expected.relu()), rtol=0, atol=1e-3)
        assert found.std() > 0.05

    def test_a_square_image_has_fifteen_windows_a_side(self) -> None:
        all_windows = list(windows(224, 224))
        assert len(all_windows) == 15 * 15
        assert METHODS["occlusion"].cost.startswith(f"{1 + len(all_windows)} passes")
        assert all_windows[0] == (slice(0, 28), slice(0, 28))
        assert all_windows[-1] == (slice(196, 224), slice(196, 224))

    @pytest.mark.parametrize("size", [(8, 6), (17, 31), (224, 199)])
    def test_every_pixel_is_covered(self, size: tuple[int, int]) -> None:
        covered = torch.zeros(size)
        for rows, columns in windows(*size):
            covered[rows, columns] += 1
        assert covered.min() >= 1


class TestRise:
    def test_masks_are_those_of_the_paper(self) -> None:
        """Grid, size and place are drawn here as there; skimage resizes in RISE's published code."""
        transform = pytest.importorskip("skimage.transform")
        traced = trace(seeded(TinyNet), IMAGES, "features.5", ids=["a", "b"], seed=3, draw=1)
        masks = list(random_masks(traced, 3))
        assert all(mask.shape == (2, 64, 96) for mask in masks)
        stream = generator(3, "b", 1, "rise")
        for mask in masks:
            grid = (torch.rand(7, 7, generator=stream) < 0.5).numpy().astype(float)
            top, left = (int(torch.randint(side, (), generator=stream)) for side in (10, 14))
            whole = transform.resize(grid, (80, 112), order=1, mode="edge", anti_aliasing=False)
            np.testing.assert_allclose(mask[1], whole[top : top + 64, left : left + 96], rtol=0, atol=1e-5)

    def test_it_is_the_mean_of_the_masks_that_the_utility_weighs(self) -> None:
        traced = trace(seeded(TinyNet), IMAGES, "features.5", "softmax")
        total = np.zeros((2, 64, 96))
        for mask in random_masks(traced, 12):
            logits = traced.network.model(IMAGES * mask[:, None])
            weights = logits.softmax(dim=1)[torch.arange(2), traced.target].detach().double().numpy()
            total += weights[:, None, None] * mask.double().numpy() / (12 * 0.5)
        low, high = total.min(axis=(1, 2), keepdims=True), total.max(axis=(1, 2), keepdims=True)
        passes = traced.network.passes
        found = saliency("rise-12", traced)
        assert traced.network.passes == passes + 12
        np.testing.assert_allclose(found, (total - low) / (high - low), rtol=0, atol=1e-4)

    def test_it_finds_the_pixels_that_count(self) -> None:
        """The utility is the brightness of one corner: that is where the map is largest."""
        images = torch.ones(1, 3, 56, 56)
        traced = trace(seeded(TinyNet), images, "features.5")
        corner = torch.zeros(56, 56)
        corner[40:, :16] = 1
        traced.utility_of = lambda images: (images[:, 0] * corner).mean(dim=(1, 2))
        found = saliency("rise-500", traced)[0]
        assert found[44:52, 4:12].mean() > 0.8
        assert found[:24, 24:].mean() < 0.5

    def test_masks_are_the_images_own(self) -> None:
        def draw(ids: list[str], seed: int = 0, again: int = 0) -> Tensor:
            images = IMAGES[:1].expand(len(ids), -1, -1, -1)
            traced = trace(seeded(TinyNet), images, "features.5", ids=ids, seed=seed, draw=again)
            return maps("rise-5", traced)

        first = draw(["a", "b"])
        assert not torch.equal(first[0], first[1])
        torch.testing.assert_close(first, draw(["b", "a"]).flip(0))
        torch.testing.assert_close(first[:1], draw(["a"]))
        assert not torch.equal(first, draw(["a", "b"], seed=1))
        assert not torch.equal(first, draw(["a", "b"], again=1))

    def test_rise_is_published_with_four_thousand(self) -> None:
        assert PUBLISHED_MASKS == 4000
        assert METHODS["rise"].cost == METHODS["rise-4000"].cost == "4000 passes"
        assert METHODS["rise"].groups == ("perturbation",)
