"""Scores by hand on images of four pixels, and against SciPy and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from subjects import subject
from tiny import noise
from torch import Tensor

from camkit.entries import METRICS
from camkit.metrics.adcc import harmonic_adcc, pearson, relative_drop, relative_gain
from camkit.metrics.causal import area, curve
from camkit.metrics.subject import blur, pixel_ranks

WEIGHTS = torch.tensor([[0.4, 0.3], [0.2, 0.1]])


def brightness(images: Tensor) -> Tensor:
    """p_c of the network of these tests: a weighted sum of the first channel's pixels."""
    return (images[:, 0] * WEIGHTS).sum(dim=(1, 2))


def image(*pixels: float) -> Tensor:
    return torch.tensor(pixels).view(1, 1, 2, 2).expand(1, 3, 2, 2)


def adcc(images: Tensor, saliency: Tensor, again: Tensor) -> dict[str, float]:
    scores = METRICS["adcc"].function(subject(images, saliency, brightness, again))
    return {name: value[0].item() for name, value in scores.items()}


class TestAdcc:
    def test_by_hand(self) -> None:
        """p0 = 1; the mask leaves 0.4 + 0.15; without it 0.15 + 0.2 + 0.1 stay."""
        saliency = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]])
        again = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
        scores = adcc(image(1, 1, 1, 1), saliency, again)
        correlation = scipy.stats.pearsonr([1, 0.5, 0, 0], [0, 1, 0, 0]).statistic
        coherency = (1 + correlation) / 2
        assert scores["average_drop"] == pytest.approx(0.45)
        assert scores["increase"] == 0
        assert scores["drop_in_deletion"] == pytest.approx(0.55)
        assert scores["coherency"] == pytest.approx(coherency)
        assert scores["complexity"] == pytest.approx(0.375)
        assert scores["adcc"] == pytest.approx(3 / (1 / coherency + 1 / (1 - 0.375) + 1 / (1 - 0.45)))

    def test_a_mask_that_helps(self) -> None:
        """The pixel that speaks against the class is masked: p1 = 0.7 > p0 = 0.5, and p2 = -0.2 < 0."""
        saliency = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
        scores = adcc(image(1, 1, -1, 0), saliency, saliency)
        assert scores["average_drop"] == 0
        assert scores["increase"] == 1
        assert scores["coherency"] == pytest.approx(1)
        assert scores["drop_in_deletion"] == pytest.approx(1.4)

    def test_no_change_is_no_increase(self) -> None:
        scores = adcc(image(1, 1, 0, 0), torch.tensor([[[1.0, 1.0], [0, 0.5]]]), torch.rand(1, 2, 2))
        assert scores["increase"] == scores["average_drop"] == 0
        assert scores["drop_in_deletion"] == 1

    def test_a_probability_of_zero_drops_nothing(self) -> None:
        scores = adcc(image(0, 0, 0, 0), torch.rand(1, 2, 2), torch.rand(1, 2, 2))
        assert scores["average_drop"] == scores["drop_in_deletion"] == scores["increase"] == 0

    def test_opposite_maps_have_no_coherency_and_no_adcc(self) -> None:
        saliency = torch.tensor([[[1.0, 0.5], [0.25, 0.0]]])
        scores = adcc(image(1, 1, 1, 1), saliency, 1 - saliency)
        assert scores["coherency"] == pytest.approx(0, abs=1e-7)
        assert scores["adcc"] == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("constant", [0.0, 1.0])
    def test_degenerate_maps(self, constant: float) -> None:
        flat, good = torch.full((1, 2, 2), constant), torch.tensor([[[1.0, 0.5], [0.0, 0.0]]])
        first = adcc(image(1, 1, 1, 1), flat, good)
        second = adcc(image(1, 1, 1, 1), good, flat)
        assert first["coherency"] == first["adcc"] == second["coherency"] == second["adcc"] == 0
        assert (first["degenerate_masked"], second["degenerate_masked"]) == (0, 1)
        assert first["complexity"] == constant
        assert first["average_drop"] == pytest.approx(1 - constant)
        assert all(math.isfinite(score) for scores in (first, second) for score in scores.values())

    @pytest.mark.parametrize("factors", [(0.0, 0.5, 0.5), (0.5, 1.0, 0.5), (0.5, 0.5, 1.0)])
    def test_a_factor_of_zero(self, factors: tuple[float, ...]) -> None:
        assert harmonic_adcc(*(torch.tensor([factor]) for factor in factors)).tolist() == [0]

    def test_the_harmonic_mean_is_scipys(self) -> None:
        coherency, complexity, drop = (
            torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
        )
        ours = harmonic_adcc(coherency, complexity, drop)
        expected = scipy.stats.hmean(torch.stack([coherency, 1 - complexity, 1 - drop]).double().numpy())
        np.testing.assert_allclose(ours, expected, rtol=1e-5)

    def test_average_gain_by_hand(self) -> None:
        """p0 = 0.5; the mask hides what speaks against the class: 0.7, so 0.2 of the 0.5 that is missing."""
        saliency = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]).expand(2, 2, 2)
        images = torch.cat([image(1, 1, -1, 0), image(1, 1, 1, 1)])
        found = METRICS["average_drop"].function(subject(images, saliency, brightness))
        assert found["average_gain"].tolist() == [pytest.approx(0.4), 0]

    def test_relative_gain(self) -> None:
        before, after = torch.tensor([0.5, 0.5, 1.0, 0.0]), torch.tensor([0.6, 0.1, 1.0, 0.25])
        torch.testing.assert_close(relative_gain(before, after), torch.tensor([0.2, 0, 0, 0.25]))

    def test_relative_drop(self) -> None:
        before, after = torch.tensor([0.5, 0.5, 0.0, 0.25]), torch.tensor([0.1, 0.9, 0.3, 0.25])
        torch.testing.assert_close(relative_drop(before, after), torch.tensor([0.8, 0, 0, 0]))


