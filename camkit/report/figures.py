"""Pictures: photos beside their saliency maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

# Perceptually even, unlike the field's usual jet, whose bands draw edges that are not in the map.
COLOUR_MAPS = ("inferno", "viridis", "jet")


@dataclass(frozen=True)
class Explained:
    """One row of the figure.

    Attributes:
        photo: the crop that the model saw, uint8 (H, W, 3).
        title: class and probability.
        saliency: method -> saliency map (H, W) in [0, 1].
    """

    photo: np.ndarray
    title: str
    saliency: dict[str, np.ndarray]


def saliency_figure(rows: Sequence[Explained]) -> Figure:
    """Photos in the first column, then each method's saliency map laid over the photo."""
    columns = 1 + max(len(row.saliency) for row in rows)
    figure = Figure(figsize=(1.6 * columns, 1.85 * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for place, (row, line) in enumerate(zip(rows, axes, strict=True)):
        for axis in line:
            axis.axis("off")
        line[0].imshow(row.photo)
        line[0].set_title(row.title, fontsize=7)
        for axis, (method, saliency) in zip(line[1:], row.saliency.items(), strict=False):
            axis.imshow(row.photo)
            axis.imshow(saliency, cmap=COLOUR_MAPS[0], alpha=0.6, vmin=0, vmax=1)
            if place == 0:
                axis.set_title(method, fontsize=8)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
