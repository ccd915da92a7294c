"""CAM methods. Each is its formula: a function from a trace to maps (B, h, w), before post-processing."""

# Registration order is the order of methods in every table: the controls come last.
# isort: off
from camkit.methods import gradient
from camkit.methods import shapley
from camkit.methods import aumann
from camkit.methods import adapters
from camkit.methods import baseline

__all__ = ["adapters", "aumann", "baseline", "gradient", "shapley"]
