"""The only averaging: from one row an image to one row a cell."""

from __future__ import annotations

import pandas as pd

MEAN_COLUMNS = ("average_drop", "increase", "drop_in_deletion", "coherency", "complexity")


def harmonic_adcc(coherency: float, complexity: float, average_drop: float) -> float:
    """ADCC of a data set: the harmonic mean of the *means* Coh, 1 - Com and 1 - AD; 0 where a factor is 0."""
    factors = (coherency, 1 - complexity, 1 - average_drop)
    if any(factor != factor for factor in factors):
        return float("nan")
    return 0.0 if min(factors) <= 0 else 3 / sum(1 / factor for factor in factors)


def cell_means(rows: pd.DataFrame, columns: list[str]) -> dict[str, float]:
    """Mean of each score column over the images that have it; NaN where none has.

    `adcc` is the published figure (:func:`harmonic_adcc`), `adcc_image_mean` the mean of the per-image ADCC.
    """
    means = {column: float(rows[column].mean()) for column in columns}
    means["adcc_image_mean"] = means["adcc"]
    means["adcc"] = harmonic_adcc(means["coherency"], means["complexity"], means["average_drop"])
    return means
