"""Every map that the `grad-cam` package offers, on three CNNs of the twelve with random weights.

The peer differentiates the whole network and works in NumPy; nothing of it is shared with camkit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import pytorch_grad_cam as peer
import torch
from tiny import Given, maps, noise, saliency, trace
from torch import Tensor, nn

from camkit.entries import METHODS
from camkit.network.layers import find_module
from camkit.network.loading import load_model
from camkit.network.random import calibrate

pytestmark = pytest.mark.peers

PEERS = {
    "gradcam": peer.GradCAM,
    "gradcam++": peer.GradCAMPlusPlus,
    "xgradcam": peer.XGradCAM,
    "layercam": peer.LayerCAM,
    "gradcam-e": peer.GradCAMElementWise,
    "hirescam": peer.HiResCAM,
    "shapleycam": peer.ShapleyCAM,
}
UTILITIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "logit": lambda y, c: y[c],
    "softmax": lambda y, c: torch.exp(y[c] - torch.logsumexp(y, 0)),
    "log-softmax": lambda y, c: y[c] - torch.logsumexp(y, 0),
    "rest": lambda y, c: 2 * y[c] - torch.logsumexp(y, 0),
}
SHARING = tuple(name for name in PEERS if name != "shapleycam")
MODELS = ("resnet18", "mobilenet_v2", "efficientnet_b0")
SIDE = 96


@dataclass(frozen=True)
class Pair:
    """One network twice: as camkit has it (frozen, hooked for a trace), and as the peer wants it."""

    ours: nn.Module
    theirs: nn.Module
    layers: dict[str, str]
    images: Tensor
    target: Tensor


@cache
def pair(name: str) -> Pair:
    loaded = load_model(name, "random", seed=3)
    model = loaded.model
    images = noise(2, 3, SIDE, SIDE, seed=5)
    calibrate(model, noise(8, 3, SIDE, SIDE, seed=6))
    with torch.no_grad():  # probabilities away from 1/1000, so that no utility is flat
        logits = model(images)
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        head.weight *= 12 / (logits.amax(dim=1) - logits.mean(dim=1)).mean()
        target = model(images).argmax(dim=1)
    theirs = copy.deepcopy(model)
    for parameter in theirs.parameters():
        parameter.requires_grad_(parameter.ndim == 2)  # the head: the peer wants some graph behind G
    for module in theirs.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    layers = {"conv": str(loaded.row.conv), "prepool": str(loaded.row.prepool)}
    return Pair(model, theirs, layers, images, target)


def peer_maps(both: Pair, layer: str, utility: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of every method: the peer's signed maps (B, h, w) and saliency maps (B, H, W).

    ShapleyCAM runs as it is. The other methods share one pass of the peer, which costs far more than ours.
    """
    module = find_module(both.theirs, both.layers[layer])
    targets = [lambda y, c=int(c): UTILITIES[utility](y, c) for c in both.target]
    found = {}
    with peer.ShapleyCAM(model=both.theirs, target_layers=[module]) as cam:
        signed = spied(cam)
        finished = cam(input_tensor=both.images.clone(), targets=targets)
        found["shapleycam"] = (signed[0], finished)
    with peer.GradCAM(model=both.theirs, target_layers=[module]) as first:
        first(input_tensor=both.images.clone().requires_grad_(), targets=targets)
        recorded = first.activations_and_grads
        for method in SHARING:
            with idle(method) as cam:
                cam.activations_and_grads.activations = list(recorded.activations)
                cam.activations_and_grads.gradients = list(recorded.gradients)
                signed = spied(cam)
                layers = cam.compute_cam_per_layer(both.images, targets, eigen_smooth=False)
                found[method] = (signed[0], cam.aggregate_multi_layers(layers))
    return found


def idle(method: str) -> peer.base_cam.BaseCAM:
    """The peer's method on no network: its formula and post-processing."""
    module = nn.Linear(1, 1)
    return PEERS[method](model=module, target_layers=[module])


def spied(cam: peer.base_cam.BaseCAM) -> list[np.ndarray]:
    """A list that fills with the peer's maps before their post-processing."""
    signed: list[np.ndarray] = []
    compute = cam.get_cam_image

    def keep(*arguments: object, **options: object) -> np.ndarray:
        signed.append(compute(*arguments, **options))
        return signed[-1]

    cam.get_cam_image = keep
    return signed


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("layer", ["conv", "prepool"])
@pytest.mark.parametrize("name", MODELS)
def test_maps(name: str, layer: str, utility: str) -> None:
    both = pair(name)
    traced = trace(both.ours, both.images, both.layers[layer], utility, both.target)
    for method, (signed, finished) in peer_maps(both, layer, utility).items():
        if (method, layer) == ("xgradcam", "conv"):
            continue  # divides by sums of A near zero: the next test holds its formula
        ours = maps(method, traced).numpy()
        scale = np.abs(signed).max(axis=(1, 2), keepdims=True)
        assert (scale > 0).all()
        np.testing.assert_allclose(ours / scale, signed / scale, rtol=0, atol=2e-4, err_msg=method)
        np.testing.assert_allclose(saliency(method, traced), finished, rtol=0, atol=5e-4, err_msg=method)


@pytest.mark.parametrize("method", SHARING)
def test_formulas_on_the_same_activation_and_gradient(method: str) -> None:
    """In float64, so that even XGradCAM's division by a small sum leaves ten digits."""
    activation = noise(2, 6, 4, 5, seed=1).double()
    gradient = noise(2, 6, 4, 5, seed=2).double() * 0.1
    gradient[0, 0] = 0  # a channel without gradient: GradCAM++ sets its alpha to 0
    gradient[1, 2, :2] = 0
    ours = METHODS[method].function(Given(activation, gradient, torch.zeros_like(gradient)))
    with idle(method) as cam:
        theirs = cam.get_cam_image(None, None, None, activation.numpy(), gradient.numpy(), False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


def test_the_hessian_matters_here() -> None:
    """The comparison above could not tell ShapleyCAM from GradCAM if HA were 0."""
    both = pair("resnet18")
    traced = trace(both.ours, both.images, both.layers["conv"], "rest", both.target)
    difference = saliency("shapleycam", traced) - saliency("gradcam", traced)
    assert difference.abs().amax(dim=(1, 2)).max() > 0.02
