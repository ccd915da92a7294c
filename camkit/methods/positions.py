"""Methods whose players are the positions of the layer; maps are (B, h, w)."""

from __future__ import annotations

import torch
from torch import Tensor

from camkit.entries import method
from camkit.network.game import CHUNK
from camkit.network.trace import Trace


@method(
    "reciprocam",
    title="ReciproCAM",
    groups=("perturbation",),
    source="arXiv 2209.14074; of a ViT: 2310.02588",
    uses=("activation", "head"),
    cost="P heads, or 0",
)
def reciprocam(trace: Trace) -> Tensor:
    """u of each position alone, less the least of them: all other positions are absent (0, or `--absent`).

    Tokens that have no position (class, distillation, registers) keep their values, as in the paper's form
    for a ViT. The papers take p_c. They scale the map by its least and largest value, where others take a
    ReLU: hence the least is subtracted. Their variant that blurs the mask by a Gaussian (3x3) is not used.

    Where what follows the layer is global average pooling and a linear map, no pass is needed. Elsewhere each
    position takes one pass through the rest of the network.
    """
    activation, absent = trace.activation, trace.absent_activation
    linear = trace.linear_head
    if linear is None:
        alone = torch.eye(activation[0, 0].numel(), device=activation.device, dtype=torch.bool)
        grid = alone.view(-1, *activation.shape[2:])
        values = torch.stack([trace.head(torch.where(one, activation, absent)) for one in grid], dim=1)
    else:
        none, added = linear.by_position(activation, absent)
        values = torch.cat(
            [
                trace.utility(
                    (none + some).flatten(0, 1), trace.target.repeat_interleave(some.shape[1])
                ).unflatten(0, (len(activation), -1))
                for some in added.split(max(1, CHUNK // none.numel()), dim=1)
            ],
            dim=1,
        )
    return (values - values.amin(dim=1, keepdim=True)).view_as(activation[:, 0])
