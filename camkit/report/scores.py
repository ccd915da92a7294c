"""The scores as people read them: headings, directions, and one plain line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import camkit.methods
import camkit.metrics  # noqa: F401  (both fill the registries)
from camkit.registry import METHODS, METRICS, method_place

# The maps of these controls are the same for every image.
BLIND = ("flat", "fake-cam", "centre")
# What each ShapleyCAM turns into where the Hessian term is zero.
WITHOUT_HESSIAN = {"shapleycam": "gradcam", "shapleycam-h": "hirescam", "shapleycam-e": "gradcam-e"}


@dataclass(frozen=True)
class Score:
    """A score column.

    Attributes:
        column: its name in the CSV files.
        short: the field's name for it.
        plain: what it means, one sentence.
        sign: 1 where higher is better, -1 where lower is, 0 where it is no score of the map.
    """

    column: str
    short: str
    plain: str
    sign: int

    @property
    def heading(self) -> str:
        """The short name with an arrow to the better side."""
        return f"{self.short} {' ↑↓'[self.sign]}".rstrip()

    @property
    def better(self) -> str:
        return ("neither", "higher", "lower")[self.sign]


# In the order of the paper's table, then deletion and insertion.
PLAIN = {
    "average_drop": ("AD", "Average drop: share of the probability lost when only the marked part is kept."),
    "coherency": ("Coh", "Coherency: how alike the map is to the map of the image that it masks."),
    "complexity": ("Com", "Complexity: how much of the image the map marks (its mean)."),
    "adcc": ("ADCC", "Harmonic mean of coherency, 1 − complexity and 1 − average drop."),
    "increase": ("IC", "Increase in confidence: share of images whose probability rises when masked."),
    "drop_in_deletion": (
        "ADD",
        "Drop in deletion: share of the probability lost when the marked part is taken away.",
    ),
    "deletion_auc": ("Deletion", "Area under the probability as pixels are blanked, the most salient first."),
    "insertion_auc": ("Insertion", "Area under the probability as pixels come in, the most salient first."),
    "shapley_error": ("SV error", "Distance of the map from the Shapley values, over their length."),
    "shapley_error_scaled": ("SV error, scaled", "The same for the best multiple of the map."),
    "shapley_correlation": ("SV corr.", "Correlation of the map with the Shapley values."),
    "efficiency_gap": ("Efficiency gap", "What the sum of the map leaves unaccounted for of the utility."),
    "saliency_distance": (
        "SV distance",
        "Mean distance of the saliency map from that of the Shapley values.",
    ),
    "single_deletion": (
        "SD",
        "Rank correlation, over patches, of the map with the logit's loss when one patch is blanked.",
    ),
    "nonadditivity": ("Non-additivity", "Of the game, not of a map: at 0 all Shapley values are trivial."),
    "shapley_noise": (
        "SV noise",
        "Of the yardstick, not of a map: standard error of the Shapley values, over their length.",
    ),
}


def known_scores(columns: Iterable[str]) -> list[Score]:
    """The scores among `columns`, in the table's order; columns that no metric declares are left out."""
    directions = {
        column: better for metric in METRICS.values() for column, better in metric.directions.items()
    }
    order = list(dict.fromkeys([*PLAIN, *directions]))
    present = set(columns)
    return [
        Score(
            column,
            *PLAIN.get(column, (column, column)),
            {"higher": 1, "lower": -1}.get(directions[column], 0),
        )
        for column in order
        if column in present and column in directions
    ]


# Methods are looked up among the registered ones only: the member of a family (`grad_cam:NAME`) would be made
# by a package that whoever reads the results need not have.


def is_control(name: str) -> bool:
    return name in tuple(METHODS) and "controls" in METHODS[name].groups


def table_place(name: str) -> tuple[bool, int, str]:
    """Sorts methods as tables show them: the controls last."""
    return is_control(name), *method_place(name)
