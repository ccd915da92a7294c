"""The passes through the network, and the only hooks in the project.

A scoring pass gives the probability of the target class. A traced pass gives, besides the logits, the
activation A of one or more layers, cut from the graph and made a leaf: the backbone is never
differentiated, the graph begins at the layer, and the derivatives of any utility cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit.errors import CamkitError
from camkit.network.layers import find_module, find_reshape, hooked
from camkit.network.precision import AffineBatchNorm, precise


@dataclass(eq=False)
class TracedPass:
    """Logits (B, K) and the activations of the traced layers, still tied to their graph."""

    logits: Tensor
    leaves: dict[str, Tensor]


class Network:
    """A frozen model on a device, and the passes through it.

    Args:
        model: gives logits (B, K) for normalised images (B, 3, H, W).
        dtype: number format of the passes. Below float32 the backbone runs under autocast; from the first
            traced layer on everything stays float32, so that the derivatives keep their accuracy.

    Attributes:
        passes: how many batches have gone through the network.
        head_passes: how many have gone through what follows a layer alone (:mod:`camkit.network.head`).
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        model = model.eval().requires_grad_(False).to(device)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.dtype = dtype
        self._scored: Callable[[Tensor], Tensor] = self.model
        self.passes = self.head_passes = 0
        # Layer -> what passes it by, see Head: a matter of the network alone, so found once.
        self.bypasses: dict[str, frozenset[int]] = {}

    def compile(self) -> None:
        """Let torch.compile make the code of scoring passes from now on, anew for each batch shape.

        Passes that explain are left alone: they are cut at the traced layers, and differentiated twice.
        """
        torch._dynamo.reset()  # it compiles the code of a class eight times at most, whichever the model
        self._scored = torch.compile(self.model, dynamic=False)

    def precision(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) in float32: one scoring pass."""
        self.passes += 1
        with self.precision():
            return precise(self._scored(images))

    @torch.inference_mode()
    def score(self, images: Tensor, target: Tensor) -> Tensor:
        """Probability of the target classes, (B,), softmax in float32: one scoring pass."""
        return self.logits(images).softmax(dim=1).gather(1, target[:, None])[:, 0]

    def logit(self, images: Tensor, target: Tensor) -> Tensor:
        """Logits of the target classes, (B,), in float32: one scoring pass."""
        return self.logits(images).gather(1, target[:, None])[:, 0]

    def trace(self, images: Tensor, layers: Sequence[str]) -> TracedPass:
        """One pass that keeps the output of every layer of `layers` (module paths).

        Raises:
            UsageError: a layer does not exist or its output has no positions.
            CamkitError: a layer runs twice or not at all in one pass.
        """
        self.passes += 1
        leaves: dict[str, Tensor] = {}
        with torch.enable_grad(), self.precision(), ExitStack() as tail:
            modules = [find_module(self.model, layer) for layer in layers]
            hooks = [partial(self._capture, layer, leaves, tail) for layer in layers]
            with hooked(zip(modules, hooks, strict=True)):
                logits = self.model(images)
            missing = [layer for layer in layers if layer not in leaves]
            if missing:
                raise CamkitError(
                    f"layer {missing[0]!r} does not run in a forward pass: choose another --layer"
                )
            return TracedPass(precise(logits), leaves)

    def _capture(
        self,
        layer: str,
        leaves: dict[str, Tensor],
        tail: ExitStack,
        module: nn.Module,
        _: tuple,
        output: Tensor,
    ) -> Tensor:
        reshape = find_reshape(layer, module, output)
        if layer in leaves:
            raise CamkitError(
                f"layer {layer!r} runs more than once in a forward pass: choose another --layer"
            )
        activation = reshape.to_map(output)
        if not activation.requires_grad:
            activation = precise(activation.detach()).clone().requires_grad_()
            self.enter_tail(tail)
        leaves[layer] = activation
        # A later in-place operation (VGG's ReLU) must change a copy, neither the leaf nor A's memory.
        return reshape.from_map(activation.clone(), output)

    def enter_tail(self, tail: ExitStack) -> None:
        # Derivatives are taken from here on: float32, the attention that has a second derivative, and a batch
        # norm whose second derivative is cheap.
        tail.enter_context(torch.autocast(self.device.type, enabled=False))
        tail.enter_context(sdpa_kernel(SDPBackend.MATH))
        tail.enter_context(AffineBatchNorm())
