"""The passes through the network.

A scoring pass gives the probability of the target class. A traced pass gives, besides the logits, the
activation A of one or more layers, cut from the graph and made a leaf: the backbone is never
differentiated, the graph begins at the layer, and the derivatives of any utility cost next to nothing. Where
the attention of all blocks is asked for, the graph begins at the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit.errors import CamkitError
from camkit.network.activation import SOFTMAX, Activation, of_class
from camkit.network.attention import Attention, Transformer, attention_seen
from camkit.network.features import Features
from camkit.network.layers import find_module, hooked, logits_of, replaced
from camkit.network.precision import AffineBatchNorm, precise
from camkit.network.reshape import Positions, find_reshape

# What timm and transformers call the switch of gradient checkpointing.
CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")


T = TypeVar("T")
Change = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class TracedPass:
    """Logits (B, K), the activations of the traced layers and the attention, still tied to their graph.

    Attributes:
        attention: of every block, where it was asked for; None where it was not.
    """

    logits: Tensor
    leaves: dict[str, Tensor]
    attention: list[Attention] | None = None


class Network:
    """A frozen model on a device, and the passes through it.

    Args:
        model: gives logits (B, K) for normalised images (B, C, H, W).
        dtype: number format of the passes. Below float32 the backbone runs under autocast; from the first
            traced layer on everything stays float32, so that the derivatives keep their accuracy.
        activation: what its outputs are as logits, and these as probabilities.

    Attributes:
        passes: how many batches have gone through the network.
        head_passes: how many have gone through what follows a layer alone (:mod:`camkit.network.head`).
        positions: what the model says of the positions in its layers.
        is_changed: whether a layer's output is being changed, see :meth:`changed`.
        copies_input: each pass gets a copy of its images, since the model changes them in place.
        grids: layer -> sides (h, w) of its map when it was last traced.
        scored: what scoring passes go through in place of the model, as long as no layer is changed.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        activation: Activation = SOFTMAX,
    ) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        for tensor in self.model.parameters():
            if tensor.ndim == 4:  # of those of a 3-D convolution there is no such order
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        _without_checkpointing(self.model)
        self.device = device
        self.dtype = dtype
        self.activation = activation
        self.copies_input = False
        self._like = torch.empty(0)  # shape (0, C, H, W), number format and device of the last pass's images
        self.positions = Positions.of(self.model, torch.empty(0, 0, 0, 0))
        self.scored: Callable[[Tensor], Any] = self.model
        self.passes = self.head_passes = 0
        # Layer -> what passes it by, see Head: a matter of the network alone, so found once.
        self.bypasses: dict[str, frozenset[int]] = {}
        self.is_changed = False
        self._found: dict[Any, Any] = {}
        self.grids: dict[str, tuple[int, int]] = {}

    def compile(self) -> None:
        """Let torch.compile make the code of scoring passes from now on, anew for each batch shape.

        Passes that explain are left alone: they are cut at the traced layers, and differentiated twice.
        """
        torch._dynamo.reset()  # it compiles the code of a class eight times at most, whichever the model
        self.scored = torch.compile(self.scored, dynamic=False)

    def once(self, key: Any, find: Callable[[], T]) -> T:
        """What `find` finds of the network alone: once per key.

        Its passes are not counted, as they are none of an image's. Of a network that is changed nothing is
        kept.
        """
        if key in self._found:
            return self._found[key]
        passes = self.passes, self.head_passes
        with torch.inference_mode(False), torch.no_grad():
            found = find()
        self.passes, self.head_passes = passes
        if not self.is_changed:
            self._found[key] = found
        return found

    def expect(self, images: Tensor) -> None:
        """Images of this size are to come: what is found on noise before them is found at their size."""
        self._like = images.new_empty(0, *images.shape[1:])

    def noise(self, count: int) -> Tensor:
        """Seeded normal noise (count, C, H, W) of the size of the last pass's images."""
        shape = (count, *self._like.shape[1:])
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self._like)

    def precision(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) in float32: one scoring pass."""
        self.passes += 1
        with self.precision():
            return precise(self._output(self.model if self.is_changed else self.scored, images))

    def run(self, images: Tensor) -> Tensor:
        """What the model gives, logits (B, K) in its number format: a pass for whoever counts it."""
        return self._output(self.model, images)

    def _output(self, model: Callable[[Tensor], Any], images: Tensor) -> Tensor:
        self.expect(images)
        outputs = logits_of(model(images.clone() if self.copies_input else images))
        return self.activation.logits(outputs, len(images))

    @torch.inference_mode()
    def score(self, images: Tensor, target: Tensor) -> Tensor:
        """Probability of the target classes, (B,), in float32: one scoring pass."""
        return self.probability(self.logits(images), target)

    def logit(self, images: Tensor, target: Tensor) -> Tensor:
        """Logits of the target classes, (B,), in float32: one scoring pass."""
        return of_class(self.logits(images), target)

    def probability(self, logits: Tensor, target: Tensor) -> Tensor:
        """Probability of the target classes, (B,), by logits (B, K)."""
        return of_class(self.activation.probability(logits), target)

    def trace(self, images: Tensor, layers: Sequence[str], *, attention: bool = False) -> TracedPass:
        """One pass that keeps the output of every layer of `layers` (module paths).

        Args:
            attention: also keeps the attention of every block, all in float32.

        Raises:
            UsageError: a layer does not exist or its output has no positions.
            CamkitError: a layer runs twice or not at all in one pass.
        """
        self.passes += 1
        leaves: dict[str, Tensor] = {}
        with torch.enable_grad(), self.precision(), ExitStack() as tail:
            modules = [find_module(self.model, layer) for layer in layers]
            positions = self.positions.at(images)
            hooks = [partial(self._capture, layer, positions, leaves, tail) for layer in layers]
            with ExitStack() as watched:
                watched.enter_context(hooked(zip(modules, hooks, strict=True)))
                watched.enter_context(whole_attention())
                seen = None
                if attention:
                    self.enter_tail(tail)
                    seen = watched.enter_context(attention_seen(self.model, len(images)))
                logits = self.run(images)
            missing = [layer for layer in layers if layer not in leaves]
            if missing:
                raise CamkitError(
                    f"layer {missing[0]!r} does not run in a forward pass: choose another --layer"
                )
            return TracedPass(precise(logits), leaves, seen)

    @property
    def transformer(self) -> Transformer:
        """What its attention is, from a pass of noise."""
        return self.once("transformer", self._find_transformer)

    def _find_transformer(self) -> Transformer:
        images = self.noise(1)
        attention = self.trace(images, [], attention=True).attention
        assert attention is not None  # it was asked for
        return Transformer.of(attention, self.positions.at(images))

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """The ends of its stages, module paths: see :meth:`Features.stages`."""
        return self.features().stages()

    @cached_property
    def last_layer(self) -> str | None:
        """The last feature layer before pooling, a module path: see :meth:`Features.last`."""
        return self.features().last()

    def features(self) -> Features:
        """Its layers with positions, from a pass of noise."""
        return Features(self.model, self.noise(1))

    @contextmanager
    def changed(self, layer: str, change: Change, traced: bool = False) -> Iterator[None]:
        """Change a layer's output behind where it is traced: the logits are a function u(change(A)) of A.

        Args:
            change: the layer's output as a map (B, C, h, w) -> the same shape. `lambda maps: maps * mask`
                makes the rest of the network blind to the positions where the mask is 0.
            traced: the traced activation is changed too.
        """
        module = find_module(self.model, layer)

        def changed(output: Tensor) -> Tensor:
            images = torch.empty(len(output), 0, *self._like.shape[2:])
            reshape = find_reshape(layer, module, output, self.positions.at(images))
            return reshape.from_map(change(reshape.to_map(output)), output)

        with ExitStack() as until:
            until.callback(setattr, self, "is_changed", self.is_changed)
            self.is_changed = True
            until.enter_context(hooked([(module, lambda _, __, output: changed(output))]))
            if traced:
                forward = module.forward
                until.enter_context(
                    replaced(module, "forward", lambda *given, **named: changed(forward(*given, **named)))
                )
            yield

    def _capture(
        self,
        layer: str,
        positions: Positions,
        leaves: dict[str, Tensor],
        tail: ExitStack,
        module: nn.Module,
        _: tuple,
        output: Tensor,
    ) -> Tensor:
        reshape = find_reshape(layer, module, output, positions)
        if layer in leaves:
            raise CamkitError(
                f"layer {layer!r} runs more than once in a forward pass: choose another --layer"
            )
        activation = reshape.to_map(output)
        if not activation.requires_grad:
            activation = precise(activation.detach()).clone().requires_grad_()
            self.enter_tail(tail)
        leaves[layer] = activation
        self.grids[layer] = (activation.shape[2], activation.shape[3])
        # A later in-place operation (VGG's ReLU) must change a copy, neither the leaf nor A's memory.
        return reshape.from_map(activation.clone(), output)

    def enter_tail(self, tail: ExitStack) -> None:
        # Derivatives are taken from here on: float32, the attention that has a second derivative, and a batch
        # norm whose second derivative is cheap.
        tail.enter_context(torch.autocast(self.device.type, enabled=False))
        tail.enter_context(sdpa_kernel(SDPBackend.MATH))
        tail.enter_context(AffineBatchNorm())


@contextmanager
def whole_attention() -> Iterator[None]:
    """Keep `nn.TransformerEncoder` from its fused path, which passes its children by: hooks and all."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _without_checkpointing(model: nn.Module) -> None:
    """Switch gradient checkpointing off: what it computes again has no second derivative."""
    for module in model.modules():
        for name in CHECKPOINTING:
            if getattr(module, name, False) is True:
                setattr(module, name, False)
