"""Number formats behind a traced layer: float32, and a batch norm whose second derivative is cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def precise(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class AffineBatchNorm(TorchFunctionMode):
    """Batch norm with fixed statistics as the product and sum that it is.

    With torch's own, which has a slow second derivative, the Hessian term takes half as long again.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        return F.batch_norm(values, running_mean, running_var, weight, bias, training, momentum, eps)
    factor = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * factor
    shape = (-1, *[1] * (values.ndim - 2))
    return torch.addcmul(shift.view(shape), values, factor.view(shape))
