"""Metrics: one function per group of scores, from a subject to columns (B,).

What a column means is declared where it is registered; averages over a data set are made in report.
"""

# Registration order is the order of columns in tables. isort: off
from camkit.metrics import (
    adcc,
    axioms,
    causal,
    class_sensitivity,
    localisation,
    null_positions,
    shapley_value,
    single_deletion,
)
from camkit.metrics.subject import Subject

__all__ = [
    "Subject", "adcc", "axioms", "causal", "class_sensitivity", "localisation", "null_positions",
    "shapley_value", "single_deletion",
]  # fmt: skip
