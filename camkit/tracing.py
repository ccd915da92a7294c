"""The passes through the network, and the only hooks in the project.

A scoring pass gives the probability of the target class. A traced pass gives, besides the logits, the
activation A of one or more layers, cut from the graph and made a leaf: the backbone is never
differentiated, the graph begins at the layer, and the derivatives of any utility cost next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit.errors import CamkitError, UsageError
from camkit.registry import unknown_name
from camkit.utilities import Utility

# Class, distillation and register tokens of the known transformers number at most eight.
MAX_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class Layout:
    """How a layer's output becomes an activation map (B, C, h, w) and back."""

    to_map: Callable[[Tensor], Tensor]
    from_map: Callable[[Tensor, Tensor], Tensor]  # (map, the layer's output) -> tensor handed on


def layout_of(output: Tensor) -> Layout | None:
    """Recognise (B, C, h, w), (B, h, w, C) and token sequences (B, prefix + h * w, C) of square images.

    Prefix tokens (class, registers) have no position: they stay as they are. None where the output has
    no positions.
    """
    if output.ndim == 4:
        _, first, second, third = output.shape
        if first == second != third:  # the two equal sides are the positions: channels come last
            return Layout(lambda t: t.permute(0, 3, 1, 2), lambda m, _: m.permute(0, 2, 3, 1))
        return Layout(lambda t: t, lambda m, _: m)
    if output.ndim == 3:
        side = math.isqrt(output.shape[1])
        prefix = output.shape[1] - side * side
        if side > 1 and prefix <= MAX_PREFIX_TOKENS:
            return Layout(
                lambda t: t[:, prefix:].transpose(1, 2).unflatten(2, (side, side)),
                lambda m, t: torch.cat([t[:, :prefix], m.flatten(2).transpose(1, 2)], dim=1),
            )
    return None


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at `path`, written `layer4.2.conv3` or `layer4[-1].conv3`.

    Raises:
        UsageError: there is none; the message names the nearest and what stands at that level.
    """
    module = model
    for step in path.replace("[", ".").replace("]", "").strip(".").split("."):
        children = dict(module.named_children())
        if step.lstrip("-").isdigit() and step not in children:
            modules = list(children.values())
            if not -len(modules) <= int(step) < len(modules):
                raise unknown_name("layer", path, children)
            module = modules[int(step)]
        elif step in children:
            module = children[step]
        else:
            raise unknown_name("layer", step, children, also=f" (looking for {path!r})")
    return module


@dataclass(eq=False)
class Trace:
    """What one pass through the network gives a method, for one layer, utility and target.

    Attributes:
        images: the normalised images that were passed, (B, 3, H, W).
        image_ids: their names.
        pixels: the same images before normalisation, RGB in [0, 1], (B, 3, H, W).
        target: target classes, (B,).
        logits: (B, K).
        activation: the layer's output A, (B, C, h, w).
        seed, draw: seed of random methods; 0 for the image, 1 for the masked image of coherency.
    """

    images: Tensor
    image_ids: Sequence[str]
    pixels: Callable[[], Tensor]
    target: Tensor
    utility: Utility
    seed: int
    draw: int
    _logits: Tensor
    _leaf: Tensor

    @property
    def logits(self) -> Tensor:
        return self._logits.detach()

    @property
    def activation(self) -> Tensor:
        return self._leaf.detach()

    @cached_property
    def _differentiable_gradient(self) -> Tensor:
        with torch.enable_grad():
            utility = self.utility(self._logits, self.target)
            gradient = None
            if utility.requires_grad:
                # Each utility is per image, so the sum's gradient is every image's own gradient.
                (gradient,) = torch.autograd.grad(
                    utility.sum(), self._leaf, create_graph=True, allow_unused=True
                )
        if gradient is None:
            raise CamkitError("the logits do not depend on the layer's output: choose another --layer")
        return gradient

    @property
    def gradient(self) -> Tensor:
        """G = du/dA, (B, C, h, w)."""
        return self._differentiable_gradient.detach()

    @cached_property
    def hvp(self) -> Tensor:
        """Hessian-vector product (d2u/dA2) A, (B, C, h, w); 0 where G does not depend on A."""
        gradient = self._differentiable_gradient
        product = None
        if gradient.requires_grad:
            (product,) = torch.autograd.grad(
                gradient, self._leaf, grad_outputs=self.activation, retain_graph=True, allow_unused=True
            )
        return torch.zeros_like(self.activation) if product is None else product.detach()


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
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        model = model.eval().requires_grad_(False).to(device)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.dtype = dtype
        self.passes = 0

    def _precision(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) in float32: one scoring pass."""
        self.passes += 1
        with self._precision():
            return self.model(images).float()

    @torch.inference_mode()
    def score(self, images: Tensor, target: Tensor) -> Tensor:
        """Probability of the target classes, (B,), softmax in float32: one scoring pass."""
        return self.logits(images).softmax(dim=1).gather(1, target[:, None])[:, 0]

    def trace(self, images: Tensor, layers: Sequence[str]) -> TracedPass:
        """One pass that keeps the output of every layer of `layers` (module paths).

        Raises:
            UsageError: a layer does not exist or its output has no positions.
            CamkitError: a layer runs twice or not at all in one pass.
        """
        self.passes += 1
        leaves: dict[str, Tensor] = {}
        with torch.enable_grad(), self._precision(), ExitStack() as tail:
            with self._captured(layers, leaves, tail):
                logits = self.model(images)
            missing = [layer for layer in layers if layer not in leaves]
            if missing:
                raise CamkitError(
                    f"layer {missing[0]!r} does not run in a forward pass: choose another --layer"
                )
            return TracedPass(logits.float(), leaves)

    @contextmanager
    def _captured(self, layers: Sequence[str], leaves: dict[str, Tensor], tail: ExitStack) -> Iterator[None]:
        handles = []
        try:
            for layer in layers:
                module = find_module(self.model, layer)
                handles.append(module.register_forward_hook(partial(self._capture, layer, leaves, tail)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _capture(
        self,
        layer: str,
        leaves: dict[str, Tensor],
        tail: ExitStack,
        module: nn.Module,
        _: tuple,
        output: Tensor,
    ) -> Tensor:
        layout = layout_of(output) if isinstance(output, Tensor) else None
        if layout is None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UsageError(
                f"layer {layer!r} ({type(module).__name__}) gives {shape}: expected (B, C, h, w), "
                "(B, h, w, C) or (B, tokens, C). Choose a --layer before pooling."
            )
        if layer in leaves:
            raise CamkitError(
                f"layer {layer!r} runs more than once in a forward pass: choose another --layer"
            )
        activation = layout.to_map(output)
        if not activation.requires_grad:
            activation = activation.detach().to(torch.float32, copy=True).requires_grad_()
            # Derivatives are taken from here on: float32, and the attention that has a second derivative.
            tail.enter_context(torch.autocast(self.device.type, enabled=False))
            tail.enter_context(sdpa_kernel(SDPBackend.MATH))
        leaves[layer] = activation
        # A later in-place operation (VGG's ReLU) must change a copy, neither the leaf nor A's memory.
        return layout.from_map(activation.clone(), output)


def last_feature_layer(model: nn.Module, images: Tensor) -> str | None:
    """Path of the last module before pooling: its output has positions, and the logits depend on them.

    A ViT's last blocks are passed over: after the last attention nothing but the class token counts.
    """
    outputs: list[tuple[str, Tensor, Tensor]] = []

    def keep(path: str, module: nn.Module, _: tuple, output: object) -> None:
        layout = layout_of(output) if isinstance(output, Tensor) else None
        if layout is not None:
            positions = layout.to_map(output)  # type: ignore[arg-type]
            height, width = positions.shape[2:]
            if height == width > 1:
                outputs.append((path, positions, output))  # type: ignore[arg-type]

    handles = [m.register_forward_hook(partial(keep, path)) for path, m in model.named_modules() if path]
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            logits = model(images.detach().clone().requires_grad_())
            top = logits.max(dim=1).values.sum()
            for path, positions, output in reversed(outputs):
                # Inner projections of an attention (queries, keys) have another number of channels.
                if positions.shape[1] != outputs[-1][1].shape[1] or not output.requires_grad:
                    continue
                (gradient,) = torch.autograd.grad(top, output, retain_graph=True, allow_unused=True)
                if gradient is not None:
                    layout = layout_of(gradient)
                    assert layout is not None  # it has the shape of the output
                    if (layout.to_map(gradient) != 0).any():
                        return path
    finally:
        for handle in handles:
            handle.remove()
    return None
