"""Smooth GradCAM++, Expected Grad-CAM, FinerCAM and FullGrad, against other people's code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import Net
from tiny import Headed, TinyNet, maps, noise, saliency, seeded, trace
from torch import Tensor, nn

from camkit.entries import METHODS, UTILITIES
from camkit.methods import gradient

IMAGES = 3 * noise(2, 3, 8, 6, seed=1)


def strong() -> nn.Module:
    """A network whose logits differ from image to image."""
    model = Net()
    for parameter in model.parameters():
        parameter.data *= 3
    return model


class Pooled(nn.Module):
    """Pooling, then a small network: the gradient is the same at all positions of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, images: Tensor) -> Tensor:
        return 500 * self.head(self.features(images).mean(dim=(2, 3)))


class TestSmooth:
    def test_without_noise_it_is_gradcam_plus_plus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gradient, "NOISE_SIGMA", 0)
        traced = trace(seeded(strong), IMAGES, "block")
        torch.testing.assert_close(maps("smoothgradcam++", traced), maps("gradcam++", traced))

    def test_it_is_gradcam_plus_plus_of_the_mean_powers_over_noisy_images(self) -> None:
        model = seeded(strong)
        traced = trace(model, IMAGES, "block", "logit", ids=["a", "b"], seed=7, target=[2, 0])
        total = traced.activation.sum(dim=(2, 3), keepdim=True)
        powers = [[], [], []]
        for sample in range(4):
            noisy = (IMAGES + 0.3 * gradient._noise(traced, sample)).requires_grad_()
            maps_of_noisy = []
            handle = model.block.register_forward_hook(lambda _, __, out: maps_of_noisy.append(out))  # noqa: B023
            logits = model(noisy)
            handle.remove()
            (found,) = torch.autograd.grad(logits[0, 2] + logits[1, 0], maps_of_noisy)
            for order in range(3):
                powers[order].append(found ** (order + 1))
        first, second, third = (torch.stack(one).mean(dim=0) for one in powers)
        alpha = second / (2 * second + total * third + 1e-6)
        weights = (alpha * first.relu()).sum(dim=(2, 3), keepdim=True)
        expected = (weights * traced.activation).sum(dim=1)
        passes = traced.network.passes
        torch.testing.assert_close(maps("smoothgradcam++", traced), expected, rtol=1e-4, atol=1e-6)
        assert traced.network.passes == passes + 4

    @pytest.mark.peers
    def test_torchcams_weights_on_the_same_noise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One sample, since torchcam weighs by the last one's gradient alone, not by the mean of all.

        It then multiplies them by the activation of the last noisy image, not by that of the image.
        """
        torchcam = pytest.importorskip("torchcam.methods")
        monkeypatch.setattr(gradient, "NOISE_SAMPLES", 1)
        model = seeded(Pooled)
        traced = trace(model, IMAGES, "features", "logit", target=[2, 0])
        found = maps("smoothgradcam++", traced)
        with torchcam.SmoothGradCAMpp(model, model.features, num_samples=1) as peer, torch.enable_grad():
            drawn = 0.3 * gradient._noise(traced, 0)
            monkeypatch.setattr(peer._distrib, "sample", lambda size: drawn)
            model(IMAGES)
            (weights,) = peer._get_weights([2, 0])
        expected = (weights[:, :, None, None] * traced.activation).sum(dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert expected.amax(dim=(1, 2)).min() > 1e-2

    def test_the_noise_is_the_images_own(self) -> None:
        def draw(ids: list[str], seed: int = 0, again: int = 0) -> Tensor:
            images = IMAGES[:1].expand(len(ids), -1, -1, -1)
            return maps(
                "smoothgradcam++", trace(seeded(strong), images, "block", ids=ids, seed=seed, draw=again)
            )

        first = draw(["a", "b"])
        assert not torch.equal(first[0], first[1])
        torch.testing.assert_close(first, draw(["b", "a"]).flip(0))
        torch.testing.assert_close(first[:1], draw(["a"]))
        for other in (draw(["a", "b"], seed=1), draw(["a", "b"], again=1)):
            assert (first - other).abs().max() > 1e-4


class TestExpected:
    @pytest.mark.peers
    def test_captums_gradient_shap_of_the_layer_on_the_same_draws(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The peer draws one sample of one image: what camkit drew for it."""
        captum = pytest.importorskip("captum.attr")
        monkeypatch.setattr(gradient, "EXPECTED_SAMPLES", 3)
        model = seeded(strong)
        traced = trace(model, IMAGES, "block", "logit", ids=["a", "b"], seed=7, target=[2, 0])
        found = maps("expected-gradcam", traced)
        assert traced.network.passes == 1 + 3
        peer = captum.LayerGradientShap(model, model.block, multiply_by_inputs=False)
        weights = torch.zeros(2, 6)
        for place, target in enumerate([2, 0]):
            image = IMAGES[place : place + 1].clone().requires_grad_()
            for sample in range(3):
                drawn = gradient._noise(traced, sample)[place : place + 1]
                baseline = gradient._noise(traced, sample, "baseline")[place : place + 1]
                step = gradient._drawn(torch.rand, traced, (1, 1, 1), "place", sample)[place].item()
                monkeypatch.setattr(torch, "normal", lambda *_, drawn=drawn: 0.3 * drawn)
                monkeypatch.setattr(np.random, "uniform", lambda *_, step=step: np.array([step]))
                one = peer.attribute(image, baseline, n_samples=1, stdevs=0.3, target=target)
                weights[place] += one.detach().mean(dim=(2, 3))[0] / 3
        expected = (weights[:, :, None, None] * traced.activation).sum(dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (found - maps("gradcam", traced)).abs().max() > 0.05 * found.abs().max()

    def test_of_a_linear_head_it_is_gradcam(self) -> None:
        """The gradient is then the same at every image."""
        traced = trace(seeded(strong), IMAGES, "act", "logit")
        torch.testing.assert_close(
            maps("expected-gradcam", traced), maps("gradcam", traced), rtol=1e-4, atol=1e-5
        )

    def test_the_draws_are_the_images_own(self) -> None:
        def draw(ids: list[str], seed: int = 0, again: int = 0) -> Tensor:
            images = IMAGES[:1].expand(len(ids), -1, -1, -1)
            return maps(
                "expected-gradcam", trace(seeded(strong), images, "block", ids=ids, seed=seed, draw=again)
            )

        first = draw(["a", "b"])
        assert (first[0] - first[1]).abs().max() > 1e-4
        torch.testing.assert_close(first, draw(["b", "a"]).flip(0))
        torch.testing.assert_close(first[:1], draw(["a"]))
        for other in (draw(["a", "b"], seed=1), draw(["a", "b"], again=1)):
            assert (first - other).abs().max() > 1e-4


class TestFiner:
    def test_the_references_are_the_classes_of_the_nearest_directions(self) -> None:
        model = seeded(TinyNet)
        traced = trace(model, noise(2, 3, 64, 96), "features.5", target=[17, 3], references=4)
        weight = model.fc.weight.detach().numpy()
        unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
        for target, found in zip([17, 3], gradient._similar_classes(traced).tolist(), strict=True):
            order = np.argsort(-(unit @ unit[target]))
            assert order[0] == target
            assert found == order[1:5].tolist()

    def test_there_are_no_more_references_than_other_classes(self) -> None:
        traced = trace(seeded(strong), IMAGES, "act", target=[0, 3], references=9)
        found = [sorted(one) for one in gradient._similar_classes(traced).tolist()]
        assert found == [[1, 2, 3], [0, 1, 2]]

    @pytest.mark.parametrize("utility", UTILITIES)
    def test_it_is_gradcam_of_the_difference(self, utility: str) -> None:
        traced = trace(
            seeded(Net), IMAGES, "block", utility, target=[2, 0], references=2, reference_weight=0.25
        )
        function = UTILITIES[utility].function
        references = gradient._similar_classes(traced)

        def contrast(logits: Tensor, target: Tensor) -> Tensor:
            one, other = (function(logits, references[:, place]) for place in range(2))
            return function(logits, target) - 0.25 * (one + other) / 2

        expected = maps("gradcam", trace(seeded(Net), IMAGES, "block", contrast, target=[2, 0]))
        found = maps("finercam", traced)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
        assert (found - maps("gradcam", traced)).abs().max() > 0.05 * found.abs().max()
        traced.options = replace(traced.options, reference_weight=0.0)
        torch.testing.assert_close(maps("finercam", traced), maps("gradcam", traced), rtol=1e-4, atol=1e-7)

    @pytest.mark.peers
    def test_torchcams_with_the_same_references(self) -> None:
        torchcam = pytest.importorskip("torchcam.methods")
        model = seeded(strong)
        traced = trace(model, IMAGES, "block", "logit", target=[2, 0], references=2)
        references = gradient._similar_classes(traced).tolist()
        images = IMAGES.clone().requires_grad_()
        with torchcam.FinerCAM(model, model.block) as peer:
            (expected,) = peer([2, 0], model(images), references, normalized=False)
        assert peer.gamma == traced.options.reference_weight
        torch.testing.assert_close(maps("finercam", traced).relu(), expected, rtol=1e-4, atol=1e-6)
        assert expected.max() > 1e-3

    def test_a_network_without_a_linear_classifier_is_refused(self) -> None:
        traced = trace(Headed(nn.Conv2d(3, 4, 2), lambda a: 2 * a.mean(dim=(2, 3))), IMAGES)
        assert "no linear layer gives the logits" in METHODS["finercam"].lacks(traced.network, "features")


class WithBiases(nn.Module):
    """What grad-cam's FullGrad knows: convolutions and batch norms; the classifier has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.second = nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.last = nn.Linear(6, 4, bias=False)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.bias)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.second(self.act(self.norm(self.first(images))))
        return self.last(self.act(maps).mean(dim=(2, 3)))


class TestFullGrad:
    @pytest.mark.parametrize("utility", ["logit", "rest"])
    @pytest.mark.peers
    def test_grad_cams(self, utility: str) -> None:
        pytest.importorskip("pytorch_grad_cam")
        traced = trace(seeded(WithBiases), IMAGES, "second", utility)
        passes = traced.network.passes
        found = saliency("fullgrad", traced)
        assert traced.network.passes == passes + 1
        torch.testing.assert_close(found, maps("grad_cam:FullGrad", traced), rtol=1e-3, atol=1e-3)
        assert found.std() > 0.1

    def test_it_sees_no_layer(self) -> None:
        model = seeded(WithBiases)
        first, second = (saliency("fullgrad", trace(model, IMAGES, layer)) for layer in ("first", "second"))
        assert torch.equal(first, second)
