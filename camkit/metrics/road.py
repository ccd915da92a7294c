"""ROAD, remove and debias (2202.00449): what is lost as pixels go, when their shape does not give them away.

A removed pixel becomes the weighted mean of its neighbours (noisy linear imputation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from camkit.entries import Column, metric
from camkit.metrics.imputation import impute
from camkit.metrics.subject import Subject

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the pixels, removed
NOISE = 0.01  # standard deviation, in units of the normalised image


@metric(
    "road",
    columns={
        "road": Column(
            "higher", "ROAD", "Half the difference between the two below it: 0 by chance.", jumps=True
        ),
        "road_most": Column(
            "lower",
            "ROAD, most",
            "Probability as the most salient pixels are imputed, mean over shares.",
            jumps=True,
        ),
        "road_least": Column(
            "higher",
            "ROAD, least",
            "Probability as the least salient pixels are imputed, mean over shares.",
            jumps=True,
        ),
    },
    source="ROAD, 2202.00449; (least - most) / 2 as in grad-cam's ROADCombined",
)
def road(subject: Subject) -> dict[str, Tensor]:
    """p_c with 10, 20, ... 90 % of the pixels imputed, the most and the least salient: 18 passes."""
    pixels = subject.ranks[0].numel()
    most, least = [], []
    for share in SHARES:
        count = round(share * pixels)
        most.append(_score_imputed(subject, subject.ranks < count, f"road most {share}"))
        least.append(_score_imputed(subject, subject.ranks >= pixels - count, f"road least {share}"))
    mean_most, mean_least = torch.stack(most).mean(dim=0), torch.stack(least).mean(dim=0)
    return {"road": (mean_least - mean_most) / 2, "road_most": mean_most, "road_least": mean_least}


def _score_imputed(subject: Subject, removed: Tensor, purpose: str) -> Tensor:
    imputed = impute(subject.images, removed[:, None])
    noise = torch.stack([torch.randn(imputed.shape[1:], generator=one) for one in subject.draw(purpose)])
    return subject.score(imputed + NOISE * noise.to(imputed) * removed[:, None])
