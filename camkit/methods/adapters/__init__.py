"""Explainers of other packages as they are: `captum:NAME`, `grad_cam:NAME`, `torchcam:NAME`.

The packages are optional. Each explains the same utility of the same class as camkit's own methods, but runs
the network itself.
"""

from camkit.methods.adapters import captum, grad_cam, torchcam

__all__ = ["captum", "grad_cam", "torchcam"]
