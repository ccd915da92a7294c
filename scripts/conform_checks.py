"""What scripts/conform.py measures beside maps: claims that were heard of a package, and scores by name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytorch_grad_cam
import timm
import torch
from conform_maps import difference, finished, saliency_of, score_without_softmax, trace_of
from pytorch_grad_cam.metrics.arcc import ARCC
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torch import Tensor, nn
from torchcam.methods import GradCAM, LayerCAM
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from camkit.api import Prepared, bench
from camkit.methods.gradient import gradcam_plus_plus
from camkit.methods.saliency import min_max
from camkit.network.layers import find_module
from camkit.network.trace import Trace

LITE, VIT = "tf_efficientnet_lite0", "timm/vit_tiny_patch16_224"
STEPS = 8
TOP = 8  # elements of A per image whose second derivative is taken


@dataclass(frozen=True)
class Score:
    """A score of one name: camkit's and the other's mean over the same images and maps."""

    name: str
    package: str
    theirs_is: str
    images: int
    ours: float
    theirs: float
    found: str


def general_alpha(lite: Trace, vit: Trace, *_: object) -> dict[str, Any]:
    return {"lite0": _bend(lite), "vit": _bend(vit)}


def _bend(trace: Trace) -> float:
    """The median of |y''| / (y')^2 over the elements of A with the largest gradient."""
    with torch.enable_grad():
        leaf = trace.activation.clone().requires_grad_()
        (first,) = torch.autograd.grad(trace.head(leaf).sum(), leaf, create_graph=True)
        flat = first.flatten(1)
        ratios = []
        for place in flat.abs().topk(TOP, dim=1).indices.T:
            chosen = flat.gather(1, place[:, None])[:, 0]
            second = torch.zeros_like(flat)
            if flat.requires_grad:
                (found,) = torch.autograd.grad(chosen.sum(), leaf, retain_graph=True, allow_unused=True)
                second = second if found is None else found.flatten(1)
            ratios.append(second.gather(1, place[:, None])[:, 0].abs() / chosen.square())
    return torch.stack(ratios).median().item()


def poles(lite: Trace, *_: object) -> dict[str, Any]:
    found = {}
    for name, stage in (("first", lite.stages[0]), ("last", lite.stages[-1])):
        own = _maps(saliency_of("gradcam++", stage))
        noise = torch.randn(stage.gradient.shape, generator=torch.Generator().manual_seed(0))
        moved = stage.gradient * (1 + 1e-6 * noise)
        nudged = finished(stage, gradcam_plus_plus(_Given(stage.activation, moved)))
        found[name] = difference(own, min_max(nudged)).max().item()
    return found


@dataclass(frozen=True)
class _Given:
    """What GradCAM++ reads of a trace."""

    activation: Tensor
    gradient: Tensor


def sign(lite: Trace, vit: Trace, *_: object) -> dict[str, Any]:
    turned = images = 0
    for trace in (lite, vit):
        own, theirs = (saliency_of(name, trace) for name in ("eigencam", "grad_cam:EigenCAM"))
        turned += int((difference(_maps(own), _maps(theirs)) > 0.1).sum())
        images += len(trace.images)
    return {"turned": turned, "images": images}


def _maps(found: Tensor | str) -> Tensor:
    if isinstance(found, str):
        raise SystemExit(found)
    return found


def clamp(lite: Trace, *_: object) -> dict[str, Any]:
    stages = [_maps(saliency_of("grad_cam:GradCAMPlusPlus", stage)) for stage in lite.stages]
    highest = [one.amax(dim=(1, 2), keepdim=True) for one in stages]
    plain, clamped = torch.ones_like(stages[0]), torch.ones_like(stages[0])
    for one, top in zip(stages, highest, strict=True):
        plain, clamped = plain * one, clamped * (one.relu() / (top + 1e-8))
    off = max((1 - top).abs().max().item() for top in highest)
    return {"off": off, "change": difference(min_max(plain), min_max(clamped)).max().item()}


def layer_scale(lite: Trace, *_: object) -> dict[str, Any]:
    ours = _maps(saliency_of("layercam-fusion", lite))
    model = lite.network.model
    layers: list[nn.Module | str] = [find_module(model, stage.layer) for stage in lite.stages]
    found = {}
    for name, normalised in (("normalised", True), ("raw", False)):
        with torch.enable_grad(), LayerCAM(model, layers) as extractor:
            images = lite.images.clone().requires_grad_()
            cams = extractor(lite.target.tolist(), model(images), normalized=normalised)
        fused = LayerCAM.fuse_cams(cams, (lite.images.shape[2], lite.images.shape[3])).detach()
        found[name] = difference(ours, min_max(fused)).max().item()
    return found


def hessian(lite: Trace, vit: Trace, rest: Trace) -> dict[str, Any]:
    found = {}
    for name, trace in (("logit", lite), ("rest", rest)):
        both = [_maps(saliency_of(f"grad_cam:{one}", trace)) for one in ("ShapleyCAM", "GradCAM")]
        found[name] = difference(*both).max().item()
    return found


def swin(*_: object) -> dict[str, Any]:
    """Its own call on small networks with channels last and with tokens, by its documented transforms."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"img_size": 32, "num_classes": 7}
    last: Any = timm.models.SwinTransformer(
        patch_size=4, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(2, 4), **small
    )
    tokens: Any = timm.models.VisionTransformer(patch_size=8, embed_dim=24, depth=2, num_heads=3, **small)
    transforms: dict[str, tuple[nn.Module, Any, Callable[[Tensor], Tensor]]] = {
        "Swin": (last, last.layers[-1].blocks[-1].norm1, lambda t: t.permute(0, 3, 1, 2)),
        "ViT": (tokens, tokens.blocks[-1].norm1, lambda t: t[:, 1:].mT.unflatten(2, (4, 4))),
    }
    said = []
    for name, (model, layer, reshape) in transforms.items():
        cam = pytorch_grad_cam.ShapleyCAM(model, [layer], reshape_transform=reshape)
        try:
            cam(torch.randn(1, 3, 32, 32), [ClassifierOutputTarget(0)])
            said.append(f"{name}: it runs")
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            said.append(f"{name}: {type(error).__name__}, {str(error).splitlines()[0][:100]}")
        cam.activations_and_grads.gradients = []
    return {"failure": "; ".join(said)}


def softmax(lite: Trace, *_: object) -> dict[str, Any]:
    """At the end of the last stage but one, which has the fewest channels of the late ones."""
    one = lite.stages[-2].at(lite.images[:1])
    one.target, one.image_ids = lite.target[:1], lite.image_ids[:1]
    both = score_without_softmax(one), _maps(saliency_of("scorecam", one))
    return {"change": difference(*both).max().item()}


def arcc(lite: Trace, *_: object) -> dict[str, Any]:
    trace = lite
    images, model = trace.images[:1].clone(), trace.network.model
    targets = [ClassifierOutputSoftmaxTarget(int(trace.target[0]))]
    cam = pytorch_grad_cam.GradCAM(model, [find_module(model, trace.layer)])
    saliency = cam(images.clone().requires_grad_(), targets)
    metric = ARCC(lambda input_tensor, targets: cam(input_tensor.clone().requires_grad_(), targets))
    torch.manual_seed(0)
    value = metric(images, saliency, targets, model)
    parts = [
        metric.coherency(images, saliency, targets, model, metric.base_method),
        1 - metric.complexity(saliency),
    ]
    torch.manual_seed(0)
    parts.append((2 * metric.road(images, saliency, targets, model)).clip(0, 1))
    factors = np.concatenate(parts)
    cam.activations_and_grads.release()
    return {
        "arcc": float(value[0]),
        "harmonic": float(3 / (1 / (factors + 1e-8)).sum()),
        "geometric": float(factors.prod() ** (1 / 3)),
    }


CHECKS: dict[str, Callable[..., dict[str, Any]]] = {
    "general_alpha": general_alpha, "poles": poles, "sign": sign, "clamp": clamp, "layer_scale": layer_scale,
    "hessian": hessian, "swin": swin, "softmax": softmax, "arcc": arcc,
}  # fmt: skip


def scores(trace: Trace) -> Iterator[Score]:
    """Each score on GradCAM's maps of all sample photos, Lite0 at `prepool` under the softmax.

    torchcam's metrics explain what they score.
    """
    saliency = _maps(saliency_of("gradcam", trace))
    network, count = trace.network, len(trace.images)
    with tempfile.TemporaryDirectory() as folder:
        summary = bench(
            LITE, method="gradcam", layer="prepool", utility="softmax", steps=STEPS, data="sample",
            metrics=("average_drop", "deletion", "insertion-zero", "shape"), out=folder, device="cpu",
            workers=0,
        )  # fmt: skip
    assert summary is not None  # this is the only process
    own = summary.iloc[0]
    ours = partial(_row, own, count)
    layer = find_module(network.model, trace.layer)
    softmaxed = partial(torch.softmax, dim=-1)
    with GradCAM(network.model, layer) as extractor:
        drops = ClassificationMetric(extractor, softmaxed)
        curves = DeletionInsertionMetric(extractor, softmaxed, steps=STEPS)
        with torch.enable_grad():
            for metric in (drops, curves):
                metric.update(trace.images.clone().requires_grad_(), trace.target.tolist())
    theirs = drops.summary() | curves.summary()
    yield ours("average_drop", "torchcam", "ClassificationMetric", theirs["avg_drop"], "The same formula.")
    yield ours("increase", "torchcam", "ClassificationMetric", theirs["conf_increase"], "The same formula.")
    said = "The same points: start, end and every step between."
    yield ours("deletion_auc", "torchcam", "DeletionInsertionMetric", theirs["deletion_auc"], said)
    said = "The same points, from a blank image (here `insertion-zero`); RISE starts from a blurred one."
    yield ours("insertion_zero_auc", "torchcam", "DeletionInsertionMetric", theirs["insertion_auc"], said)
    targets = [ClassifierOutputSoftmaxTarget(int(one)) for one in trace.target]
    drop = DropInConfidence()(trace.images, saliency.numpy(), targets, network.model).mean()
    said = "max(0, p0 − p1), not divided by p0 as in 1710.11063."
    yield ours("average_drop", "grad-cam", "DropInConfidence", drop, said)
    yield from _quantus(ours, trace, saliency)


def _row(
    own: pd.Series, images: int, name: str, package: str, theirs_is: str, theirs: float, found: str
) -> Score:
    return Score(name, package, theirs_is, images, float(own[name]), float(theirs), found)


def _quantus(ours: Callable[..., Score], trace: Trace, saliency: Tensor) -> Iterator[Score]:
    """Quantus' metrics, where it is installed."""
    try:
        import quantus
    except ImportError:
        return
    height, width = saliency.shape[1:]
    quiet = {"disable_warnings": True, "display_progressbar": False}
    given = {
        "model": trace.network.model, "x_batch": trace.images.numpy(), "y_batch": trace.target.numpy(),
        "a_batch": saliency[:, None].numpy(), "softmax": True, "device": "cpu",
    }  # fmt: skip
    flipping = quantus.PixelFlipping(
        features_in_step=height * width // STEPS, perturb_baseline=0.0, normalise=False, **quiet
    )
    curve = np.array(flipping(**given))
    area = np.trapezoid(curve, axis=1).mean() / (curve.shape[1] - 1)
    said = (
        f"A curve of {curve.shape[1]} points against {STEPS + 1}: the image before the first step is left "
        "out, and the colours of a pixel are flipped as three features. The area here is over [0, 1]; its "
        "own is not divided by the number of steps"
    )
    yield ours("deletion_auc", "Quantus", "PixelFlipping", area, f"{said}{_own_area(quantus)}.")
    gini = np.mean(quantus.Sparseness(normalise=False, **quiet)(**given))
    yield ours("gini", "Quantus", "Sparseness", gini, "The Gini index, as here.")
    entropy = np.mean(quantus.Complexity(normalise=False, **quiet)(**given)) / np.log(height * width)
    said = "In nats, not divided by ln HW as here; the figure is divided."
    yield ours("entropy", "Quantus", "Complexity", entropy, said)


def _own_area(quantus: Any) -> str:
    try:
        quantus.helpers.utils.calculate_auc(np.ones(3))
    except AttributeError as error:
        return f", and fails with this NumPy ({error})"
    return ""


def traces(lite: Prepared, vit: Prepared, images: Tensor, of_vit: Tensor) -> tuple[Trace, Trace, Trace]:
    """Lite0 at `conv` under the logit, the ViT likewise, and Lite0 under ReST."""
    return (
        trace_of(lite, images, "conv", "logit"),
        trace_of(vit, of_vit, "conv", "logit"),
        trace_of(lite, images, "conv", "rest"),
    )
