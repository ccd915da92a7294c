"""Methods whose players are the channels: each gets a weight w, and the map (B, h, w) is the sum of w A."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from camkit.entries import method
from camkit.errors import CamkitError
from camkit.methods.saliency import min_max
from camkit.network.game import CHUNK
from camkit.network.head import LinearHead, linear_head
from camkit.network.passes import Network
from camkit.network.rescale import elementwise_modules
from camkit.network.trace import Trace


def _weighted(weights: Tensor, activation: Tensor) -> Tensor:
    """Sum over channels of w (B, C) times A."""
    return (weights[:, :, None, None] * activation).sum(dim=1)


def no_linear_head(network: Network, layer: str) -> str:
    """Why what follows a layer is no global average pooling and linear map; "" where it is."""
    found = linear_head(network, layer)
    return found if isinstance(found, str) else ""


@method(
    "cam",
    title="CAM",
    groups=("cheap",),
    source="arXiv 1512.04150, eq. 2",
    uses=("activation", "head"),
    cost="0",
    lacks=no_linear_head,
)
def cam(trace: Trace) -> Tensor:
    """Sum over channels of W_c A, where the logits are W GAP(A) + b; c the class, whatever the utility.

    W is found from the network, see :func:`camkit.network.head.linear_head`.

    Raises:
        CamkitError: what follows the layer is something else.
    """
    found = linear_head(trace.network, trace.layer)
    if isinstance(found, str):
        raise CamkitError(found)
    return _weighted(found.weight[trace.target], trace.activation)


@method(
    "ablationcam",
    title="AblationCAM",
    groups=("perturbation",),
    source="Desai and Ramaswamy, WACV 2020, eq. 3",
    uses=("activation", "head"),
    cost="C heads, or 0",
)
def ablationcam(trace: Trace) -> Tensor:
    """Sum over channels of w A, w = u(A) - u(A without the channel): its activation 0 at every position.

    The paper divides w by u(A): one number for all channels, which scales the map and where it is negative
    turns it over. It is left out. Where what follows the layer is global average pooling and a linear map,
    the logits without channel k are y - W_k GAP(A_k), and no pass is needed. Elsewhere each channel takes one
    pass through the rest of the network.
    """
    linear = trace.linear_head
    if linear is None:
        return _weighted(_drops_by_passes(trace), trace.activation)
    return _weighted(_linear_drops(trace, linear), trace.activation)


def _drops_by_passes(trace: Trace) -> Tensor:
    """u(A) - u(A without channel k), (B, C)."""
    kept = trace.activation.clone()
    left = []
    for channel in range(kept.shape[1]):
        kept[:, channel] = 0
        left.append(trace.head(kept))
        kept[:, channel] = trace.activation[:, channel]
    return trace.utility(trace.logits, trace.target)[:, None] - torch.stack(left, dim=1)


def _linear_drops(trace: Trace, linear: LinearHead) -> Tensor:
    """The same from the logits y - W_k GAP(A_k)."""
    means = trace.activation.mean(dim=(2, 3))  # (B, C)
    logits = linear.logits(trace.activation)
    at_once = max(1, CHUNK // logits.numel())
    drops = []
    for some, weight in zip(means.split(at_once, dim=1), linear.weight.split(at_once, dim=1), strict=True):
        without = logits[:, None] - some[:, :, None] * weight.T  # (B, n, K)
        target = trace.target.repeat_interleave(some.shape[1])
        drops.append(trace.utility(without.flatten(0, 1), target).unflatten(0, some.shape))
    return trace.utility(logits, trace.target)[:, None] - torch.cat(drops, dim=1)


@method(
    "scorecam",
    title="ScoreCAM",
    groups=("perturbation",),
    source="arXiv 1910.01279, eq. 6 and 7, algorithm 1",
    uses=("activation", "passes"),
    cost="C passes (--channels)",
)
def scorecam(trace: Trace) -> Tensor:
    """Sum over channels of w A, w = softmax over channels of u(x M), M a channel as a mask of the image.

    M is the channel of A, resized to the image (bilinear), then scaled to [0, 1]. It multiplies the
    normalised image. The paper first subtracts the utility of a blank image: no change in a softmax. With
    `--channels N` only the N channels that vary most over positions take part: the others have weight 0.

    Under `--utility softmax`, one of the published forms, u lies in [0, 1]. So the largest weight is at most
    e times the smallest, and the map is nearly the mean of A.
    """
    activation = trace.activation
    strongest = trace.options.channels
    if strongest is not None and strongest < activation.shape[1]:
        chosen = activation.flatten(2).std(dim=2).topk(strongest, dim=1).indices  # (B, N)
        activation = activation.gather(1, chosen[:, :, None, None].expand(-1, -1, *activation.shape[2:]))
    size = (trace.images.shape[2], trace.images.shape[3])
    scores = []
    for channel in activation.unbind(dim=1):
        mask = min_max(F.interpolate(channel[:, None], size, mode="bilinear", align_corners=False)[:, 0])
        scores.append(trace.utility_of(trace.images * mask[:, None]))
    return _weighted(torch.stack(scores, dim=1).softmax(dim=1), activation)


def no_rescale_rule(network: Network, layer: str) -> str:
    """Why DeepLIFT's rescale rule has no form for what follows a layer; "" where it has one."""
    if isinstance(linear_head(network, layer), LinearHead):
        return ""
    found = elementwise_modules(network, layer)
    return found if isinstance(found, str) else ""


@method(
    "liftcam",
    title="LIFT-CAM",
    source="arXiv 2102.05228, eq. 9; rescale rule: 1704.02685",
    uses=("activation", "head"),
    cost="1 head, 1 head grad, or 0",
    lacks=no_rescale_rule,
)
def liftcam(trace: Trace) -> Tensor:
    """Sum over channels of w A, w = what the channel contributes to y_c by DeepLIFT, against A = 0.

    The weights sum to y_c(A) - y_c(0): DeepLIFT stands in for the channels' Shapley values. It explains the
    logit whatever the utility: the rescale rule has no form for the softmax. Where what follows the layer is
    global average pooling and a linear map, w_k = W_ck GAP(A_k), which is the Shapley value itself.

    Raises:
        CamkitError: behind the layer something is not linear, and no elementwise module.
    """
    linear = trace.linear_head
    if linear is None:
        return _weighted(trace.contributions().sum(dim=(2, 3)), trace.activation)
    return _weighted(linear.weight[trace.target] * trace.activation.mean(dim=(2, 3)), trace.activation)
