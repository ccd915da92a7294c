"""The maps that scripts/conform.py sets side by side: who has a method, and the formulas that were found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from camkit.api import Prepared
from camkit.config import MethodOptions
from camkit.entries import METHODS, UTILITIES
from camkit.methods.saliency import min_max, to_saliency
from camkit.network.trace import Trace
from camkit.runs.cells import what_is_lacking
from camkit.runs.guard import make_maps

# Method -> package -> its class, called by camkit's adapter.
PEERS = {
    "cam": {"torchcam": "CAM"},
    "gradcam": {"grad-cam": "GradCAM", "torchcam": "GradCAM", "captum": "LayerGradCam"},
    "gradcam++": {"grad-cam": "GradCAMPlusPlus", "torchcam": "GradCAMpp"},
    "xgradcam": {"grad-cam": "XGradCAM", "torchcam": "XGradCAM"},
    "layercam": {"grad-cam": "LayerCAM", "torchcam": "LayerCAM"},
    "gradcam-e": {"grad-cam": "GradCAMElementWise"},
    "hirescam": {"grad-cam": "HiResCAM", "captum": "LayerGradientXActivation"},
    "shapleycam": {"grad-cam": "ShapleyCAM"},
    "eigencam": {"grad-cam": "EigenCAM"},
    "kpcacam": {"grad-cam": "KPCA_CAM"},
    "eigengradcam": {"grad-cam": "EigenGradCAM"},
    "smoothgradcam++": {"torchcam": "SmoothGradCAMpp"},
    "finercam": {"grad-cam": "FinerCAM", "torchcam": "FinerCAM"},
    "fullgrad": {"grad-cam": "FullGrad"},
    "refinecam": {"grad-cam": "RefineCAM", "torchcam": "RefineCAM"},
    "legrad": {"torchcam": "LeGrad"},
    "ablationcam": {"grad-cam": "AblationCAM"},
    "scorecam": {"grad-cam": "ScoreCAM", "torchcam": "ScoreCAM"},
}
COSTLY = {"ablationcam", "scorecam"}
PREFIXES = {"grad-cam": "grad_cam", "torchcam": "torchcam", "captum": "captum"}


def trace_of(model: Prepared, images: Tensor, layer: str, utility: str) -> Trace:
    """The trace of images (B, 3, H, W) for the predicted classes, with the stages and the attention."""
    network, path = model.network, model.paths.get(layer, layer)
    network.trace(images, [path])  # what the stages are shows noise of the size of the last pass's images
    layers = list(dict.fromkeys([path, *network.stages]))
    attention = not network.transformer.lack
    passed = network.trace(images, layers, attention=attention)
    return Trace(
        images=images, image_ids=[str(place) for place in range(len(images))],
        pixels=lambda: model.loaded.preprocess.denormalise(images),
        target=passed.logits.argmax(dim=1), utility=UTILITIES[utility].function, seed=0, draw=0,
        network=network, regions=None, options=MethodOptions(), layer=path, passed=passed,
    )  # fmt: skip


def saliency_of(name: str, trace: Trace) -> Tensor | str:
    """Saliency maps (B, H, W) after one post-processing: ReLU, min-max, bilinear resize, min-max.

    Classes that give finished maps have made them so themselves; they are scaled to [0, 1] again.

    Returns:
        Why there is none, where the model or the layer cannot have the method.
    """
    method = METHODS[name]
    why = what_is_lacking(method, trace.network, trace.layer)
    return why or min_max(make_maps(method, trace)[1])


def difference(first: Tensor, second: Tensor) -> Tensor:
    """The largest |S - S'| of each image, (B,)."""
    return (first - second).abs().amax(dim=(1, 2))


def finished(trace: Trace, maps: Tensor) -> Tensor:
    return to_saliency(maps, (trace.images.shape[2], trace.images.shape[3]))


def weighted(trace: Trace, weights: Tensor) -> Tensor:
    return finished(trace, (weights[:, :, None, None] * trace.activation).sum(dim=1))


def either_sign(trace: Trace, method: str, theirs: Tensor) -> Tensor:
    """camkit's map with the sign that is nearer to the other's, image by image."""
    own, turned = (finished(trace, sign * make_maps(METHODS[method], trace)[0]) for sign in (1, -1))
    nearer = difference(own, theirs) <= difference(turned, theirs)
    return torch.where(nearer[:, None, None], own, turned)


