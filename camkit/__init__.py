"""camkit: benchmark class activation maps (CAMs) over ImageNet.

For scripts and notebooks: `load_model`, `explain` and `bench`; for plugins: `method`, `metric`,
`Column`, `model` and `adapter`.
"""

from typing import Any

from camkit.entries import Column, method, metric, model
from camkit.plugins import adapter

__version__ = "0.1.0"
__all__ = ["Column", "adapter", "bench", "explain", "load_model", "method", "metric", "model"]

API = ("load_model", "explain", "bench")


def __getattr__(name: str) -> Any:
    if name not in API:
        raise AttributeError(f"module 'camkit' has no attribute {name!r}")
    import camkit.api  # not before it is needed: it brings torch

    return getattr(camkit.api, name)
