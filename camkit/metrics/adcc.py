"""ADCC and its parts (Poppi et al., CVPRW 2021), with increase in confidence and drop in deletion.

Average drop and increase can be had by themselves, for one pass less.

All are fractions in [0, 1]; the mask multiplies the normalised image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from camkit.metrics.subject import Subject
from camkit.registry import metric
from camkit.saliency import is_degenerate


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of each pair of maps of two (B, H, W); (B,), NaN where one is constant."""
    # float64: maps like `fake-cam` differ from a constant in one pixel only, and the squares of a saturated
    # softmax's tiny maps would underflow. MPS has none.
    device = "cpu" if first.device.type == "mps" else first.device
    a, b = (maps.flatten(1).to(device, torch.float64) for maps in (first, second))
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    correlation = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
    return correlation.clamp(-1, 1).to(first)


def relative_drop(before: Tensor, after: Tensor) -> Tensor:
    """max(0, before - after) / before, and 0 where before is 0."""
    return ((before - after).clamp(min=0) / before).where(before > 0, 0)


def harmonic_adcc(coherency: Tensor, complexity: Tensor, average_drop: Tensor) -> Tensor:
    """3 / (1/Coh + 1/(1 - Com) + 1/(1 - AD)), and 0 where a factor is 0; NaN where one is."""
    factors = torch.stack([coherency, 1 - complexity, 1 - average_drop])
    return (3 / (1 / factors).sum(dim=0)).where(~(factors <= 0).any(dim=0), 0)


def masked_scores(before: Tensor, masked: Tensor) -> dict[str, Tensor]:
    """Average drop and increase, (B,), from p_c of the images and of the masked images, (B,)."""
    increase = (masked > before).to(before.dtype).where(~masked.isnan(), torch.nan)
    return {"average_drop": relative_drop(before, masked), "increase": increase}


@metric(
    "average_drop",
    directions={"average_drop": "lower", "increase": "higher"},
    source="Chattopadhay et al., WACV 2018, arXiv 1710.11063",
    jumps=("increase",),
)
def average_drop(subject: Subject, saliency: Tensor, explain: Callable) -> dict[str, Tensor]:
    """One pass: the masked image. `adcc` has these columns too."""
    return masked_scores(subject.probability, subject.score(subject.images * saliency[:, None]))


@metric(
    "adcc",
    directions={
        "average_drop": "lower",
        "increase": "higher",
        "drop_in_deletion": "higher",
        "coherency": "higher",
        "complexity": "lower",
        "adcc": "higher",
    },
    source="Poppi et al., CVPRW 2021; drop in deletion: Jung and Oh, ICCV 2021",
    jumps=("increase",),
)
def adcc(
    subject: Subject, saliency: Tensor, explain: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Two passes: the masked image (its p_c and its own saliency map), and the image without the mask."""
    mask = saliency[:, None]
    masked_probability, masked_saliency = explain(subject.images * mask)
    deleted_probability = subject.score(subject.images * (1 - mask))

    before = subject.probability
    degenerate = is_degenerate(masked_saliency)
    constant = is_degenerate(saliency) | degenerate
    coherency = ((1 + pearson(saliency, masked_saliency)) / 2).where(~constant, 0)
    complexity = saliency.mean(dim=(1, 2))
    masked = masked_scores(before, masked_probability)
    return {
        **masked,
        "drop_in_deletion": relative_drop(before, deleted_probability),
        "coherency": coherency,
        "complexity": complexity,
        "adcc": harmonic_adcc(coherency, complexity, masked["average_drop"]),
        "degenerate_masked": degenerate,
    }