def plus_plus_undivided(trace: Trace, *_: object) -> Tensor:
    gradient = trace.gradient
    return weighted(trace, (gradient**2 * gradient.relu()).sum(dim=(2, 3)))


def refine_undivided(trace: Trace, *_: object) -> Tensor:
    """Each map is scaled to [0, 1] twice at its own size, then resized to the image; then the product."""

    def scaled(maps: Tensor) -> Tensor:
        maps = maps - maps.amin(dim=(1, 2), keepdim=True)
        return maps / (maps.amax(dim=(1, 2), keepdim=True) + 1e-8)

    product = torch.ones_like(trace.images[:, 0])
    for stage in trace.stages:
        gradient = stage.gradient
        weights = (gradient**2 * gradient.relu()).sum(dim=(2, 3), keepdim=True)
        maps = scaled(scaled((weights * stage.activation).sum(dim=1).relu()))
        product = product * _resized(maps, (product.shape[1], product.shape[2]), False)
    return min_max(scaled(product))


def _nearest(trace: Trace, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The target's logit (B, 1), and the three classes (B, 3) with the nearest."""
    own = logits.gather(1, trace.target[:, None])
    return own, (logits - own).abs().detach().argsort(dim=1)[:, 1:4]


def finer_by_probability(trace: Trace, *_: object) -> Tensor:
    def contrast(logits: Tensor) -> Tensor:
        own, nearest = _nearest(trace, logits)
        weights = logits.softmax(dim=1).gather(1, nearest)
        return (weights * (own - logits.gather(1, nearest))).sum(dim=1) / weights.sum(dim=1)

    return weighted(trace, trace.gradient_of(contrast).mean(dim=(2, 3)))


def finer_by_logit(trace: Trace, *_: object) -> Tensor:
    def contrast(logits: Tensor) -> Tensor:
        own, nearest = _nearest(trace, logits)
        return own[:, 0] - 0.6 * logits.gather(1, nearest).mean(dim=1)

    return weighted(trace, trace.gradient_of(contrast).mean(dim=(2, 3)))


def ablation_far_below(trace: Trace, *_: object) -> Tensor:
    worth = trace.utility(trace.logits, trace.target)
    least = trace.activation.amin(dim=(1, 2, 3))
    drops = []
    for channel in range(trace.activation.shape[1]):
        changed = trace.activation.clone()
        below = least - 1e7 * (channel % 32 + 1)  # the least value falls with each channel of a batch
        changed[:, channel] = torch.where(least == 0, least, below)[:, None, None]
        drops.append((worth - trace.head(changed)) / worth)
    return weighted(trace, torch.stack(drops, dim=1))


def score_corners(trace: Trace, *_: object) -> Tensor:
    return _by_masks(trace, lambda channel, size: min_max(_resized(channel, size, True)))


def score_scaled_first(trace: Trace, *_: object) -> Tensor:
    return _by_masks(trace, lambda channel, size: _resized(min_max(channel), size, False))


def score_without_softmax(trace: Trace, *_: object) -> Tensor:
    mask = lambda channel, size: min_max(_resized(channel, size, False))  # noqa: E731
    blank = trace.utility_of(torch.zeros_like(trace.images))
    return _by_masks(trace, mask, lambda scores: scores - blank[:, None])


def _resized(channel: Tensor, size: tuple[int, int], corners: bool) -> Tensor:
    return F.interpolate(channel[:, None], size, mode="bilinear", align_corners=corners)[:, 0]


def _by_masks(
    trace: Trace,
    mask: Callable[[Tensor, tuple[int, int]], Tensor],
    weigh: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(dim=1),
) -> Tensor:
    size = (trace.images.shape[2], trace.images.shape[3])
    scores = [
        trace.utility_of(trace.images * mask(channel, size)[:, None])
        for channel in trace.activation.unbind(dim=1)
    ]
    return weighted(trace, weigh(torch.stack(scores, dim=1)))


def fullgrad_of_images(trace: Trace, *_: object) -> Tensor:
    by_images, _biases = trace.full_gradient()
    return min_max(min_max(by_images.abs().flatten(0, 1)).view_as(by_images).sum(dim=1))


VARIANTS: dict[str, Callable[..., Any]] = {
    one.__name__: one
    for one in (
        either_sign, plus_plus_undivided, refine_undivided, finer_by_probability, finer_by_logit,
        ablation_far_below, score_corners, score_scaled_first, fullgrad_of_images,
    )
}  # fmt: skip
