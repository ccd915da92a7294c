"""Metrics: one function per group of scores, from a subject to columns (B,).

What a column means is declared where it is registered; results and report average over a data set.
"""

# Registration order is the order of columns in tables.

# isort: off
from camkit.metrics import adcc
from camkit.metrics import causal
from camkit.metrics import shapley_value
from camkit.metrics import single_deletion
from camkit.metrics import road
from camkit.metrics import shape
from camkit.metrics import localisation
from camkit.metrics import null_positions
from camkit.metrics import class_sensitivity
from camkit.metrics import axioms
from camkit.metrics.subject import Subject

__all__ = [
    "Subject", "adcc", "axioms", "causal", "class_sensitivity", "localisation", "null_positions", "road",
    "shape", "shapley_value", "single_deletion",
]  # fmt: skip
