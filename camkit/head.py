"""The rest of a network after a layer, as a function of the layer's activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from camkit.layers import Layout, find_module

if TYPE_CHECKING:
    from camkit.tracing import Network


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


class Head:
    """The rest of the network as a function of one layer's activation, for fixed images.

    What ran before the layer does not run again: each module that had finished hands out what it gave.

    Attributes:
        bypassed: whether something passes the layer by (a skip connection), so that the logits are not a
            function of its activation alone.
    """

    def __init__(
        self,
        network: Network,
        layer: str,
        layout: Layout,
        images: Tensor,
        output: Tensor,
        finished: Sequence[tuple[nn.Module, Tensor]],
    ) -> None:
        self.network = network
        self.module = find_module(network.model, layer)
        self.layout = layout
        self.output = output
        self.modules = [module for module, _ in finished]
        self.given = [images, *(given for _, given in finished)]
        if layer not in network.bypasses:
            network.bypasses[layer] = self._find_bypasses()
        self.passing = network.bypasses[layer]
        self.bypassed = bool(self.passing)
        # A copy of its own: another module's output may share its memory.
        self.given = [one.clone() if place in self.passing else one for place, one in enumerate(self.given)]

    def __call__(self, activation: Tensor) -> Tensor:
        """Logits (B, K) with `activation` (B, C, h, w) in place of the layer's own: one head pass."""
        self.network.head_passes += 1
        # An in-place operation further on must not change what the next call is given.
        given = [one.clone() if place in self.passing else one for place, one in enumerate(self.given)]
        return self._replay(activation, given)

    def _find_bypasses(self) -> frozenset[int]:
        """Which of `given` reach the logits without passing through the layer."""
        with torch.enable_grad():
            leaves = [one.detach().clone() for one in self.given]
            leaves = [one.requires_grad_() if one.is_floating_point() else one for one in leaves]
            activation = precise(self.layout.to_map(self.output)).detach()
            logits = self._replay(activation, [one.clone() for one in leaves])
            if not logits.requires_grad:
                return frozenset()
            floating = [place for place, one in enumerate(leaves) if one.requires_grad]
            gradients = torch.autograd.grad(
                logits.sum(), [leaves[place] for place in floating], allow_unused=True
            )
        return frozenset(
            place for place, gradient in zip(floating, gradients, strict=True) if gradient is not None
        )

    def _replay(self, activation: Tensor, given: Sequence[Tensor]) -> Tensor:
        images, *outputs = given
        with self.network.precision(), ExitStack() as tail:

            def substitute(*_: object, **__: object) -> Tensor:
                self.network.enter_tail(tail)
                return self.layout.from_map(activation.clone(), self.output)

            queues: dict[nn.Module, list[Tensor]] = {}
            for module, output in zip(self.modules, outputs, strict=True):
                queues.setdefault(module, []).append(output)
            with ExitStack() as replaced:
                for module, queue in queues.items():
                    _replace_forward(module, _hand_out(queue, module.forward), replaced)
                _replace_forward(self.module, substitute, replaced)
                return precise(self.network.model(images))


def _hand_out(outputs: list[Tensor], forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward that gives `outputs` in turn, and after them (a module may run again) what it computes."""
    rest = iter(outputs)

    def hand_out(*inputs: object, **options: object) -> Tensor:
        output = next(rest, None)
        return forward(*inputs, **options) if output is None else output

    return hand_out


def _replace_forward(module: nn.Module, forward: Callable[..., Tensor], until: ExitStack) -> None:
    own = vars(module).get("forward")
    module.forward = forward  # type: ignore[method-assign]
    until.callback(
        partial(delattr, module, "forward") if own is None else partial(setattr, module, "forward", own)
    )
