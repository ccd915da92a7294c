"""Maps that are changed in a known way, to find out what a score notices (`camkit grade`).

`METHOD~moved-T` puts T percent of a map into a wrong tile of its mosaic. `METHOD~sqrt`, `~square` and
`~raised` move nothing: the order of the pixels stays, their histogram changes. A score is worth what it says
about place. `METHOD~same` is the saliency map as it is: scores of signed maps see that its sign is gone.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from camkit.entries import METHODS, Method, family
from camkit.methods.saliency import to_saliency
from camkit.network.trace import Trace

MARK = "~"
MOVED = (10, 25, 50, 100)  # percent
HARMLESS = ("sqrt", "square", "raised")
SAME = "same"
CHANGES = (SAME, *(f"moved-{share}" for share in MOVED), *HARMLESS)
RAISED = 0.3


def moved(saliency: Tensor, regions: Tensor, share: float) -> Tensor:
    """(1 - t) S + t S', S' the map shifted by one tile: the same total, a share of it in the wrong place.

    Args:
        regions: the tiles of the target classes, bool (B, H, W); images without one keep their map.
        share: t.
    """
    shifted = torch.stack(
        [one.roll(int(tile.any(dim=0).sum()), dims=1) for one, tile in zip(saliency, regions, strict=True)]
    )
    return torch.lerp(saliency, shifted, share)


def alter(trace: Trace, base: Method, change: str) -> Tensor:
    """The saliency maps (B, H, W) of a method, changed."""
    maps = base.function(trace)
    saliency = maps if base.saliency else to_saliency(maps, (trace.images.shape[2], trace.images.shape[3]))
    if change == SAME:
        return saliency
    if change == "sqrt":
        return saliency.sqrt()
    if change == "square":
        return saliency.square()
    if change == "raised":
        return (1 - RAISED) * saliency + RAISED
    assert trace.regions is not None  # it uses them
    return moved(saliency, trace.regions, int(change.removeprefix("moved-")) / 100)


@family(
    rf"(.+){MARK}({SAME}|moved-(?:[1-9]|[1-9][0-9]|100)|{'|'.join(HARMLESS)})",
    form=f"METHOD{MARK}CHANGE",
)
def find_altered(name: str, base: str, change: str) -> Method:
    """Changed maps: `~moved-T` (T % into a wrong tile), `~sqrt`, `~square`, `~raised`, `~same`; `~all`."""
    found = METHODS[base]
    return Method(
        name,
        partial(alter, base=found, change=change),
        f"{found.title}, {change}",
        (),
        f"{base}, changed",
        saliency=True,
        uses=(*found.uses, *(["regions", "tiles"] if change.startswith("moved") else [])),
        cost=found.cost,
        lacks=found.lacks,
        source_file=found.source_file,
    )


def expand(name: str) -> list[str]:
    """`METHOD~all` -> the method and all its changes; any other name as it is."""
    base, mark, rest = name.rpartition(MARK)
    return [base, *(f"{base}{MARK}{change}" for change in CHANGES)] if mark and rest == "all" else [name]


def is_altered(name: str) -> bool:
    """Whether a method's name is that of changed maps."""
    return MARK in name
