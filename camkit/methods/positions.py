"""Methods whose players are the positions of the layer; maps are (B, h, w)."""

from __future__ import annotations

import torch
from torch import Tensor

from camkit.entries import method
from camkit.network.trace import Trace


@method(
    "reciprocam",
    title="ReciproCAM",
    groups=("perturbation",),
    source="arXiv 2209.14074; of a ViT: 2310.02588",
    uses=("activation", "head"),
    cost="7 heads, or P + 6",
)
def reciprocam(trace: Trace) -> Tensor:
    """u of each position alone, less the least of them: all other positions are absent (0, or `--absent`).

    Tokens that have no position (class, distillation, registers) keep their values, as in the paper's form
    for a ViT. The papers take p_c. They scale the map by its least and largest value, where others take a
    ReLU: hence the least is subtracted. Their variant that blurs the mask by a Gaussian (3x3) is not used.

    Where the logits are affine in the set of present positions, all follow from 7 head passes, and from none
    where what follows the layer is global average pooling and a linear map. Elsewhere each position takes one
    head pass, beside the 6 that tell.
    """
    alone = torch.eye(trace.game.players, dtype=torch.bool, device=trace.images.device)
    values = trace.game.utility(alone.expand(len(trace.images), -1, -1))
    return (values - values.amin(dim=1, keepdim=True)).view_as(trace.activation[:, 0])
