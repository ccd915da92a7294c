"""camkit: benchmark class activation maps (CAMs) over ImageNet.

For scripts and notebooks: `load_model`, `explain`, `score` and `bench`; for plugins: `method`, `metric`,
`Column` and `model`.
"""

from typing import Any

from camkit.entries import Column, method, metric, model

__version__ = "0.1.0"
__all__ = ["Column", "bench", "explain", "load_model", "method", "metric", "model", "score"]

API = ("load_model", "explain", "bench", "score")


def __getattr__(name: str) -> Any:
    if name not in API:
        raise AttributeError(f"module 'camkit' has no attribute {name!r}")
    import camkit.api  # not before it is needed: it brings torch

    return getattr(camkit.api, name)
