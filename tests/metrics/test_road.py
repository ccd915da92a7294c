"""ROAD and ARCC against grad-cam's, which solves the same system image by image, by elimination."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.arcc import ARCC
from pytorch_grad_cam.metrics.road import (
    NoisyLinearImputer,
    ROADCombined,
    ROADLeastRelevantFirstAverage,
    ROADMostRelevantFirstAverage,
)
from subjects import subject
from tiny import noise
from torch import Tensor, nn

import camkit.metrics.road
from camkit.entries import METRICS
from camkit.metrics.imputation import impute
from camkit.metrics.subject import Subject

pytestmark = pytest.mark.peers
SIDES = (10, 20)  # at every tenth of 200 pixels grad-cam's percentiles take as many as camkit's shares


@pytest.mark.parametrize("sides", [(8, 8), (9, 14), (33, 20)])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_imputed_pixels_are_the_peers(share: float, sides: tuple[int, int]) -> None:
    """Scattered pixels and a whole corner, a batch of two with another mask each."""
    images = noise(2, 3, *sides, seed=3)
    removed = torch.rand(2, 1, *sides, generator=torch.Generator().manual_seed(1)) < share
    removed[1, 0, : sides[0] // 2, : sides[1] // 2] = True
    removed[:, :, -1, -1] = False
    found = impute(images, removed)
    for ours, image, gone in zip(found, images, removed, strict=True):
        expected = NoisyLinearImputer(noise=0)(image, (~gone[0]).float())
        np.testing.assert_allclose(ours, expected, atol=2e-4)
    kept = ~removed.expand_as(images)
    assert torch.equal(found[kept], images[kept])


def test_nothing_and_everything_removed() -> None:
    images = noise(1, 3, 8, 8)
    assert torch.equal(impute(images, torch.zeros(1, 1, 8, 8, dtype=torch.bool)), images)
    assert (impute(images, torch.ones(1, 1, 8, 8, dtype=torch.bool)) == 0).all()


def test_an_image_does_not_depend_on_its_batch() -> None:
    images, removed = noise(2, 3, 16, 12), torch.rand(2, 1, 16, 12) < 0.6
    both = impute(images, removed)
    alone = torch.cat([impute(images[i : i + 1], removed[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(both, alone, atol=1e-6, rtol=0)


class Model(nn.Module):
    """Softmax scores of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = noise(3, 3, *SIDES, seed=9)

    def forward(self, images: Tensor) -> Tensor:
        return (0.2 * torch.einsum("bchw,kchw->bk", images, self.weight)).softmax(dim=1)


class OfClass:
    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, output: Tensor) -> Tensor:
        return output[self.index]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the noise, which both draw in their own way."""
    monkeypatch.setattr(camkit.metrics.road, "NOISE", 0)
    monkeypatch.setattr(
        NoisyLinearImputer.__init__, "__defaults__", (0, NoisyLinearImputer.__init__.__defaults__[1])
    )


def example() -> tuple[Subject, Tensor, Tensor, list[OfClass], Model]:
    images, model, classes = noise(2, 3, *SIDES, seed=4), Model(), torch.tensor([0, 2])
    smooth = nn.functional.interpolate(noise(2, 1, 4, 5, seed=2), SIDES, mode="bilinear")[:, 0]
    saliency = (smooth + 1e-4 * noise(2, *SIDES)).sigmoid()
    again = noise(2, *SIDES, seed=6).sigmoid()

    def score(x: Tensor) -> Tensor:
        return model(x).gather(1, classes[:, None])[:, 0]

    return subject(images, saliency, score, again), images, saliency, [OfClass(0), OfClass(2)], model


@pytest.mark.usefixtures("quiet")
def test_road_is_the_peers() -> None:
    """grad-cam gives the change of the probability, camkit the probability."""
    one, images, saliency, targets, model = example()
    ours = METRICS["road"].function(one)
    arguments = (images, saliency.numpy(), targets, model)
    least, most = (
        average()(*arguments) for average in (ROADLeastRelevantFirstAverage, ROADMostRelevantFirstAverage)
    )
    np.testing.assert_allclose(ours["road_least"] - one.probability, least, atol=1e-4)
    np.testing.assert_allclose(ours["road_most"] - one.probability, most, atol=1e-4)
    np.testing.assert_allclose(ours["road"], ROADCombined()(*arguments), atol=1e-4)
    assert ours["road"].abs().min() > 0.01


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("turned", [False, True])
def test_arcc_is_the_peers(turned: bool) -> None:
    """Where ROAD is negative both cut it at 0, and with it ARCC."""
    one, images, saliency, targets, model = example()
    if turned:
        one.saliency = saliency = 1 - saliency
    again = one.explain_again(images)[1]
    peer = ARCC(lambda input_tensor, targets: again.numpy())
    expected = peer(images, saliency.numpy(), targets, model)
    found = METRICS["arcc"].function(one)["arcc"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    road = ROADCombined([20, 40, 60, 80])(images, saliency.numpy(), targets, model)
    assert ((found == 0).numpy() == (road <= 0)).all()


def test_opposite_maps_have_opposite_scores() -> None:
    """But for the noise. So any drawn order has an expectation of 0."""
    one, images, saliency, *_ = example()
    found, opposite = (
        METRICS["road"].function(subject(images, maps, one.score))["road"]
        for maps in (saliency, 1 - saliency)
    )
    torch.testing.assert_close(found, -opposite, atol=5e-3, rtol=0)


def test_passes() -> None:
    """18 of ROAD; ARCC's eight are among them, and adcc has the masked image."""
    one, *_ = example()
    passes = 0
    plain = one.score

    def score(images: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return plain(images)

    def fresh() -> Subject:
        nonlocal passes
        made = subject(one.images, one.saliency, score, one.saliency)
        passes = 0
        return made

    METRICS["road"].function(fresh())
    assert passes == 18
    METRICS["arcc"].function(fresh())
    assert passes == 8 + 1
    together = fresh()
    for name in ("arcc", "road", "adcc"):
        METRICS[name].function(together)
    assert passes == 18 + 2
