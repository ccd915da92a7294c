"""ADCC and its parts (Poppi et al., CVPRW 2021), with increase in confidence and drop in deletion.

Average drop and increase can be had by themselves, for one pass less.

All are fractions in [0, 1]; the mask multiplies the normalised image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from camkit.entries import UNIT, Column, metric
from camkit.methods.saliency import is_degenerate
from camkit.metrics.subject import MASKED, Subject


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of each pair of maps of two (B, H, W); (B,), NaN where one is constant."""
    # float64: maps like `fake-cam` differ from a constant in one pixel only, and the squares of a saturated
    # softmax's tiny maps would underflow. MPS has none.
    device = "cpu" if first.device.type == "mps" else first.device
    a, b = (maps.flatten(1).to(device, torch.float64) for maps in (first, second))
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    correlation = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
    # The mean of equal numbers may differ from them in its last bit.
    constant = is_degenerate(first) | is_degenerate(second)
    return correlation.clamp(-1, 1).to(first).where(~constant, torch.nan)


def coherency(subject: Subject) -> Tensor:
    """(1 + correlation of the map with that of the masked image) / 2, (B,); 0 where one is constant."""
    saliency, (_, masked) = subject.saliency, subject.explained_masked
    constant = is_degenerate(saliency) | is_degenerate(masked)
    return ((1 + pearson(saliency, masked)) / 2).where(~constant, 0)


def relative_drop(before: Tensor, after: Tensor) -> Tensor:
    """max(0, before - after) / before, and 0 where before is 0."""
    return ((before - after).clamp(min=0) / before).where(before > 0, 0)


def harmonic_adcc(coherency: Tensor, complexity: Tensor, average_drop: Tensor) -> Tensor:
    """3 / (1/Coh + 1/(1 - Com) + 1/(1 - AD)), and 0 where a factor is 0; NaN where one is."""
    factors = torch.stack([coherency, 1 - complexity, 1 - average_drop])
    return (3 / (1 / factors).sum(dim=0)).where(~(factors <= 0).any(dim=0), 0)


class AdccMean:
    """The published ADCC of a data set: the harmonic mean of the *means* Coh, 1 - Com and 1 - AD."""

    parts = ("coherency", "complexity", "average_drop")
    _sign, _offset = np.array([1, -1, -1]), np.array([0, 1, 1])

    def of(self, means: np.ndarray) -> np.ndarray:
        """Of the parts' means (..., 3); 0 where a factor is not positive, NaN where one is NaN."""
        factors = self._offset + self._sign * means
        with np.errstate(divide="ignore"):
            mean = factors.shape[-1] / (1 / factors).sum(axis=-1)
        return np.where(np.isnan(factors).any(axis=-1) | (factors > 0).all(axis=-1), mean, 0.0)

    def slopes(self, means: np.ndarray) -> np.ndarray:
        """Derivatives by the parts' means, (..., 3); 0 where the figure is 0."""
        value = self.of(means)[..., None]
        factors = self._offset + self._sign * means
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(value > 0, self._sign * value**2 / (3 * factors**2), 0.0)


AVERAGE_DROP = Column(
    "lower",
    "AD",
    "Average drop: share of the probability lost when only the marked part is kept.",
    place=0,
    bounds=UNIT,
)
COMPLEXITY = Column(
    "lower",
    "Com",
    "Complexity: how much of the image the map marks (its mean).",
    place=2,
    bounds=UNIT,
)
INCREASE = Column(
    "higher",
    "IC",
    "Increase in confidence: share of images whose probability rises when masked.",
    place=4,
    jumps=True,
    share=True,
    bounds=UNIT,
)


def relative_gain(before: Tensor, after: Tensor) -> Tensor:
    """max(0, after - before) / (1 - before), and 0 where before is 1."""
    return ((after - before).clamp(min=0) / (1 - before)).where(before < 1, 0)


def masked_scores(before: Tensor, masked: Tensor) -> dict[str, Tensor]:
    """Average drop and increase, (B,), from p_c of the images and of the masked images, (B,)."""
    increase = (masked > before).to(before.dtype).where(~masked.isnan(), torch.nan)
    return {"average_drop": relative_drop(before, masked), "increase": increase}


@metric(
    "average_drop",
    columns={
        "average_drop": AVERAGE_DROP,
        "increase": INCREASE,
        "average_gain": Column(
            "higher",
            "AG",
            "Average gain: share of what is missing to certainty that the marked part gains.",
            place=5,
            bounds=UNIT,
        ),
    },
    passes="1",
    source="Chattopadhay et al., WACV 2018, 1710.11063; average gain: Opti-CAM, 2301.07002",
)
def average_drop(subject: Subject) -> dict[str, Tensor]:
    """One pass, the masked image; none beside `adcc`, which has the first two columns too."""
    before = subject.probability
    if subject.knows(MASKED):
        after, _ = subject.explained_masked
    else:
        after = subject.score(subject.images * subject.saliency[:, None])
    return masked_scores(before, after) | {"average_gain": relative_gain(before, after)}


@metric(
    "adcc",
    columns={
        "average_drop": AVERAGE_DROP,
        "increase": INCREASE,
        "drop_in_deletion": Column(
            "higher",
            "ADD",
            "Drop in deletion: share of the probability lost when the marked part is taken away.",
            place=5,
            bounds=UNIT,
        ),
        "coherency": Column(
            "higher",
            "Coh",
            "Coherency: how alike the map is to the map of the image that it masks.",
            place=1,
            bounds=UNIT,
        ),
        "complexity": COMPLEXITY,
        "adcc": Column(
            "higher",
            "ADCC",
            "Harmonic mean of coherency, 1 − complexity and 1 − average drop.",
            mean=AdccMean(),
            place=3,
            bounds=UNIT,
        ),
    },
    flags={"degenerate_masked": "degenerate maps of the masked image (coherency 0)"},
    explains_again=True,
    passes="2",
    source="Poppi et al., CVPRW 2021; drop in deletion: Jung and Oh, ICCV 2021",
)
def adcc(subject: Subject) -> dict[str, Tensor]:
    """Two passes: the masked image (its p_c and its own saliency map), and the image without the mask."""
    saliency, before = subject.saliency, subject.probability
    masked_probability, masked_saliency = subject.explained_masked
    deleted_probability = subject.score(subject.images * (1 - saliency[:, None]))
    coherent, complexity = coherency(subject), saliency.mean(dim=(1, 2))
    masked = masked_scores(before, masked_probability)
    return {
        **masked,
        "drop_in_deletion": relative_drop(before, deleted_probability),
        "coherency": coherent,
        "complexity": complexity,
        "adcc": harmonic_adcc(coherent, complexity, masked["average_drop"]),
        "degenerate_masked": is_degenerate(masked_saliency),
    }
