"""The rest of a network after a layer, as a function of the layer's activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camkit.errors import CamkitError
from camkit.network.coalitions import AFFINE_TOLERANCE
from camkit.network.layers import find_module, hooked, replaced
from camkit.network.numerics import full_precision
from camkit.network.passes import Network, whole_attention
from camkit.network.precision import precise
from camkit.network.reshape import Reshape, find_reshape

PROBE_IMAGES = 4  # noise images from which a linear head is found
# How far logits may be from those of a whole pass, over the largest: what follows a layer runs in float32.
SAME = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


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
        reshape: Reshape,
        images: Tensor,
        output: Tensor,
        finished: Sequence[tuple[nn.Module, Tensor]],
    ) -> None:
        self.network = network
        self.module = find_module(network.model, layer)
        self.reshape = reshape
        self.output = output
        self.modules = [module for module, _ in finished]
        self.given = [images, *(given for _, given in finished)]
        if layer not in network.bypasses:
            self._check(layer)
            network.bypasses[layer] = self._find_bypasses()
        self.passing = network.bypasses[layer]
        self.bypassed = bool(self.passing)
        # A copy of its own: another module's output may share its memory.
        self.given = [one.clone() if place in self.passing else one for place, one in enumerate(self.given)]

    def blank(self) -> Head | None:
        """The same for any images, zeros in place of what ran before the layer; None where that matters."""
        blank = copy(self)
        blank.output, *blank.given = (_zeros(one) for one in (self.output, *self.given))
        activation = precise(self.reshape.to_map(self.output))
        try:
            return blank if torch.equal(blank(activation), self(activation)) else None
        except Exception:  # whatever the model cannot do with zeros that share one number's memory
            return None

    def __call__(self, activation: Tensor) -> Tensor:
        """Logits (B, K) with `activation` (B, C, h, w) in place of the layer's own: one head pass."""
        self.network.head_passes += 1
        # An in-place operation further on must not change what the next call is given.
        given = [one.clone() if place in self.passing else one for place, one in enumerate(self.given)]
        return self._replay(activation, given)

    @torch.no_grad()
    def _check(self, layer: str) -> None:
        """Replace the layer's output by itself, and by zeros.

        Raises:
            CamkitError: the logits are others with the very same output, or the same without it.
        """
        activation = precise(self.reshape.to_map(self.output))
        with self.network.precision(), whole_attention():
            logits = precise(self.network.run(self.given[0]))
        same, zeroed = (
            self._replay(one, [one.clone() for one in self.given])
            for one in (activation, torch.zeros_like(activation))
        )
        allowed = SAME[self.network.dtype] * logits.abs().amax()
        if (same - logits).abs().amax() > allowed:
            raise CamkitError(
                f"layer {layer!r} cannot be replaced: with the very same output in its place the logits are "
                "others. Choose another --layer"
            )
        if activation.any() and torch.equal(zeroed, same):
            raise CamkitError(
                f"the logits do not depend on the output of layer {layer!r}: choose another --layer"
            )

    def _find_bypasses(self) -> frozenset[int]:
        """Which of `given` reach the logits without passing through the layer."""
        with torch.enable_grad():
            leaves = [one.detach().clone() for one in self.given]
            leaves = [one.requires_grad_() if one.is_floating_point() else one for one in leaves]
            activation = precise(self.reshape.to_map(self.output)).detach()
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
        with self.network.precision(), whole_attention(), ExitStack() as tail:

            def substitute(*_: object, **__: object) -> Tensor:
                self.network.enter_tail(tail)
                return self.reshape.from_map(activation.clone(), self.output)

            queues: dict[nn.Module, list[Tensor]] = {}
            for module, output in zip(self.modules, outputs, strict=True):
                queues.setdefault(module, []).append(output)
            with ExitStack() as until:
                for module, queue in queues.items():
                    until.enter_context(replaced(module, "forward", _hand_out(queue, module.forward)))
                until.enter_context(replaced(self.module, "forward", substitute))
                return precise(self.network.run(images))


def _zeros(like: Tensor) -> Tensor:
    return like.new_zeros(()).expand(like.shape)


def head_of(network: Network, images: Tensor, layer: str) -> Head:
    """As :func:`head_after`, but without a pass where the logits depend on the layer's map alone.

    So they do where nothing passes the layer by, be it a skip connection or a class token. That is found once
    per size of a batch, from noise.
    """

    def find() -> Head | None:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
        return head_after(network, noise, layer).blank()

    found = None if network.is_changed else network.once(("blank head", layer, images.shape), find)
    return head_after(network, images, layer) if found is None else found


