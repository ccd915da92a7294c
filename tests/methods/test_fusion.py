"""One map of several layers: the fusion by hand, its two methods against other packages, and any method."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from tiny import CPU, TinyNet, maps, noise, seeded, trace
from torch import Tensor, nn
from torch.nn import functional as F

from camkit.entries import METHODS, Method
from camkit.methods.fusion import at_layer, fuse
from camkit.methods.saliency import min_max, to_saliency
from camkit.network.passes import Network
from camkit.runs.guard import make_maps

SIZE = (64, 96)
LAYERS = "features.2+features.5"


class Net(nn.Module):
    """Three stages."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), activation())
        self.layer2 = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), activation())
        self.layer3 = nn.Sequential(nn.Conv2d(8, 10, 3, stride=2, padding=1), activation())
        self.fc = nn.Linear(10, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer3(self.layer2(self.layer1(images))).mean(dim=(2, 3)))


STAGES = ("layer1", "layer2", "layer3")


def blurred(maps: Tensor) -> Tensor:
    """Each channel (h, w), blurred by a Gaussian: a quarter of the side is its standard deviation.

    At the border the weights of what is there sum to 1.
    """
    sigmas = (0, 0, maps.shape[2] / 4, maps.shape[3] / 4)
    whole, weights = (
        scipy.ndimage.gaussian_filter(values, sigmas, mode="constant", truncate=8)
        for values in (maps.double().numpy(), np.ones(maps.shape))
    )
    return torch.from_numpy(whole / weights).float()


class TestFuse:
    def test_by_hand(self) -> None:
        """Two grids, with negatives: each over its maximum, tanh(2 x), resized, then the larger one."""
        coarse = torch.tensor([[[4.0, -3.0]], [[0.0, 1.0]]])  # (2, 1, 2)
        fine = torch.tensor([[[1.0, 0.0, -2.0, 0.5]], [[-1.0, -1.0, -1.0, -1.0]]])  # (2, 1, 4)
        found = fuse([coarse, fine], (1, 4))
        one, half = math.tanh(2), math.tanh(1)
        # Halfway between half-pixel centres the resize takes 3/4 and 1/4 of the neighbours.
        first = torch.tensor([max(one, one), max(0.75 * one, 0), max(0.25 * one, 0), max(0, half)])
        second = torch.tensor([0, 0.25 * one, 0.75 * one, one])
        for row, expected in zip(found[:, 0], (first, second), strict=True):
            torch.testing.assert_close(row, (expected - expected.min()) / (expected.max() - expected.min()))

    def test_the_scale_of_a_layer_does_not_matter(self) -> None:
        one, other = noise(2, 3, 4), noise(2, 6, 8, seed=1)
        torch.testing.assert_close(fuse([one, other], SIZE), fuse([1e6 * one, 1e-6 * other], SIZE))

    def test_the_order_of_the_layers_does_not_matter(self) -> None:
        one, other = noise(2, 3, 4), noise(2, 6, 8, seed=1)
        assert torch.equal(fuse([one, other], SIZE), fuse([other, one], SIZE))

    def test_an_image_with_a_value_that_is_not_finite_is_empty_and_no_other(self) -> None:
        one, other = noise(2, 3, 4), noise(2, 6, 8, seed=1)
        whole = fuse([one, other], SIZE)
        other[1, 0, 0] = torch.nan
        found = fuse([one, other], SIZE)
        assert torch.equal(found[0], whole[0])
        assert (found[1] == 0).all()

    def test_maps_that_are_nowhere_positive_are_empty(self) -> None:
        assert (fuse([-noise(1, 3, 4).abs(), -noise(1, 6, 8).abs()], SIZE) == 0).all()


