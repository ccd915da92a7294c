"""Methods that need the attention of every block of a transformer: (B, heads, N, N), N tokens.

Their maps are those of the tokens that have a position; class, distillation and register tokens take part in
the formulas, and are left out at the end. The layer plays no part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camkit.entries import method
from camkit.network.layers import parts_of
from camkit.network.passes import Network
from camkit.network.trace import Trace


def lacks_attention(network: Network, layer: str) -> str:
    """Why a model has no maps of its attention at a layer, or ""."""
    known = network.transformer
    if known.lack:
        return known.lack
    for part in parts_of(layer):
        height, width = network.grids[part]
        if (height, width) != known.grid:
            rows, columns = known.grid
            return f"{part} has {height}x{width} positions, and the tokens have {rows}x{columns}"
    return ""


def read_by(trace: Trace, relevance: Tensor) -> Tensor:
    """Maps (B, h, w) of (B, N, N): the mean over the rows of the tokens that the logits are read from."""
    return trace.attended.on_grid((trace.attended.readers[:, :, None] * relevance).sum(dim=1))


def rolled_out(attention: Tensor) -> Tensor:
    """Attention A (B, N, N) with the skip connection: 0.5 A + 0.5 I, each row scaled to sum 1."""
    identity = torch.eye(attention.shape[1]).to(attention)
    mixed = 0.5 * attention + 0.5 * identity
    return mixed / mixed.sum(dim=2, keepdim=True)


@method(
    "attention",
    title="Attention",
    groups=("transformer", "cheap"),
    source="attention of the last block, as in arXiv 2104.14294",
    uses=("attention",),
    cost="0",
    lacks=lacks_attention,
)
def attention(trace: Trace) -> Tensor:
    """Attention of the last block from the class token, the mean over heads.

    Where the logits are read from other tokens (a model that averages them), the mean over these. It knows
    nothing of the class.
    """
    return read_by(trace, trace.attention[-1].mean(dim=1))


@method(
    "rollout",
    title="Rollout",
    groups=("transformer", "cheap"),
    source="arXiv 2005.00928, eq. 1",
    uses=("attention",),
    cost="0",
    lacks=lacks_attention,
)
def rollout(trace: Trace) -> Tensor:
    """Class token's row of R_L ... R_1, R_l = 0.5 A_l + 0.5 I with rows of sum 1, A_l the mean over heads.

    Where the logits are read from other tokens, the mean over their rows. It knows nothing of the class.
    """
    first, *others = (rolled_out(weights.mean(dim=1)) for weights in trace.attention)
    product = first
    for one in others:
        product = one @ product
    return read_by(trace, product)


@method(
    "gradient-rollout",
    title="Gradient Rollout",
    groups=("transformer", "cheap"),
    source="arXiv 2103.15679, eq. 5 and 6",
    uses=("attention", "gradient"),
    cost="1 grad through all blocks",
    lacks=lacks_attention,
)
def gradient_rollout(trace: Trace) -> Tensor:
    """Class token's row of R: from I, R <- R + A R per block, A the mean over heads of ReLU(G A_l).

    A_l is the attention of block l, G = du/dA_l. Where the logits are read from other tokens, the mean over
    their rows.
    """
    pairs = zip(trace.attention, trace.attention_gradients, strict=True)
    relevance = torch.eye(trace.attention[0].shape[2]).to(trace.attention[0])
    for weights, gradient in pairs:
        relevance = relevance + (gradient * weights).relu().mean(dim=1) @ relevance
    return read_by(trace, relevance)


@method(
    "legrad",
    title="LeGrad",
    groups=("transformer",),
    source="arXiv 2404.03214",
    uses=("attention", "gradient", "head"),
    cost="1 pass, L heads, L grads",
    lacks=lacks_attention,
)
def legrad(trace: Trace) -> Tensor:
    """Mean over blocks, heads and queries of ReLU(du_l/dA_l), a value per key.

    A_l is the attention of block l; u_l the utility of the mean of all tokens after block l, read by the rest
    of the network (norm, pooling, classifier). All blocks count, as in the paper; its code takes the last two
    unless told otherwise.
    """
    layers = [gradient.relu().mean(dim=(1, 2)) for gradient in trace.attended.block_gradients]
    return trace.attended.on_grid(torch.stack(layers).mean(dim=0))
