"""Localisation: how much of a map lies where its class is known to be (2104.00032, 2205.10435).

In a mosaic that is the tile of the explained photo. It tests telling tiles apart, not shape within one: a map
that fails is wrong, one that passes need not be right. Boxes and masks say where people see the class; what
the network uses beside it counts as an error there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camkit.entries import UNIT, Column, metric
from camkit.metrics.subject import Subject

# A tile is certified where what else is in the mosaic moves the logit by less than a tenth of what it moves
# itself.
CERTIFIED = 0.1


@metric(
    "localisation",
    columns={
        "energy": Column(
            "higher",
            "Energy",
            "Share of the map that lies in the region of its class.",
            optional=True,
            place=0,
            bounds=UNIT,
        ),
        "energy_certified": Column(
            "higher",
            "Energy, certified",
            "The same where the network is known to look at the region alone.",
            optional=True,
            place=1,
            bounds=UNIT,
        ),
        "pointing": Column(
            "higher",
            "Pointing",
            "Share of images whose most salient pixel lies in the region.",
            optional=True,
            jumps=True,
            place=2,
            bounds=UNIT,
        ),
        "region_share": Column(
            "neither",
            "Chance",
            "Share of the image that the region covers: the energy of chance.",
            optional=True,
            bounds=UNIT,
        ),
        "certified": Column(
            "neither",
            "Certified",
            "Share of images whose class depends on the region alone.",
            optional=True,
            share=True,
            bounds=UNIT,
        ),
    },
    flags={"empty_map": "empty maps (energy and pointing of chance)"},
    passes="0; 3 for all methods",
    source="Grid Pointing Game, 2104.00032, 2205.10435; pointing: 1608.00507",
)
def localisation(subject: Subject) -> dict[str, Tensor]:
    """energy: sum of the saliency in the region over the sum of all; chance where the map is empty.

    pointing: 1 where the maximum lies in the region; where several pixels share it, their share that does.
    certified: 1 where blanking the region lowers y_c, and blanking everything outside it by less than a tenth
        of that. Three passes per image, shared by all methods. NaN throughout without a region.
    """
    if subject.regions is None:
        unknown = torch.full_like(subject.probability, torch.nan)
        nothing = torch.zeros_like(subject.probability, dtype=torch.bool)
        return dict.fromkeys(COLUMNS, unknown) | {"empty_map": nothing}
    saliency, inside = subject.saliency, subject.regions
    known = inside.flatten(1).any(dim=1)
    share = inside.flatten(1).to(saliency.dtype).mean(dim=1)
    total = saliency.sum(dim=(1, 2))
    empty = total == 0
    energy = ((saliency * inside).sum(dim=(1, 2)) / total).where(~empty, share)
    best = saliency == saliency.amax(dim=(1, 2), keepdim=True)
    pointing = (best & inside).sum(dim=(1, 2)) / best.sum(dim=(1, 2))
    certified = subject.region_certified(CERTIFIED)
    columns = {
        "energy": energy,
        "energy_certified": energy.where(certified, torch.nan),
        "pointing": pointing.to(saliency.dtype),
        "region_share": share,
        "certified": certified.to(saliency.dtype),
    }
    return {name: column.where(known, torch.nan) for name, column in columns.items()} | {
        "empty_map": empty & known
    }


COLUMNS = ("energy", "energy_certified", "pointing", "region_share", "certified")
