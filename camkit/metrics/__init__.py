"""Metrics. Each is a pure function: images, saliency maps and two callables in, scores (B,) a column out."""

from camkit.metrics import adcc, causal, shapley_value, single_deletion
from camkit.metrics.subject import Subject

__all__ = ["Subject", "adcc", "causal", "shapley_value", "single_deletion"]
