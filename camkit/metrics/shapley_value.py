"""How near a map comes to the Shapley values of the layer's positions, see :mod:`camkit.network.game`.

A map is taken as it is, signed, before any post-processing. Maps whose weights are averaged over positions or
rectified (GradCAM and most others) are not divisions of the utility among positions: `value` in `camkit list
methods` and in summary.csv says which are, and so do the tables.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from camkit.entries import CORRELATION, NOT_NEGATIVE, UNIT, Column, metric
from camkit.methods.saliency import to_saliency
from camkit.metrics.adcc import pearson
from camkit.metrics.subject import Subject

# The method `shapley` draws from another stream: its row shows its own noise, not 0.
YARDSTICK = "yardstick"
# A gain that is a smaller share of the values' absolute sum is what rounding leaves of values that cancel.
NO_GAIN = 1e-4


class RootMean:
    """The root of another column's mean, 0 where that is negative."""

    def __init__(self, part: str) -> None:
        self.parts = (part,)

    def of(self, means: np.ndarray) -> np.ndarray:
        """Of the part's mean (..., 1)."""
        return np.sqrt(means[..., 0].clip(min=0))

    def slopes(self, means: np.ndarray) -> np.ndarray:
        """Derivatives by the part's mean, (..., 1); NaN where the figure is 0, as the root has none there."""
        value = self.of(means)[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(value > 0, 1 / (2 * value), np.nan)


COLUMNS = {
    "shapley_error": Column(
        "lower",
        "SV error",
        "Distance of the map from the Shapley values, over their length; over images the root mean square.",
        mean=RootMean("shapley_square"),
        optional=True,
        of_values=True,
        bounds=NOT_NEGATIVE,
    ),
    "shapley_error_scaled": Column(
        "lower",
        "SV error, scaled",
        "The same for the best multiple of the map.",
        mean=RootMean("shapley_square_scaled"),
        optional=True,
        bounds=NOT_NEGATIVE,
    ),
    "shapley_correlation": Column(
        "higher",
        "SV corr.",
        "Correlation of the map with the Shapley values.",
        optional=True,
        bounds=CORRELATION,
    ),
    "efficiency_gap": Column(
        "lower",
        "Efficiency gap",
        "What the sum of the map leaves unaccounted for of the utility.",
        optional=True,
        of_values=True,
        bounds=NOT_NEGATIVE,
    ),
    "saliency_distance": Column(
        "lower",
        "SV distance",
        "Mean distance of the saliency map from that of the Shapley values.",
        bounds=UNIT,
    ),
    "nonadditivity": Column(
        "neither",
        "Non-additivity",
        "Of the game, not of a map: at 0 all Shapley values are trivial.",
        bounds=UNIT,
    ),
    "shapley_noise": Column(
        "neither",
        "SV noise",
        "Of the yardstick, not of a map: standard error of the Shapley values, over their length.",
        bounds=NOT_NEGATIVE,
    ),
    "shapley_square": Column(
        "neither", "SV error²", "Square of the SV error, negative where noise has it so.", optional=True
    ),
    "shapley_square_scaled": Column(
        "neither", "SV error², scaled", "The same for the best multiple of the map.", optional=True
    ),
}


@metric(
    "shapley",
    columns=COLUMNS,
    sees_layer=True,
    passes="0; the game of the layer, for all methods",
    source="Shapley 1953; the game of a layer's positions",
)
def shapley(subject: Subject) -> dict[str, Tensor]:
    """Distances of a map m from the Shapley values phi; those of saliency maps as they stand are empty.

    shapley_square: |m - phi|^2 / |phi|^2, L2 over positions; what the sampling of phi adds is subtracted from
        both squares, so that it can be negative. shapley_square_scaled: the same for the best multiple of m.
        Both are NaN where shapley_noise is 1 or more.
    shapley_error, shapley_error_scaled: their roots, 0 where they are negative; over a data set the roots of
        their means, as a mean of such roots is too high where noise is all there is.
    shapley_correlation: Pearson correlation of m and phi.
    efficiency_gap: |sum of m - (u(A) - u(A0))| / |u(A) - u(A0)|: what the map leaves unaccounted for. NaN
        where the values cancel, as with `--absent mean` at a layer with affine logits: u(A) = u(A0).
    saliency_distance: mean |S - S_phi| of the saliency maps (H, W): what the picture shows.
    nonadditivity: 1 - R^2 of an additive fit to the game, whatever the method: at 0 the yardstick is trivial.
    shapley_noise: standard error of the estimated phi over its length, whatever the method; 0 by enumeration.
    """
    saliency, maps, game = subject.saliency, subject.maps, subject.trace.game
    values, errors = game.shapley(YARDSTICK)
    size = (saliency.shape[1], saliency.shape[2])
    scores = {
        "saliency_distance": (saliency - to_saliency(values, size)).abs().mean(dim=(1, 2)),
        "nonadditivity": game.nonadditivity,
        "shapley_noise": _length(errors) / _length(values),
    }
    if maps is None:
        unknown = torch.full_like(game.nonadditivity, torch.nan)
        return scores | {name: unknown for name, column in COLUMNS.items() if column.optional}
    none, everyone = game.ends
    gain = everyone - none
    gain = gain.where(gain.abs() > NO_GAIN * values.abs().sum(dim=(1, 2)), torch.nan)
    # NaN where the map is 0 everywhere: no multiple of it is nearer than another.
    scale = (maps * values).sum(dim=(1, 2)) / maps.square().sum(dim=(1, 2))
    square = relative_square(maps, values, errors)
    square_scaled = relative_square(maps * scale[:, None, None], values, errors)
    return scores | {
        "shapley_error": square.clamp(min=0).sqrt(),
        "shapley_error_scaled": square_scaled.clamp(min=0).sqrt(),
        "shapley_square": square,
        "shapley_square_scaled": square_scaled,
        "shapley_correlation": pearson(maps, values),
        "efficiency_gap": (maps.sum(dim=(1, 2)) - gain).abs() / gain.abs(),
    }


def _length(values: Tensor) -> Tensor:
    """Euclidean length over positions, (B,)."""
    return values.square().sum(dim=(1, 2)).sqrt()


def relative_square(maps: Tensor, values: Tensor, errors: Tensor) -> Tensor:
    """|m - phi|^2 / |phi|^2 of maps (B, h, w), (B,), where phi is known as values with standard errors.

    The estimate's expected squared distance from phi, the sum of the squared standard errors, is subtracted
    from both squares. The first can then be negative; NaN where nothing is left of the second: an estimate
    that is no longer than its noise says nothing of phi.
    """
    noise = errors.square().sum(dim=(1, 2))
    distance = (maps - values).square().sum(dim=(1, 2)) - noise
    length = values.square().sum(dim=(1, 2)) - noise
    return distance / length.where(length > 0, torch.nan)
