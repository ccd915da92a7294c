"""Mean deletion and insertion curves of a block, with the interval of the mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from camkit.report.intervals import LEVEL
from camkit.report.study import Block
from camkit.results.arrays import curve_paths, read_curves, thin
from camkit.results.folder import file_name


@dataclass(frozen=True)
class MeanCurve:
    """A mean over images.

    Attributes:
        mean: (points,), at equally spaced shares of the pixels from 0 to 1.
        half: (points,), half the 95 % interval of the mean (Student's t), point by point; NaN of one image.
        images: how many.
    """

    mean: np.ndarray
    half: np.ndarray
    images: int


def mean_curves(block: Block) -> dict[str, dict[str, MeanCurve]]:
    """`deletion` or `insertion` -> method -> its mean curve; without what the run kept no curves of."""
    found: dict[str, dict[str, MeanCurve]] = {}
    for method in block.methods:
        for path in curve_paths(block.folder, file_name(method)):
            name = path.name.removeprefix(f"{file_name(method)}.").removesuffix("_curve")
            kept = read_curves(path)
            curves = [thin(kept[image][None])[0] for image in block.images if image in kept]
            if curves:
                found.setdefault(name, {})[method] = _mean(np.stack(curves).astype(np.float64))
    return found


def _mean(curves: np.ndarray) -> MeanCurve:
    images = len(curves)
    if images == 1:
        return MeanCurve(curves[0], np.full(curves.shape[1], np.nan), 1)
    error = curves.std(axis=0, ddof=1) / np.sqrt(images)
    return MeanCurve(curves.mean(axis=0), stats.t.isf((1 - LEVEL) / 2, images - 1) * error, images)
