"""Classes of torchcam.methods: maps (B, h, w) of a layer before scaling; RefineCAM: saliency maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from camkit.entries import Method, family
from camkit.methods.adapters.common import (
    Explained,
    class_utilities,
    find_class,
    find_package,
    takes,
    utilities_of,
)
from camkit.methods.channels import no_linear_head
from camkit.methods.fusion import lacks_stages
from camkit.methods.transformers import lacks_attention
from camkit.network.passes import Network
from camkit.network.trace import Trace


@family(r"torchcam:(\w+)", form="torchcam:NAME")
def find_torchcam(name: str, explainer: str) -> Method:
    """A class of torchcam.methods, called as it is by default."""
    package = find_package("torchcam", "torchcam.methods", "torchcam")
    found = find_class("torchcam", explainer, package, partial(takes, name="target_layer"))
    functions: dict[str, Callable[..., Tensor]] = {
        "FinerCAM": partial(_of_layer, every=True),
        "LeGrad": _legrad,
        "RefineCAM": _of_stages,
    }
    lacks = {"CAM": no_linear_head, "LeGrad": lacks_blocks, "RefineCAM": lacks_stages}
    return Method(
        name,
        partial(functions.get(explainer, _of_layer), found),
        name,
        ("outside",),
        "torchcam",
        saliency=explainer == "RefineCAM",
        uses=("stages",) if explainer == "RefineCAM" else (),
        lacks=lacks.get(explainer),
        package="torchcam",
    )


def _of_layer(explainer: Any, trace: Trace, every: bool = False) -> Tensor:
    # Some of its classes run the model themselves, and look the class up in what it gives.
    model = Explained(trace, partial(class_utilities, trace, every=every), [trace.layer])
    with model.seen() as layers:
        return _explain(explainer, trace, model, layers[0], normalized=False)


def _of_stages(explainer: Any, trace: Trace) -> Tensor:
    model = Explained(trace, partial(class_utilities, trace), [stage.layer for stage in trace.stages])
    with model.seen() as layers:
        return _explain(explainer, trace, model, layers, target_shape=tuple(trace.images.shape[2:]))


def _explain(explainer: Any, trace: Trace, model: nn.Module, layers: object, **options: Any) -> Tensor:
    images = trace.images.detach().clone().requires_grad_()
    with torch.enable_grad(), explainer(model, target_layer=layers) as extractor:
        (maps,) = extractor(trace.target.tolist(), model(images), **options)
    return maps.detach()


def lacks_blocks(network: Network, layer: str) -> str:
    """Why a model has none of the blocks that torchcam's LeGrad reads, or ""."""
    if not isinstance(network.model, VisionTransformer):
        return "torchcam reads the attention of torchvision's VisionTransformer alone"
    return lacks_attention(network, layer)


def _legrad(explainer: Any, trace: Trace) -> Tensor:
    """LeGrad of all blocks, as in its paper; the layer plays no part."""
    vit = trace.network.model
    assert isinstance(vit, VisionTransformer)  # see lacks_blocks
    images = trace.images.detach().clone().requires_grad_()

    def utilities(tokens: Tensor) -> Tensor:
        return utilities_of(trace, vit.heads(vit.encoder.ln(tokens.mean(dim=1))))

    with torch.enable_grad():
        made = explainer(
            vit,
            list(vit.encoder.layers),
            score_projection=utilities,
            grid_shape=trace.network.transformer.grid,
        )
        with made as extractor:
            trace.network.run(images)
            (maps,) = extractor(trace.target.tolist(), normalized=False)
    return maps.detach()
