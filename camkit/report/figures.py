"""Pictures: photos beside their saliency maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure

from camkit.errors import CamkitError
from camkit.metrics.subject import pixel_ranks
from camkit.report.scores import known_scores, title_of

# Perceptually even, unlike the field's usual jet, whose bands draw edges that are not in the map.
COLOUR_MAPS = ("inferno", "viridis", "jet")
FRAMES_A_SECOND = 6
MAPS_A_LINE = 10  # of the saliency figure
# Names of methods, models and classes are text; matplotlib takes what is between dollar signs for formulas.
PLAIN_TEXT: dict[Any, Any] = {"text.parse_math": False}


@dataclass(frozen=True)
class Explained:
    """One row of the figure.

    Attributes:
        photo: the crop that the model saw, uint8 (H, W, 3).
        blank, blurred: the same with all pixels deleted, and before any is inserted.
        title: class and probability.
        saliency: method -> saliency map (H, W) in [0, 1].
        scores: method -> column -> score; shown below the maps as far as they are known scores.
        curves: method -> `deletion_curve` and `insertion_curve`, p_c (points,) as pixels change.
    """

    photo: np.ndarray
    blank: np.ndarray
    blurred: np.ndarray
    title: str
    saliency: Mapping[str, np.ndarray]
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


@mpl.rc_context(PLAIN_TEXT)
def saliency_figure(
    rows: Sequence[Explained], colour_map: str = COLOUR_MAPS[0], with_scores: bool = True
) -> Figure:
    """Photos in the first column, then each method's saliency map laid over the photo.

    More than :data:`MAPS_A_LINE` maps of a photo take several lines of about the same length.
    """
    methods = list(dict.fromkeys(method for row in rows for method in row.saliency))
    lines = math.ceil(len(methods) / MAPS_A_LINE)
    columns = math.ceil(len(methods) / lines)
    scored = [scores for row in rows for scores in row.scores.values()] if with_scores else []
    below = max(map(len, map(_score_lines, scored)), default=0)
    height = (1.85 + 0.1 * below) * lines * len(rows)
    figure = Figure(figsize=(1.6 * (1 + columns), height), dpi=120, layout="constrained")
    axes = figure.subplots(lines * len(rows), 1 + columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for place, row in enumerate(rows):
        block = axes[lines * place : lines * (place + 1)]
        block[0, 0].imshow(row.photo)
        block[0, 0].set_title(row.title, fontsize=7)
        for axis, method in zip(block[:, 1:].flat, methods, strict=False):  # the last line may be shorter
            if place == 0 or lines > 1:
                axis.set_title(title_of(method), fontsize=8)
            if method not in row.saliency:  # a plugin's, which failed on this photo
                continue
            axis.imshow(row.photo)
            axis.imshow(row.saliency[method], cmap=colour_map, alpha=0.6, vmin=0, vmax=1)
            words = "\n".join(_score_lines(row.scores.get(method, {}))) if with_scores else ""
            axis.text(0.5, -0.03, words, transform=axis.transAxes, ha="center", va="top", fontsize=5.5)
    return figure


def _score_lines(scores: Mapping[str, float]) -> list[str]:
    """Scores in percent, two per line."""
    words = [f"{score.heading} {100 * scores[score.name]:.1f}" for score in known_scores(scores)]
    return ["   ".join(words[place : place + 2]) for place in range(0, len(words), 2)]


@mpl.rc_context(PLAIN_TEXT)
def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


@mpl.rc_context(PLAIN_TEXT)
def save_changes(rows: Sequence[Explained], path: Path) -> None:
    """A GIF: pixels deleted from each photo, and put into its blurred version, the most salient first.

    Beside them p_c up to there; the line is deletion, the dashes insertion.

    Raises:
        CamkitError: there is no map.
    """
    maps = [(row, method) for row in rows for method in row.saliency]
    if not maps:
        raise CamkitError(f"{path}: there is no map to show")
    points = len(next(iter(maps[0][0].curves.values()))["deletion_curve"])
    figure = Figure(figsize=(4.8, 1.6 * len(maps)), dpi=80, layout="constrained")
    axes = figure.subplots(len(maps), 3, squeeze=False)
    ranks = [pixel_ranks(torch.from_numpy(row.saliency[method])[None])[0].numpy() for row, method in maps]
    artists = []
    for (row, method), (deleted, inserted, plot) in zip(maps, axes, strict=True):
        for axis, name in ((deleted, "deletion"), (inserted, "insertion")):
            axis.axis("off")
            axis.set_title(f"{title_of(method)}: {name}", fontsize=7)
        lines = (plot.plot([], [], style, color="black", linewidth=1)[0] for style in ("-", "--"))
        plot.set(xlim=(0, 1), ylim=(0, 1))
        plot.tick_params(labelsize=6)
        plot.set_title(row.title, fontsize=7)
        artists.append((deleted.imshow(row.photo), inserted.imshow(row.blurred), *lines))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what was found once holds for every frame

    def draw(step: int) -> list:
        for (row, method), rank, (deleted, inserted, *lines) in zip(maps, ranks, artists, strict=True):
            changed = (rank < rank.size * step / (points - 1))[..., None]
            deleted.set_data(np.where(changed, row.blank, row.photo))
            inserted.set_data(np.where(changed, row.photo, row.blurred))
            for line, name in zip(lines, ("deletion_curve", "insertion_curve"), strict=True):
                curve = row.curves[method][name][: step + 1]
                line.set_data(np.arange(len(curve)) / (points - 1), curve)
        return []

    path.parent.mkdir(parents=True, exist_ok=True)
    FuncAnimation(figure, draw, frames=points).save(path, writer=PillowWriter(fps=FRAMES_A_SECOND))
