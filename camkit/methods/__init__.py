"""CAM methods: one function each, its formula, from a trace to maps (B, h, w) before post-processing.

Passes through the network belong to network, scores to metrics.
"""

# Registration order is the order of methods in every table: the controls come last.
# isort: off
from camkit.methods import gradient
from camkit.methods import shapley
from camkit.methods import aumann
from camkit.methods import components
from camkit.methods import channels
from camkit.methods import positions
from camkit.methods import images
from camkit.methods import transformers
from camkit.methods import fusion
from camkit.methods import adapters
from camkit.methods import controls
from camkit.methods import altered

__all__ = [
    "adapters", "altered", "aumann", "channels", "components", "controls", "fusion", "gradient", "images",
    "positions", "shapley", "transformers",
]  # fmt: skip