class TestPearson:
    def test_against_scipy(self) -> None:
        first, second = noise(5, 9, 7, seed=1), noise(5, 9, 7, seed=2)
        second[1] = -2 * first[1] + 3
        second[2] = first[2] * 1e-4 + 5
        for ours, a, b in zip(pearson(first, second), first.double(), second.double(), strict=True):
            expected = scipy.stats.pearsonr(a.flatten(), b.flatten()).statistic
            assert ours.item() == pytest.approx(expected, abs=1e-6)

    def test_a_map_that_differs_from_a_constant_in_one_pixel(self) -> None:
        fake = torch.ones(1, 224, 224)
        fake[0, 0, 0] = 0
        assert pearson(fake, fake).item() == 1

    @pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
    def test_a_constant_map_has_no_correlation(self, value: float) -> None:
        """Its deviations from its mean, which is rounded, are no pattern."""
        constant = torch.full((1, 7, 9), value)
        assert pearson(constant, noise(1, 7, 9)).isnan().all()
        assert pearson(noise(1, 7, 9), constant).isnan().all()

    def test_tiny_maps_do_not_underflow(self) -> None:
        first, second = noise(1, 6, 6, seed=3), noise(1, 6, 6, seed=4)
        expected = scipy.stats.pearsonr(first.flatten(), second.flatten()).statistic
        assert pearson(first * 1e-30, second * 1e-30).item() == pytest.approx(expected, abs=1e-5)


