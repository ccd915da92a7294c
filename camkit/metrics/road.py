"""ROAD, remove and debias (2202.00449): what is lost as pixels go, when their shape does not give them away.

A removed pixel becomes the weighted mean of its neighbours (noisy linear imputation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from camkit.entries import UNIT, Column, metric
from camkit.metrics.adcc import coherency, harmonic_adcc
from camkit.metrics.imputation import impute
from camkit.metrics.subject import Subject

SHARES = (10, 20, 30, 40, 50, 60, 70, 80, 90)  # percent of the pixels, removed
ARCC_SHARES = (20, 40, 60, 80)
NOISE = 0.01  # standard deviation, in units of the normalised image


@metric(
    "road",
    columns={
        "road": Column(
            "higher",
            "ROAD",
            "Half the difference between the two below it: 0 by chance.",
            jumps=True,
            bounds=(-0.5, 0.5),
        ),
        "road_most": Column(
            "lower",
            "ROAD, most",
            "Probability as the most salient pixels are imputed, mean over shares.",
            jumps=True,
            bounds=UNIT,
        ),
        "road_least": Column(
            "higher",
            "ROAD, least",
            "Probability as the least salient pixels are imputed, mean over shares.",
            jumps=True,
            bounds=UNIT,
        ),
    },
    passes="18",
    source="ROAD, 2202.00449; (least - most) / 2 as in grad-cam's ROADCombined",
)
def road(subject: Subject) -> dict[str, Tensor]:
    """p_c with 10, 20, ... 90 % of the pixels imputed, the most and the least salient: 18 passes."""
    most, least = (
        torch.stack([probability_imputed(subject, order, share) for share in SHARES]).mean(dim=0)
        for order in ("most", "least")
    )
    return {"road": (least - most) / 2, "road_most": most, "road_least": least}


def probability_imputed(subject: Subject, order: str, share: int) -> Tensor:
    """p_c (B,) with this share (percent) of the pixels imputed, the most or least salient; one pass."""

    def make() -> Tensor:
        ranks = subject.ranks if order == "most" else subject.ranks[0].numel() - 1 - subject.ranks
        removed = (ranks < round(share / 100 * ranks[0].numel()))[:, None]
        imputed = impute(subject.images, removed)
        drawn = [
            torch.randn(imputed.shape[1:], generator=one) for one in subject.draw(f"road {order} {share}")
        ]
        return subject.score(imputed + NOISE * torch.stack(drawn).to(imputed) * removed)

    return subject.of_maps(f"imputed {order} {share}", make)


@metric(
    "arcc",
    columns={
        "arcc": Column(
            "higher",
            "ARCC",
            "Harmonic mean of coherency, 1 − complexity and twice ROAD (of 20, 40, 60, 80 %, cut to [0, 1]).",
            jumps=True,
            bounds=UNIT,
        )
    },
    explains_again=True,
    passes="9; beside road and adcc 0",
    source="2605.14641, as grad-cam computes it; its docstring says geometric mean",
)
def arcc(subject: Subject) -> dict[str, Tensor]:
    """Eight passes and the masked image's map; none beside `road` and `adcc`, which have them already."""
    most, least = (
        torch.stack([probability_imputed(subject, order, share) for share in ARCC_SHARES]).mean(dim=0)
        for order in ("most", "least")
    )
    gained = (least - most).clamp(0, 1)
    return {"arcc": harmonic_adcc(coherency(subject), subject.saliency.mean(dim=(1, 2)), 1 - gained)}
