"""CAM methods: one function each, its formula, from a trace to maps (B, h, w) before post-processing.

Passes through the network belong to network, scores to metrics.
"""

# Registration order is the order of methods in every table: the controls come last.
# isort: off
from camkit.methods import gradient
from camkit.methods import shapley
from camkit.methods import aumann
from camkit.methods import adapters
from camkit.methods import controls
from camkit.methods import altered

__all__ = ["adapters", "altered", "aumann", "controls", "gradient", "shapley"]
