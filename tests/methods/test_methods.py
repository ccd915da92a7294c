"""The methods' formulas by hand, the controls as defined, and what the identities between methods demand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from tiny import Given, Headed, TinyNet, maps, noise, saliency, seeded, trace
from torch import Tensor, nn

from camkit.entries import METHODS

PAPER = (
    "gradcam", "gradcam++", "xgradcam", "layercam", "gradcam-e", "hirescam",
    "shapleycam", "shapleycam-h", "shapleycam-e", "randomcam",
)  # fmt: skip
CONTROLS = ("flat", "fake-cam", "centre", "edges", "randomcam", "blocks-8", "blocks-16")
PLAIN = ("gradcam", "hirescam", "gradcam-e")


# Two channels, one row of two positions.
BY_HAND = Given(
    activation=torch.tensor([[[[1.0, 3.0]], [[2.0, -1.0]]]]),
    gradient=torch.tensor([[[[2.0, -4.0]], [[0.0, 6.0]]]]),
    hvp=torch.tensor([[[[2.0, 2.0]], [[-4.0, 8.0]]]]),
)
# G - HA/2: channel 0: [1, -5], channel 1: [2, 2].
EXPECTED = {
    "gradcam": [-1 * 1 + 3 * 2, -1 * 3 + 3 * -1],
    "layercam": [2 * 1 + 0 * 2, 0 * 3 + 6 * -1],
    "gradcam-e": [2 + 0, 0 + 0],
    "hirescam": [2 + 0, -12 - 6],
    "shapleycam": [-2 * 1 + 2 * 2, -2 * 3 + 2 * -1],
    "shapleycam-h": [1 * 1 + 2 * 2, -5 * 3 + 2 * -1],
    "shapleycam-e": [1 + 4, 0 + 0],
    # sums of A: 4 and 1; sums of G A: 2 - 12 and 0 - 6.
    "xgradcam": [-10 / 4 * 1 + -6 * 2, -10 / 4 * 3 + -6 * -1],
    # alpha ReLU(G): channel 0: 4 / (8 + 4 * 8) * 2 and 0; channel 1: 0 (G = 0) and 36 / (72 + 216) * 6.
    "gradcam++": [0.2 * 1 + 0.75 * 2, 0.2 * 3 + 0.75 * -1],
}


@pytest.mark.parametrize("method", EXPECTED)
def test_by_hand(method: str) -> None:
    given = METHODS[method].function(BY_HAND)
    torch.testing.assert_close(given, torch.tensor([[EXPECTED[method]]]).float(), rtol=1e-5, atol=1e-6)


def test_the_groups() -> None:
    assert {name for name, method in METHODS.items() if "paper" in method.groups} == set(PAPER)
    assert {name for name, method in METHODS.items() if "controls" in method.groups} == set(CONTROLS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_where_it_comes_from(method: str) -> None:
    assert METHODS[method].source
    assert METHODS[method].function.__doc__


@pytest.mark.parametrize("utility", ["logit", "rest"])
def test_a_linear_head_under_logit_makes_shapleycam_gradcam(utility: str) -> None:
    """HA = 0 there, and only there: under `rest` the softmax bends the utility."""
    model = seeded(TinyNet)
    traced = trace(model, noise(2, 3, 96, 96), "features.5", utility)
    for shapley, plain in zip(("shapleycam", "shapleycam-h", "shapleycam-e"), PLAIN, strict=True):
        first, second = maps(shapley, traced), maps(plain, traced)
        assert (first == second).all() == (utility == "logit"), (shapley, plain)


class OneHot(nn.Module):
    """Two channels of a 2x2 map that the head reads at one place."""

    def forward(self, activation: Tensor) -> Tensor:
        return torch.stack([activation[:, 0, 0, 1] * 3, activation[:, 1, 1, 1]], dim=1)


def test_hirescam_shows_the_place_that_the_head_reads() -> None:
    model = Headed(nn.AvgPool2d(2), OneHot())
    images = torch.arange(1.0, 49).view(1, 3, 4, 4)
    traced = trace(model, images, utility="logit", target=[0])
    assert maps("hirescam", traced).tolist() == [[[0, 3 * images[0, 0, :2, 2:].mean().item()], [0, 0]]]


class TestControls:
    traced = trace(
        seeded(TinyNet), noise(2, 3, 224, 224), "features.5", pixels=noise(2, 3, 224, 224).sigmoid()
    )

    def test_flat(self) -> None:
        flat = saliency("flat", self.traced)
        assert flat.shape == (2, 224, 224)
        assert flat[:, 0, :2].tolist() == [[0, 1]] * 2
        assert (flat.flatten(1)[:, 2:] == torch.tensor(0.3)).all()

    def test_fake_cam(self) -> None:
        fake = saliency("fake-cam", self.traced)
        assert (fake.flatten(1).sum(dim=1) == 224 * 224 - 1).all()
        assert (fake[:, 0, 0] == 0).all()

    def test_centre(self) -> None:
        y, x = np.mgrid[:224, :224] - 111.5
        gaussian = np.exp(-(x**2 + y**2) / (2 * 60**2))
        expected = (gaussian - gaussian.min()) / (gaussian.max() - gaussian.min())
        for one in saliency("centre", self.traced):
            np.testing.assert_allclose(one, expected, rtol=0, atol=1e-5)

    def test_edges_is_scipys_sobel(self) -> None:
        for one, pixels in zip(saliency("edges", self.traced), self.traced.pixels().numpy(), strict=True):
            grey = np.tensordot([0.299, 0.587, 0.114], pixels, axes=1)
            magnitude = np.hypot(*(scipy.ndimage.sobel(grey, axis, mode="nearest") for axis in (0, 1)))
            expected = (magnitude - magnitude.min()) / (magnitude.max() - magnitude.min())
            np.testing.assert_allclose(one, expected, rtol=0, atol=1e-5)

    def test_randomcam_is_a_weighting_of_channels_between_minus_one_and_one(self) -> None:
        activation = self.traced.activation[0].flatten(1).double()  # (C, hw)
        found = maps("randomcam", self.traced)[0].flatten().double()
        alive = activation.abs().amax(dim=1) > 0
        weights = torch.linalg.lstsq(activation[alive].T, found[:, None]).solution[:, 0]
        assert alive.sum() > 8
        assert weights.abs().max() <= 1
        assert weights.std() > 0.3

    def test_randomcam_draws_from_seed_image_and_draw(self) -> None:
        def draw(ids: list[str], seed: int = 0, again: int = 0) -> Tensor:
            images = noise(1, 3, 64, 64).expand(len(ids), -1, -1, -1)
            traced = trace(seeded(TinyNet), images, "features.5", ids=ids, seed=seed, draw=again)
            return maps("randomcam", traced)

        first = draw(["a", "b"])
        assert not torch.equal(first[0], first[1])
        assert torch.equal(first, draw(["b", "a"]).flip(0))
        assert torch.equal(first[:1], draw(["a"]))
        assert not torch.equal(first, draw(["a", "b"], seed=1))
        assert not torch.equal(first, draw(["a", "b"], again=1))
