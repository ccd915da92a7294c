"""The passes through the network, and the only hooks in the project.

A scoring pass gives the probability of the target class. A traced pass gives, besides the logits, the
activation A of one or more layers, cut from the graph and made a leaf: the backbone is never
differentiated, the graph begins at the layer, and the derivatives of any utility cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit.config import DEFAULT_BUDGET
from camkit.errors import CamkitError
from camkit.game import Game, absent_activation
from camkit.head import AffineBatchNorm, Head, precise
from camkit.layers import find_layout, find_module, layout_of
from camkit.seeding import generator
from camkit.utilities import Utility


@dataclass(eq=False)
class ImageView:
    """What a method has of images that is the same for all layers and utilities.

    Attributes:
        images: normalised, (B, 3, H, W).
        image_ids: their names.
        pixels: the same images before normalisation, RGB in [0, 1], (B, 3, H, W).
        target: target classes, (B,).
        seed, draw: seed of random methods; 0 for the image, 1 for the masked image of coherency.
        network: the model whose classes are explained.
    """

    images: Tensor
    image_ids: Sequence[str]
    pixels: Callable[[], Tensor]
    target: Tensor
    seed: int
    draw: int
    network: Network

    def score(self, images: Tensor) -> Tensor:
        """Probability p_c (B,) of other images (B, 3, H, W): one pass."""
        return self.network.score(images, self.target)

    def logit(self, images: Tensor) -> Tensor:
        """Logit y_c (B,) of other images (B, 3, H, W): one pass."""
        return self.network.logits(images).gather(1, self.target[:, None])[:, 0]


@dataclass(eq=False)
class Trace(ImageView):
    """What one pass through the network gives a method, for one layer, utility and target.

    Attributes:
        logits: (B, K).
        activation: the layer's output A, (B, C, h, w).
        layer: where the activation comes from, a module path.
        absent: what an absent position's activation is, see :func:`camkit.game.absent_activation`.
        budget: permutations from which a Shapley value is estimated.
    """

    utility: Utility
    layer: str
    _logits: Tensor
    _leaf: Tensor
    absent: str = "zero"
    budget: int = DEFAULT_BUDGET

    @property
    def logits(self) -> Tensor:
        return self._logits.detach()

    @property
    def activation(self) -> Tensor:
        return self._leaf.detach()

    @cached_property
    def _differentiable_gradient(self) -> Tensor:
        with torch.enable_grad():
            return _gradient(self.utility(self._logits, self.target), self._leaf, create_graph=True)

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

    @cached_property
    def _head(self) -> Head:
        return self.network.head(self.images, self.layer)

    def head(self, activation: Tensor) -> Tensor:
        """Utility (B,) with another activation (B, C, h, w) in place of A: the rest of the network alone.

        What passes the layer by (a skip connection) keeps the value that it has for the images.

        Raises:
            CamkitError: `activation` has another shape than A.
        """
        if activation.shape != self._leaf.shape:
            expected, received = tuple(self._leaf.shape), tuple(activation.shape)
            raise CamkitError(f"trace.head takes an activation of shape {expected}, not {received}")
        return self.utility(self._head(activation), self.target)

    def gradient_at(self, activation: Tensor) -> Tensor:
        """du/dA at another activation, (B, C, h, w): one pass through the rest of the network and back."""
        with torch.enable_grad():
            leaf = activation.detach().clone().requires_grad_()
            return _gradient(self.head(leaf), leaf, create_graph=False)

    @cached_property
    def absent_activation(self) -> Tensor:
        """What A is where a position is absent, (B, C, h, w)."""
        return absent_activation(self.activation, self.absent)

    @cached_property
    def game(self) -> Game:
        """The game whose players are the positions of the layer."""
        return Game(
            self._head,
            self.utility,
            self.target,
            present=self.activation,
            absent=self.absent_activation,
            streams=lambda purpose: [generator(self.seed, name, purpose) for name in self.image_ids],
            budget=self.budget,
        )


def _gradient(utility: Tensor, leaf: Tensor, create_graph: bool) -> Tensor:
    # Each utility is per image, so the sum's gradient is every image's own gradient.
    gradient = None
    if utility.requires_grad:
        (gradient,) = torch.autograd.grad(utility.sum(), leaf, create_graph=create_graph, allow_unused=True)
    if gradient is None:
        raise CamkitError("the logits do not depend on the layer's output: choose another --layer")
    return gradient


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
        head_passes: how many have gone through what follows a layer alone, see :class:`camkit.head.Head`.
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

    def trace(self, images: Tensor, layers: Sequence[str]) -> TracedPass:
        """One pass that keeps the output of every layer of `layers` (module paths).

        Raises:
            UsageError: a layer does not exist or its output has no positions.
            CamkitError: a layer runs twice or not at all in one pass.
        """
        self.passes += 1
        leaves: dict[str, Tensor] = {}
        with torch.enable_grad(), self.precision(), ExitStack() as tail:
            with self._captured(layers, leaves, tail):
                logits = self.model(images)
            missing = [layer for layer in layers if layer not in leaves]
            if missing:
                raise CamkitError(
                    f"layer {missing[0]!r} does not run in a forward pass: choose another --layer"
                )
            return TracedPass(precise(logits), leaves)

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
        layout = find_layout(layer, module, output)
        if layer in leaves:
            raise CamkitError(
                f"layer {layer!r} runs more than once in a forward pass: choose another --layer"
            )
        activation = layout.to_map(output)
        if not activation.requires_grad:
            activation = precise(activation.detach()).clone().requires_grad_()
            self.enter_tail(tail)
        leaves[layer] = activation
        # A later in-place operation (VGG's ReLU) must change a copy, neither the leaf nor A's memory.
        return layout.from_map(activation.clone(), output)

    def enter_tail(self, tail: ExitStack) -> None:
        # Derivatives are taken from here on: float32, the attention that has a second derivative, and a batch
        # norm whose second derivative is cheap.
        tail.enter_context(torch.autocast(self.device.type, enabled=False))
        tail.enter_context(sdpa_kernel(SDPBackend.MATH))
        tail.enter_context(AffineBatchNorm())

    def head(self, images: Tensor, layer: str) -> Head:
        """The rest of the network after `layer` (a module path) for `images`: one pass up to the layer.

        Raises:
            UsageError: the layer does not exist or its output has no positions.
            CamkitError: the layer does not run in a pass.
        """
        target = find_module(self.model, layer)
        # One list an unfinished module, the outermost first: its children that have finished.
        frames: list[list[tuple[nn.Module, Tensor]]] = [[]]
        reached: list[Any] = []

        def enter(module: nn.Module, _: tuple) -> None:
            frames.append([])

        def leave(module: nn.Module, _: tuple, output: object) -> None:
            inner = frames.pop()
            if module is target:
                reached.append(output)
                raise _Reached
            frames[-1] += [(module, output)] if isinstance(output, Tensor) else inner

        with torch.inference_mode(False), torch.no_grad():
            with ExitStack() as hooks, self.precision(), suppress(_Reached):
                for module in self.model.modules():
                    hooks.callback(module.register_forward_pre_hook(enter).remove)
                    hooks.callback(module.register_forward_hook(leave).remove)
                self.model(images)
            self.passes += 1
            if not reached:
                raise CamkitError(f"layer {layer!r} does not run in a forward pass: choose another --layer")
            layout = find_layout(layer, target, reached[0])
            finished = [pair for frame in frames for pair in frame]
            return Head(self, layer, layout, images, reached[0], finished)


class _Reached(Exception):
    """Ends a pass at the layer."""


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
