"""The gradients of a whole network at its images and at its biases (FullGrad, arXiv 1905.00780)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from camkit.network.passes import Network

# Functions of torch that add a bias, with its name and place among the arguments.
BIASED: dict[Callable, tuple[str, int]] = {
    torch.conv2d: ("bias", 2),
    F.linear: ("bias", 2),
    F.batch_norm: ("bias", 4),
    F.layer_norm: ("bias", 3),
    F.group_norm: ("bias", 3),
}


class _Biases(TorchFunctionMode):
    """Keeps each bias (C,) that is added, and the tensor that has it.

    What adds a bias calls one of torch's functions, whatever its module: timm's batch norms, for one, hold
    an activation function, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func not in BIASED:
            return output
        bias = _argument(*BIASED[func], args, kwargs or {})
        if func is F.batch_norm:
            bias = _of_batch_norm(bias, args, kwargs or {})
        if bias is None or not output.requires_grad:
            return output
        self.found.append((bias.detach(), output))
        return output.clone()  # which a later in-place operation may change


def _argument(name: str, place: int, args: Sequence, kwargs: Mapping[str, Any]) -> Any:
    return args[place] if place < len(args) else kwargs.get(name)


def _of_batch_norm(bias: Tensor | None, args: Sequence, kwargs: Mapping[str, Any]) -> Tensor | None:
    """beta - mu gamma / sigma: with fixed statistics a batch norm is a product and a sum."""
    names = (("running_mean", 1), ("running_var", 2), ("weight", 3))
    mean, variance, weight = (_argument(name, place, args, kwargs) for name, place in names)
    if mean is None or variance is None:
        return bias
    eps = _argument("eps", 7, args, kwargs)
    factor = (variance + (1e-5 if eps is None else eps)).rsqrt() * (1 if weight is None else weight)
    return (0 if bias is None else bias) - mean * factor


def full_gradient(
    network: Network, images: Tensor, utility: Callable[[Tensor], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The full gradient of a utility: one pass and its gradient through the whole network, in float32.

    Of a piecewise linear network (ReLU, max pooling) all that is returned, and the same products of biases
    without a position, sum to the utility (1905.00780, proposition 1).

    Args:
        images: (B, 3, H, W).
        utility: logits (B, K) -> (B,).

    Returns:
        du/dx times x, (B, 3, H, W); and for each bias b that is added to a z with positions (of convolutions,
        normalisations and linear maps), in the order of the pass, du/dz times b, (B, C, h, w).
    """
    network.passes += 1
    with torch.enable_grad(), _Biases() as biases:
        leaf = images.detach().clone().requires_grad_()
        total = utility(network.run(leaf)).sum()
    outputs = [output for _, output in biases.found]
    gradients = torch.autograd.grad(total, [leaf, *outputs], allow_unused=True)
    positions = network.positions.at(images)
    products = []
    for (bias, output), gradient in zip(biases.found, gradients[1:], strict=True):
        reshape = positions.reshape(output)
        if gradient is not None and reshape is not None:
            mapped = reshape.to_map(gradient)
            if mapped.shape[1] == len(bias):
                products.append(mapped * bias[:, None, None])
    by_images = torch.zeros_like(images) if gradients[0] is None else gradients[0] * images
    return by_images, products
