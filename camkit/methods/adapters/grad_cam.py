"""Classes of pytorch-grad-cam: saliency maps of their own making, in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit.entries import Method, family
from camkit.methods.adapters.common import Explained, class_utilities, find_class, find_package, takes
from camkit.methods.fusion import lacks_stages
from camkit.network.trace import PixelView, Trace

REFUSED = {
    "SESS": "weighs crops of the image by the softmax of the model's output, which no utility can replace"
}


@family(r"grad_cam:(\w+)", form="grad_cam:NAME")
def find_grad_cam(name: str, explainer: str) -> Method:
    """A class of pytorch-grad-cam, called as it is by default."""
    package = find_package("grad_cam", "pytorch_grad_cam", "grad-cam")

    def explains(one: type) -> bool:
        abstract = one is package.base_cam.BaseCAM
        return not abstract and hasattr(one, "forward") and takes(one, "target_layers")

    found = find_class("grad_cam", explainer, package, explains, refused=REFUSED)
    functions = {"FinerCAM": _finer, "FullGrad": _of_pixels, "RefineCAM": _of_stages}
    of_stages = explainer == "RefineCAM"
    return Method(
        name,
        partial(functions.get(explainer, _of_layer), found),
        name,
        ("outside",),
        "grad-cam",
        saliency=True,
        of_pixels=explainer == "FullGrad",
        uses=("stages",) if of_stages else (),
        lacks=lacks_stages if of_stages else None,
        package="grad-cam",
    )


def _of_layer(explainer: Any, trace: Trace) -> Tensor:
    return _explain(explainer, trace, [trace.layer])


def _of_stages(explainer: Any, trace: Trace) -> Tensor:
    return _explain(explainer, trace, [stage.layer for stage in trace.stages])


def _of_pixels(explainer: Any, view: PixelView) -> Tensor:
    return _explain(explainer, view, [])


def _explain(explainer: Any, view: PixelView, paths: Sequence[str]) -> Tensor:
    targets = [_target(view, place) for place in range(len(view.target))]
    images = view.images.detach().clone().requires_grad_()
    # ShapleyCAM differentiates the gradient, which a frozen model gives no graph where it is constant.
    one = torch.ones((), device=images.device, requires_grad=True)
    model = Explained(view, lambda batch: view.network.run(batch) * one, paths)
    # Fused attention has no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), model.seen() as layers:
        # Not as a context: on leaving that, grad-cam swallows errors of its own.
        cam = explainer(model, layers)
        try:
            saliency = cam(images, targets)
        finally:
            held = getattr(cam, "activations_and_grads", None)  # RefineCAM has some per layer
            if held is not None:
                held.gradients = []  # it detaches them in place, which views of a tensor do not allow
                held.release()
    return torch.as_tensor(saliency).to(view.images)


def _target(view: PixelView, place: int) -> Callable[[Tensor], Tensor]:
    """The utility of an image's class, from what the model gives for one image, (K,)."""

    def utility(outputs: Tensor) -> Tensor:
        logits = view.network.activation.logits(outputs[None], 1)  # it runs the model itself
        return view.utility(logits, view.target[place : place + 1])[0]

    return utility


def _finer(explainer: Any, trace: Trace) -> Tensor:
    """FinerCAM, which makes its contrast itself: it gets the utilities of all classes in place of logits."""
    model = Explained(trace, partial(class_utilities, trace, every=True), [trace.layer])
    saliency = []
    with torch.enable_grad(), model.seen() as layers:
        for image, target in zip(trace.images.split(1), trace.target.tolist(), strict=True):
            cam = explainer(model, layers)  # takes one class for all images
            saliency.append(torch.as_tensor(cam(image.clone().requires_grad_(), target_idx=target)))
    return torch.cat(saliency).to(trace.images)
