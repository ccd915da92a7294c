"""CAM methods. Each is its formula: a function from a trace to maps (B, h, w), before post-processing."""

from camkit.methods import baseline, gradient, shapley

__all__ = ["baseline", "gradient", "shapley"]
