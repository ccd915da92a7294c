"""Gradients at a layer, and why there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from camkit.errors import CamkitError
from camkit.network.layers import find_module, hooked
from camkit.network.passes import Network


def why_no_gradient(network: Network, layer: str, images: Tensor) -> CamkitError:
    """Why the logits of images (B, 3, H, W) are no function of the layer's output that has a derivative."""
    with torch.no_grad():
        zeroed = [(find_module(network.model, layer), lambda _, __, output: output * 0)]
        with hooked(zeroed):
            logits = network.run(images)
        if torch.equal(logits, network.run(images)):
            return CamkitError("the logits do not depend on the layer's output: choose another --layer")
    return CamkitError(
        f"the logits depend on the output of layer {layer!r}, but carry no gradient: the model runs "
        "under torch.no_grad or inference_mode after it, or detaches it. Its forward has to be "
        "differentiable."
    )


def gradient_of(utility: Tensor, leaf: Tensor, create_graph: bool, retain_graph: bool = False) -> Tensor:
    """The gradient of a utility (B,) at a leaf of its graph, in the leaf's shape (B, C, h, w).

    Raises:
        CamkitError: the utility does not depend on the leaf.
    """
    # Each utility is per image, so the sum's gradient is every image's own gradient.
    gradient = None
    if utility.requires_grad:
        (gradient,) = torch.autograd.grad(
            utility.sum(),
            leaf,
            create_graph=create_graph,
            retain_graph=create_graph or retain_graph,
            allow_unused=True,
        )
    if gradient is None:
        raise CamkitError("the logits do not depend on the layer's output: choose another --layer")
    return gradient
