"""CAM, AblationCAM, ScoreCAM and LIFT-CAM, against other people's code, values by hand, and the slow way."""

from __future__ import annotations

import pytest
import torch
from networks import Net
from tiny import Headed, TinyNet, maps, noise, saliency, seeded, trace
from torch import nn

from camkit.entries import METHODS, UTILITIES
from camkit.errors import CamkitError
from camkit.methods import channels

IMAGES = 3 * noise(2, 3, 8, 6, seed=1)


def strong() -> nn.Module:
    """A network whose logits differ from image to image."""
    model = Net()
    for parameter in model.parameters():
        parameter.data *= 3
    return model


A = torch.tensor(
    [[[[1.0, 3.0]], [[2.0, -1.0]]], [[[0.0, -4.0]], [[5.0, 1.0]]]]
)  # two channels, a grid of 1 x 2


def by_hand(utility: str = "logit", **options: object) -> object:
    """Logits of GAP(A) = (2, 0.5) and (-2, 3): (2, 5) and (-2, 3) times (1, 1), (0, 2) ..."""
    linear = nn.Linear(2, 2)
    linear.weight.data, linear.bias.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([0.5, 0.25])
    return trace(
        Headed(nn.Identity(), lambda a: linear(a.mean(dim=(2, 3)))),
        A,
        utility=utility,
        target=[0, 1],
        **options,
    )


@pytest.fixture(params=["closed", "slow"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "slow":
        monkeypatch.setattr("camkit.network.trace.linear_head", lambda *_: "no")
    return request.param


class TestCam:
    def test_by_hand(self) -> None:
        """Two channels, one of them negative, on a grid of 1 x 2, for two images and classes."""
        linear = nn.Linear(2, 3)
        linear.weight.data = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.0]])
        model = Headed(nn.Identity(), lambda a: linear(a.mean(dim=(2, 3))))
        images = torch.tensor([[[[1.0, 3.0]], [[2.0, -1.0]]], [[[0.0, -4.0]], [[5.0, 1.0]]]])
        found = maps("cam", trace(model, images, target=[0, 1]))
        torch.testing.assert_close(found, torch.tensor([[[-3.0, 5.0]], [[15.0, 1.0]]]), rtol=1e-4, atol=1e-4)

    @pytest.mark.peers
    def test_torchcams(self) -> None:
        pytest.importorskip("torchcam")
        traced = trace(seeded(Net), IMAGES, "act", "rest")
        torch.testing.assert_close(maps("cam", traced), maps("torchcam:CAM", traced), rtol=1e-4, atol=1e-5)

    def test_it_is_gradcam_of_the_logit_times_the_positions(self) -> None:
        traced = trace(seeded(Net), IMAGES, "act", "logit")
        torch.testing.assert_close(maps("cam", traced), 48 * maps("gradcam", traced), rtol=1e-4, atol=1e-5)

    def test_another_head_is_refused(self) -> None:
        lacks = METHODS["cam"].lacks
        traced = trace(seeded(Net), noise(2, 3, 8, 6), "last")
        assert lacks(traced.network, "act") == ""
        assert "not linear" in lacks(traced.network, "last")
        with pytest.raises(CamkitError, match="not linear"):
            maps("cam", traced)