@pytest.mark.peers
def test_layercam_fusion_is_torchcams() -> None:
    """Which scales each map to [0, 1] first; the ReLU's 0 is the minimum of every map here."""
    from torchcam.methods import LayerCAM

    model, images = seeded(Net), noise(2, 3, *SIZE)
    traced = trace(model, images, "layer3", "logit", (1, 3), uses=("stages",))
    assert traced.network.stages == STAGES
    found = maps("layercam-fusion", traced)
    with torch.enable_grad(), LayerCAM(model.requires_grad_(True), list(STAGES)) as extractor:
        scores = model(images)
        cams = extractor([1, 3], scores)
        expected = extractor.fuse_cams(cams, SIZE)
    assert all(cam.flatten(1).amin(dim=1).max() == 0 for cam in cams)
    torch.testing.assert_close(found, min_max(expected.detach()), rtol=1e-4, atol=1e-5)


@pytest.mark.peers
def test_refinecam_is_grad_cams() -> None:
    """Its alpha counts on activations that are not negative, as they are here; sums of G > 0, too."""
    from pytorch_grad_cam import RefineCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = seeded(Net), noise(2, 3, *SIZE)
    found = maps("refinecam", trace(model, images, "layer3", "logit", (1, 3), uses=("stages",)))
    layers = [model.get_submodule(name) for name in STAGES]
    targets = [ClassifierOutputTarget(1), ClassifierOutputTarget(3)]
    with torch.enable_grad():
        expected = RefineCAM(model.requires_grad_(True), layers)(images, targets)
    assert np.std(expected) > 0.01
    # OpenCV resizes with eleven bits.
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=5e-3)


class TestAnyMethodAtSeveralLayers:
    @pytest.mark.parametrize("name", ["gradcam", "shapleycam", "xgradcam", "eigencam", "aumann-2"])
    def test_is_the_fusion_of_its_maps(self, name: str) -> None:
        model, images = seeded(lambda: TinyNet(5)), noise(2, 3, *SIZE)
        entry = at_layer(METHODS[name], LAYERS)
        assert entry.saliency
        assert (entry.name, entry.title) == (name, METHODS[name].title)
        found = make_maps(entry, trace(model, images, LAYERS))[1]
        single = [maps(name, trace(model, images, layer)) for layer in LAYERS.split("+")]
        assert single[0].shape != single[1].shape
        torch.testing.assert_close(found, fuse(single, SIZE), rtol=1e-4, atol=1e-5)

    def test_a_name_of_one_layer_leaves_it_as_it_is(self) -> None:
        entry = METHODS["gradcam"]
        assert at_layer(entry, "features") is entry
        assert at_layer(entry, "features+features") is entry

    @pytest.mark.parametrize("name", ["flat", "rollout", "refinecam", "occlusion"])
    def test_a_method_that_is_not_of_one_layer_stays_as_it_is(self, name: str) -> None:
        assert at_layer(METHODS[name], LAYERS) is METHODS[name]

    def test_what_a_layer_lacks_is_said(self) -> None:
        network = Network(seeded(lambda: TinyNet(5)), CPU)
        network.expect(noise(1, 3, *SIZE))
        entry = at_layer(METHODS["cam"], "features.5+features.2")
        assert entry.lacks is not None
        assert "is not linear" in entry.lacks(network, "features.5+features.2")
        assert METHODS["cam"].lacks(network, "features.5") == ""

    def test_of_a_method_without_a_reason(self) -> None:
        entry = at_layer(METHODS["gradcam"], LAYERS)
        assert entry.lacks is not None
        assert entry.lacks(None, LAYERS) == ""

    def test_a_plugin_gets_copies_of_each_layer(self) -> None:
        def spoil(traced) -> Tensor:
            activation = traced.activation
            maps = activation.sum(dim=1)
            activation.zero_()
            return maps

        entry = at_layer(Method("spoil", spoil, "", (), "", source_file="plugin.py"), LAYERS)
        traced = trace(seeded(lambda: TinyNet(5)), noise(2, 3, *SIZE), LAYERS)
        first = make_maps(entry, traced)[1]
        assert torch.equal(make_maps(entry, traced)[1], first)
        assert first.amax() > 0.9


