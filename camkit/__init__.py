"""camkit: benchmark class activation maps (CAMs) over ImageNet.

For scripts and notebooks: `load_model`, `explain`, `score` and `bench`; for plugins: `method`, `metric`,
`Column`, `model` and `adapter`.
"""

from typing import Any

import camkit.results.columns  # noqa: F401  (before any metric is registered: none may have their names)
from camkit.entries import Column, method, metric, model
from camkit.plugins import adapter

__version__ = "0.1.0"
__all__ = ["Column", "adapter", "bench", "explain", "load_model", "method", "metric", "model", "score"]

API = ("load_model", "explain", "bench", "score")


def __getattr__(name: str) -> Any:
    if name not in API:
        raise AttributeError(f"module 'camkit' has no attribute {name!r}")
    import camkit.api  # not before it is needed: it brings torch

    return getattr(camkit.api, name)