class TestAblation:
    def test_by_hand(self, way: str) -> None:
        """What a channel adds to the logit: W GAP(A): (2, -1) for class 0, (-6, 12) for class 1."""
        expected = torch.tensor([[[2.0 - 2, 6.0 + 1]], [[60.0, 24.0 + 12]]])
        torch.testing.assert_close(maps("ablationcam", by_hand()), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("utility", UTILITIES)
    def test_the_closed_form_is_the_slow_way(self, utility: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(channels, "CHUNK", 3 * 2 * 1000)  # three channels at once, of sixteen
        images = noise(2, 3, 48, 96)
        closed, slow = (trace(seeded(TinyNet), images, "features.5", utility) for _ in range(2))
        found = maps("ablationcam", closed)
        assert (closed.network.passes, closed.network.head_passes) == (1, 0)
        monkeypatch.setattr("camkit.network.trace.linear_head", lambda *_: "no")
        expected = maps("ablationcam", slow)
        assert (slow.network.passes, slow.network.head_passes) == (1, 16)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
        assert expected.abs().max() > (1e-3 if utility == "softmax" else 0.1)

    @pytest.mark.peers
    def test_grad_cams_behind_a_relu(self) -> None:
        """Where an activation is negative, grad-cam sets it to the least less 1e7, and not to 0."""
        pytest.importorskip("pytorch_grad_cam")
        traced = trace(seeded(strong), IMAGES, "block", "rest", target=lambda y: y.argmax(dim=1))
        assert traced.activation.min() == 0
        assert traced.utility(traced.logits, traced.target).min() > -20
        found = saliency("ablationcam", traced)
        torch.testing.assert_close(found, peer_ablation(traced), rtol=1e-3, atol=1e-3)
        assert found.std() > 0.1


def peer_ablation(traced: object) -> torch.Tensor:
    """grad-cam's saliency; it divides by the utility, so that of a negative one its map is turned over."""
    positive = lambda logits, target, u=traced.utility: u(logits, target) + 100  # noqa: E731
    again = trace(traced.network.model, traced.images, traced.layer, positive, traced.target)
    return maps("grad_cam:AblationCAM", again)


class TestScore:
    @pytest.mark.parametrize("utility", ["rest", "logit"])
    @pytest.mark.peers
    def test_torchcams(self, utility: str) -> None:
        """On a layer of the image's size, where resizing and scaling can change places."""
        pytest.importorskip("torchcam")
        traced = trace(seeded(strong), IMAGES, "block", utility)
        passes = traced.network.passes
        found = maps("scorecam", traced)
        assert traced.network.passes == passes + 6
        torch.testing.assert_close(found.relu(), maps("torchcam:ScoreCAM", traced), rtol=1e-4, atol=1e-5)
        assert found.std() > 0.1

    @pytest.mark.peers
    def test_grad_cams_on_a_smaller_layer(self) -> None:
        """It resizes with other corners: the maps are close, the formula is the same."""
        pytest.importorskip("pytorch_grad_cam")
        traced = trace(seeded(TinyNet), noise(2, 3, 64, 96), "features.5", "logit")
        found, expected = saliency("scorecam", traced), maps("grad_cam:ScoreCAM", traced)
        assert nn.functional.cosine_similarity(found.flatten(1), expected.flatten(1)).min() > 0.9

    def test_the_strongest_channels_are_those_that_vary_most(self) -> None:
        traced = trace(seeded(strong), IMAGES, "block", "logit")
        spread = traced.activation.flatten(2).std(dim=2)
        chosen = spread.argsort(dim=1, descending=True)[:, :2]
        scores = []
        for place in range(2):
            channel = traced.activation[torch.arange(2), chosen[:, place]]
            mask = channel - channel.amin(dim=(1, 2), keepdim=True)
            mask = mask / mask.amax(dim=(1, 2), keepdim=True)
            scores.append(traced.utility(traced.network.model(IMAGES * mask[:, None]), traced.target))
        weights = torch.stack(scores, dim=1).softmax(dim=1)
        expected = sum(
            weights[:, place, None, None] * traced.activation[torch.arange(2), chosen[:, place]]
            for place in range(2)
        )
        fewer = trace(seeded(strong), IMAGES, "block", "logit", channels=2)
        torch.testing.assert_close(maps("scorecam", fewer), expected, rtol=1e-4, atol=1e-5)
        assert fewer.network.passes == 1 + 2
        assert (expected - maps("scorecam", traced)).abs().max() > 0.01

    def test_more_channels_than_there_are_is_all(self) -> None:
        both = [maps("scorecam", trace(seeded(strong), IMAGES, "block", channels=n)) for n in (None, 6, 50)]
        assert torch.equal(both[0], both[1])
        assert torch.equal(both[0], both[2])


class TestLift:
    def test_by_hand(self, way: str) -> None:
        """Of a linear head the contributions are what AblationCAM finds."""
        expected = torch.tensor([[[0.0, 7.0]], [[60.0, 36.0]]])
        traced = by_hand("rest")  # the logit whatever the utility
        torch.testing.assert_close(maps("liftcam", traced), expected, rtol=1e-4, atol=1e-4)
        assert traced.network.head_passes == (2 if way == "slow" else 0)

    @pytest.mark.peers
    def test_captums_contributions_weigh_the_channels(self) -> None:
        captum = pytest.importorskip("captum.attr")
        model = seeded(strong)
        traced = trace(model, IMAGES, "last")
        parts = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classify)
        activation = traced.activation.clone().requires_grad_()
        with pytest.warns(UserWarning, match="Setting forward, backward hooks"):
            peer = captum.DeepLift(parts)
            found = peer.attribute(activation, torch.zeros_like(activation), traced.target).detach()
        weights = found.sum(dim=(2, 3), keepdim=True)
        expected = (weights * traced.activation).sum(dim=1)
        torch.testing.assert_close(maps("liftcam", traced), expected, rtol=1e-4, atol=1e-4)
        assert traced.network.head_passes == 2

    def test_what_has_no_rule_is_refused(self) -> None:
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 3))
        traced = trace(Headed(nn.Conv2d(3, 4, 2), head), IMAGES)
        lacks = METHODS["liftcam"].lacks
        assert lacks(traced.network, "features").endswith("no elementwise module: LayerNorm")
        assert lacks(trace(seeded(strong), IMAGES, "last").network, "last") == ""