class TestStages:
    def test_named_layers_take_the_place_of_the_stages(self) -> None:
        model, images = seeded(Net), noise(2, 3, *SIZE)
        traced = trace(model, images, "layer1+layer3")
        for name in ("layercam-fusion", "refinecam"):
            assert METHODS[name].lacks(traced.network, "layer1+layer3") == ""
        layercam = [maps("layercam", trace(model, images, layer)) for layer in ("layer1", "layer3")]
        torch.testing.assert_close(
            maps("layercam-fusion", traced), fuse(layercam, SIZE), rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize("name", ["layercam-fusion", "refinecam"])
    def test_whatever_single_layer_is_named(self, name: str) -> None:
        model, images = seeded(Net), noise(2, 3, *SIZE)
        first, second = (
            maps(name, trace(model, images, layer, uses=("stages",))) for layer in ("layer2", "layer3.0")
        )
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["layercam-fusion", "refinecam"])
    def test_a_model_with_one_stage_is_refused(self, name: str) -> None:
        network = Network(nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(4 * 96, 3)), CPU)
        network.logits(noise(1, 3, *SIZE))
        assert "several stages" in METHODS[name].lacks(network, "0")

    def test_one_gradient_per_stage_and_no_further_pass(self) -> None:
        traced = trace(seeded(Net), noise(2, 3, *SIZE), "layer3", uses=("stages",))
        passes = traced.network.passes
        maps("layercam-fusion", traced)
        maps("refinecam", traced)
        assert (traced.network.passes, traced.network.head_passes) == (passes, 0)


class TestAumannFusion:
    def test_where_all_is_linear_by_hand(self) -> None:
        """The path's gradient is that at A, and the map sums to u(A) - u(A0) without completion."""
        model = seeded(lambda: Net(nn.Identity))
        images, target = noise(2, 3, *SIZE), torch.tensor([1, 3])
        first = model.layer1(images)
        outputs = {"layer1": first, "layer3": model.layer3(model.layer2(first))}
        rests = {
            "layer1": lambda maps: model.fc(model.layer3(model.layer2(maps)).mean(dim=(2, 3))),
            "layer3": lambda maps: model.fc(maps.mean(dim=(2, 3))),
        }
        made = {}
        for name, rest in rests.items():
            activation = outputs[name].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(rest(activation)[range(2), target].sum(), activation)
            activation = activation.detach()
            made[name] = gradient * activation, gradient * (activation - blurred(activation))
        fine, coarse, gate = (
            F.interpolate(maps.sum(dim=1, keepdim=True), SIZE, mode="bilinear")[:, 0]
            for maps in (made["layer1"][1], made["layer3"][1], made["layer3"][0])
        )
        assert all((one < 0).any() and (one > 0).any() for one in (fine, coarse, gate))
        found = maps("aumann-fusion", trace(model, images, "layer1+layer3", "logit", target))
        expected = to_saliency((fine + coarse) * gate.relu(), SIZE)
        assert (expected.amax(dim=(1, 2)) > 0.9).all()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_absent_does_not_change_it(self) -> None:
        model, images = seeded(Net), noise(2, 3, *SIZE)
        first, second = (
            maps("aumann-fusion", trace(model, images, "layer2+layer3", absent=absent))
            for absent in ("zero", "mean")
        )
        assert torch.equal(first, second) and (first.amax(dim=(1, 2)) > 0.9).all()

    def test_two_gradients_on_the_path_and_one_pass_per_layer(self) -> None:
        traced = trace(seeded(Net), noise(2, 3, *SIZE), "layer2+layer3")
        passes = traced.network.passes
        maps("aumann-fusion", traced)
        assert (traced.network.passes - passes, traced.network.head_passes) == (0, 6)

    def test_a_single_layer_is_refused(self) -> None:
        assert "--layer 'a+b'" in METHODS["aumann-fusion"].lacks(None, "layer3")
        assert METHODS["aumann-fusion"].lacks(None, "layer2+layer3") == ""