class TestBlur:
    def test_one_bright_pixel_becomes_scipys_kernel(self) -> None:
        dirac = np.zeros((11, 11))
        dirac[5, 5] = 1
        kernel = scipy.ndimage.gaussian_filter(dirac, sigma=5)
        images = torch.zeros(1, 3, 31, 31)
        images[0, 1, 15, 15] = 2
        blurred = blur(images)
        np.testing.assert_allclose(blurred[0, 1, 10:21, 10:21], 2 * kernel, rtol=1e-6)
        assert blurred[0, 1].sum().item() == pytest.approx(2 * kernel.sum(), rel=1e-6)
        assert (blurred[0, [0, 2]] == 0).all()

    def test_an_image_is_padded_with_zeros(self) -> None:
        dirac = np.zeros((11, 11))
        dirac[5, 5] = 1
        kernel = scipy.ndimage.gaussian_filter(dirac, sigma=5)
        images = noise(2, 3, 24, 19)
        for ours, channels in zip(blur(images), images.double().numpy(), strict=True):
            expected = [scipy.ndimage.correlate(c, kernel, mode="constant") for c in channels]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def rise(images: np.ndarray, other: np.ndarray, saliency: np.ndarray, steps: int) -> float:
    """RISE as published: from `images` to `other`, pixel by pixel in the order of `saliency`."""
    pixels = saliency.size
    stride = -(-pixels // steps)
    order = np.argsort(-saliency.ravel(), kind="stable")
    now, weights = images.copy().reshape(-1, pixels), WEIGHTS_5.reshape(pixels)
    scores = [float(now[0] @ weights)]
    for start in range(0, pixels, stride):
        now[:, order[start : start + stride]] = other.reshape(-1, pixels)[:, order[start : start + stride]]
        scores.append(float(now[0] @ weights))
    return float(np.trapezoid(scores, np.linspace(0, 1, len(scores))))


WEIGHTS_5 = np.random.default_rng(5).random((5, 5))


def weighted(images: Tensor) -> Tensor:
    return (images[:, 0].double() * torch.from_numpy(WEIGHTS_5)).sum(dim=(1, 2))


class TestCurves:
    def test_a_curve_by_hand(self) -> None:
        """Four pixels, two steps: p_c is the share of unchanged pixels, weighted by their place."""
        ranks = pixel_ranks(torch.tensor([[[0.1, 0.9], [0.5, 0.3]]]))
        worth = torch.tensor([[0.0, 0.4], [0.3, 0.3]])
        found = curve(
            torch.tensor([1.0]),
            torch.tensor([0.0]),
            ranks,
            2,
            lambda changed: (worth * ~changed).sum(dim=(1, 2, 3)),
        )
        assert found.tolist() == [[1.0, pytest.approx(0.3), 0.0]]
        assert area(found).item() == pytest.approx((0.5 * 1.0 + 0.3 + 0.0) / 2)

    def test_deletion_by_hand(self) -> None:
        """p_c: 1, 0.6 (pixel 0), 0.4 (pixel 2), 0.1 (pixel 1), 0."""
        saliency = torch.tensor([[[0.9, 0.2], [0.5, 0.1]]])
        scores = METRICS["deletion"].function(subject(image(1, 1, 1, 1), saliency, brightness))
        assert scores["deletion_auc"].item() == pytest.approx((0.5 + 0.6 + 0.4 + 0.1 + 0) / 4)

    def test_ties_go_by_raster_index(self) -> None:
        ranks = pixel_ranks(torch.tensor([[[0.5, 1.0, 0.5], [0.5, 0.0, 1.0]]]))
        assert ranks.tolist() == [[[2, 0, 3], [4, 5, 1]]]

    @pytest.mark.parametrize("steps", [1, 2, 4, 7, 24, 25])
    def test_against_numpy(self, steps: int) -> None:
        """Also where the steps do not divide the pixels: 25 pixels in 7 steps of 4."""
        images, saliency = noise(3, 3, 5, 5).double(), noise(3, 5, 5, seed=8)
        saliency[1] = saliency[1].round()  # many ties
        one = subject(images, saliency, weighted, steps=steps)
        deletion = METRICS["deletion"].function(one)["deletion_auc"]
        insertion = METRICS["insertion"].function(one)["insertion_auc"]
        blurred = blur(images)
        for place in range(3):
            x, b, s = images[place].numpy(), blurred[place].numpy(), saliency[place].numpy()
            assert deletion[place].item() == pytest.approx(rise(x, np.zeros_like(x), s, steps), abs=1e-9)
            assert insertion[place].item() == pytest.approx(rise(b, x, s, steps), abs=1e-9)

    def test_one_step_is_the_mean_of_the_ends(self) -> None:
        scores = METRICS["deletion"].function(
            subject(image(1, 0, 1, 0), torch.rand(1, 2, 2), brightness, steps=1)
        )
        assert scores["deletion_auc"].item() == pytest.approx(0.3)

    @pytest.mark.parametrize("steps", [1, 5, 9, 25])
    def test_passes(self, steps: int) -> None:
        """N - 1 passes a curve; the ends are the image itself, and the blank and blurred image, once each."""
        calls: list[int] = []

        def score(images: Tensor) -> Tensor:
            calls.append(len(images))
            return weighted(images)

        images = noise(2, 3, 5, 5)
        shared: dict[str, Tensor] = {}
        methods = [
            subject(images, noise(2, 5, 5, seed=seed), score, steps=steps, _made=shared) for seed in (0, 1)
        ]
        calls.clear()  # what the images themselves took
        points = -(-25 // -(-25 // steps)) - 1
        for one in methods:
            METRICS["deletion"].function(one)
        assert sum(calls) == 2 * (2 * points + 1)
        for one in methods:
            METRICS["insertion"].function(one)
        assert sum(calls) == 2 * (4 * points + 2)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_names_its_columns_and_source(name: str) -> None:
    assert {column.better for column in METRICS[name].columns.values()} <= {"higher", "lower", "neither"}
    assert METRICS[name].columns
    assert METRICS[name].source