def head_after(network: Network, images: Tensor, layer: str, reshape: Reshape | None = None) -> Head:
    """The rest of a network after `layer` (a module path) for `images`: one pass up to the layer.

    Args:
        reshape: what the head takes in place of the activation map that the layer's output becomes.

    Raises:
        UsageError: the layer does not exist or its output has no positions.
        CamkitError: the layer does not run in a pass.
    """
    target = find_module(network.model, layer)
    # One list per unfinished module, the outermost first: its children that have finished.
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

    modules = list(network.model.modules())
    with torch.inference_mode(False), torch.no_grad():
        attached = hooked(((one, leave) for one in modules), before=((one, enter) for one in modules))
        with attached, network.precision(), whole_attention(), suppress(_Reached):
            network.run(images)
        network.passes += 1
        if not reached:
            raise CamkitError(f"layer {layer!r} does not run in a forward pass: choose another --layer")
        if reshape is None:
            reshape = find_reshape(layer, target, reached[0], network.positions.at(images))
        finished = [pair for frame in frames for pair in frame]
        return Head(network, layer, reshape, images, reached[0], finished)


class _Reached(Exception):
    """Ends a pass at the layer."""


def _hand_out(outputs: list[Tensor], forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward that gives `outputs` in turn, and after them (a module may run again) what it computes."""
    rest = iter(outputs)

    def hand_out(*inputs: object, **options: object) -> Tensor:
        output = next(rest, None)
        return forward(*inputs, **options) if output is None else output

    return hand_out


@dataclass(frozen=True)
class LinearHead:
    """What follows a layer, where that is global average pooling and a linear map: y = W GAP(A) + b.

    Attributes:
        weight: W, (K, C).
        bias: b, (K,).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, activation: Tensor) -> Tensor:
        """Logits (B, K) of an activation (B, C, h, w)."""
        return activation.mean(dim=(2, 3)) @ self.weight.T + self.bias

    def by_position(self, present: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 1, K) of `absent` (B, C, h, w), and what each position of `present` adds, (B, P, K)."""
        change = (present - absent).flatten(2).mT  # (B, P, C)
        return self.logits(absent)[:, None], change @ self.weight.T / change.shape[1]


def linear_head(network: Network, layer: str) -> LinearHead | str:
    """The rest of a network after `layer` (a module path) as a linear head; why it is none.

    It is found once, from the logits of noise of the size of the last pass's images: they are a function of
    the layer's output alone, affine in it, and the same when its positions move. W is then their gradient.
    """
    return network.once(("linear head", layer), lambda: _find_linear_head(network, layer))


def _find_linear_head(network: Network, layer: str) -> LinearHead | str:
    with full_precision():
        try:
            head = head_after(network, network.noise(PROBE_IMAGES), layer)
        except CamkitError as error:
            return str(error)
        own = precise(head.reshape.to_map(head.output))
        drawn = torch.randn(2, *own.shape[1:], generator=torch.Generator().manual_seed(1))
        # On the scale of the largest value: nothing that bends further out is taken for straight.
        first, second = (own.abs().amax() * drawn.to(own)).unsqueeze(1).expand(2, *own.shape)
        none, one, other, both = map(head, (torch.zeros_like(own), first, second, first + second))
        rounding = AFFINE_TOLERANCE * max(logits.abs().amax().item() for logits in (none, one, other, both))
        if head.bypassed or (none - none[:1]).abs().amax() > rounding:
            return "the logits depend on more than the layer's output (a skip connection, a class token)"
        if (one + other - none - both).abs().amax() > rounding:
            return "what follows the layer is not linear (an activation function, a normalisation)"
        moved = first.flatten(2).roll(1, dims=2).view_as(first)
        if (head(moved) - one).abs().amax() > rounding:
            return "what follows the layer gives each position weights of its own, and does not average"
        found = LinearHead(_weight(head, torch.zeros_like(own)), none[0])
        missed = max((found.logits(x) - y).abs().amax().item() for x, y in ((first, one), (own, head(own))))
        return found if missed <= rounding else "what follows the layer is not linear"


def _weight(head: Head, activation: Tensor) -> Tensor:
    """W (K, C) of a linear head: each image of the batch gives the gradient of another logit."""
    with torch.enable_grad():
        leaf = activation.requires_grad_()
        logits = head(leaf)
        rows = []
        for classes in torch.arange(logits.shape[1], device=leaf.device).split(len(leaf)):
            picked = logits[torch.arange(len(classes), device=leaf.device), classes].sum()
            (gradient,) = torch.autograd.grad(picked, leaf, retain_graph=True)
            rows.append(gradient[: len(classes)].sum(dim=(2, 3)))
    return torch.cat(rows)


def classifier_weight(network: Network) -> Tensor | str:
    """Weight (K, D) of the linear map that gives the logits; why there is none. Found once, on noise."""
    return network.once("classifier weight", lambda: _find_classifier(network))


def _find_classifier(network: Network) -> Tensor | str:
    outputs: list[tuple[Tensor, Tensor]] = []
    linear = [one for one in network.model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    with hooked((one, lambda module, _, output: outputs.append((module.weight, output))) for one in linear):
        logits = network.run(network.noise(1))
    for weight, output in reversed(outputs):
        if torch.equal(output.flatten(), logits.flatten()) and weight[0].numel() == weight.shape[1]:
            return precise(weight.detach().flatten(1))
    return "no linear layer gives the logits, so there are no weights that tell which classes are similar"
