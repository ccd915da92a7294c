"""What a method is given: images, and what passes through the network say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import torch
from torch import Tensor

from camkit.config import MethodOptions
from camkit.errors import CamkitError
from camkit.network.attended import Attended
from camkit.network.biases import full_gradient
from camkit.network.coalitions import AffineLogits, affine_logits
from camkit.network.game import Game, absent_activation
from camkit.network.gradients import gradient_of, why_no_gradient
from camkit.network.head import Head, LinearHead, head_of, linear_head
from camkit.network.layers import parts_of
from camkit.network.passes import Network, TracedPass
from camkit.network.rescale import contributions, elementwise_modules
from camkit.network.seeding import generator


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
        regions: where the target classes are in the images, bool (B, H, W); None where that is not known.
        options: the run's, such as `budget`.
    """

    images: Tensor
    image_ids: Sequence[str]
    pixels: Callable[[], Tensor]
    target: Tensor
    seed: int
    draw: int
    network: Network
    regions: Tensor | None
    options: MethodOptions

    def score(self, images: Tensor) -> Tensor:
        """Probability p_c (B,) of other images (B, 3, H, W): one pass."""
        return self.network.score(images, self.target)

    def logit(self, images: Tensor) -> Tensor:
        """Logit y_c (B,) of other images (B, 3, H, W): one pass."""
        return self.network.logit(images, self.target)


@dataclass(eq=False)
class PixelView(ImageView):
    """What a method has that attributes a utility to pixels, whatever the layer.

    Attributes:
        utility: takes logits (B, K) and classes (B,), gives (B,).
    """

    utility: Callable[[Tensor, Tensor], Tensor]

    def utility_of(self, images: Tensor) -> Tensor:
        """Utility (B,) of other images (B, 3, H, W): one pass."""
        return self.utility(self.network.logits(images), self.target)

    def full_gradient(self) -> tuple[Tensor, list[Tensor]]:
        """du/dx times x, (B, 3, H, W), and du/dz times the bias that z has, (B, C, h, w), of every bias.

        One pass and its gradient through the whole network, see :func:`camkit.network.biases.full_gradient`.
        """
        return full_gradient(self.network, self.images, lambda logits: self.utility(logits, self.target))


@dataclass(eq=False)
class Trace(PixelView):
    """What one pass through the network gives a method, for one layer, utility and target.

    Attributes:
        layer: where the activation comes from, a module path; or several, see :attr:`layers`.
        passed: the pass.
    """

    layer: str
    passed: TracedPass

    @property
    def logits(self) -> Tensor:
        """(B, K)."""
        return self.passed.logits.detach()

    @property
    def activation(self) -> Tensor:
        """The layer's output A, (B, C, h, w)."""
        return self._leaf.detach()

    @property
    def _leaf(self) -> Tensor:
        if self.layer not in self.passed.leaves:
            raise CamkitError(f"{self.layer} is several layers, and a single one is asked for")
        return self.passed.leaves[self.layer]

    @property
    def layers(self) -> tuple[Trace, ...]:
        """The trace of each layer of a name as `layer3+layer4`; of a single layer, this one."""
        return self._several if len(parts_of(self.layer)) > 1 else (self,)

    # What is kept here must not refer to the trace: a cycle holds a batch's memory until Python looks for it.
    @cached_property
    def _several(self) -> tuple[Trace, ...]:
        return tuple(replace(self, layer=part) for part in parts_of(self.layer))

    @cached_property
    def stages(self) -> tuple[Trace, ...]:
        """The traces of several layers where they are named; else those of the ends of the model's stages.

        For methods that are registered with `uses=("stages",)`.
        """
        if len(self.layers) > 1:
            return self.layers
        return tuple(replace(self, layer=stage) for stage in self.network.stages)

    @cached_property
    def _differentiable_gradient(self) -> Tensor:
        with torch.enable_grad():
            utility = self.utility(self.passed.logits, self.target)
            if not utility.requires_grad:
                raise why_no_gradient(self.network, self.layer, self.images)
            return gradient_of(utility, self._leaf, create_graph=True)

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

    def gradient_of(self, utility: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient at A, (B, C, h, w), of another utility: logits (B, K) -> (B,)."""
        with torch.enable_grad():
            return gradient_of(utility(self.passed.logits), self._leaf, create_graph=False, retain_graph=True)

    def at(self, images: Tensor) -> Trace:
        """The trace of other images (B, 3, H, W) in place of these, for the same classes: one pass."""
        return replace(self, images=images, passed=self.network.trace(images, [self.layer]))

    @property
    def linear_head(self) -> LinearHead | None:
        """What follows the layer, where that is global average pooling and a linear map."""
        if self.network.is_changed:
            return None
        found = linear_head(self.network, self.layer)
        return found if isinstance(found, LinearHead) else None

    @cached_property
    def attended(self) -> Attended:
        """The attention, and what follows from it; for methods with `uses=("attention",)`."""
        utility, target = self.utility, self.target
        return Attended(self.network, self.images, self.passed, lambda logits: utility(logits, target))

    @property
    def attention(self) -> tuple[Tensor, ...]:
        """What the softmax of each block's attention gives, the first block first.

        Each (B, heads, N, N), queries by keys, N the number of tokens; in [0, 1], rows sum to 1.
        """
        return tuple(one.weights.detach() for one in self.attended.blocks)

    @property
    def attention_gradients(self) -> tuple[Tensor, ...]:
        """du/d(attention) of each block, each (B, heads, N, N)."""
        return self.attended.gradients

    @cached_property
    def _find_head(self) -> Callable[[], Head]:
        return cache(partial(head_of, self.network, self.images, self.layer))

    @property
    def _head(self) -> Head:
        return self._find_head()

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
            return gradient_of(self.head(leaf), leaf, create_graph=False)

    def contributions(self) -> Tensor:
        """What each unit of A contributes to y_c by DeepLIFT's rescale rule, (B, C, h, w).

        See :func:`camkit.network.rescale.contributions`. One pass up to the layer, where that was not made
        yet, one head pass, and one head pass and back.

        Raises:
            CamkitError: the rule has no form for what follows the layer.
        """
        modules = elementwise_modules(self.network, self.layer)
        if isinstance(modules, str):
            raise CamkitError(modules)
        return contributions(self._head, self.activation, self.target, modules)

    @cached_property
    def absent_activation(self) -> Tensor:
        """What A is where a position is absent, (B, C, h, w)."""
        return absent_activation(self.activation, self.options.absent)

    @cached_property
    def game(self) -> Game:
        """The game whose players are the positions of the layer."""
        find_head, seed, names = self._find_head, self.seed, self.image_ids
        return Game(
            lambda activation: find_head()(activation),  # not made before it is needed: it may cost a pass
            self.utility,
            self.target,
            present=self.activation,
            absent=self.absent_activation,
            streams=lambda purpose: [generator(seed, name, purpose) for name in names],
            affine=self._affine_logits(),
            budget=self.options.budget,
        )

    @torch.inference_mode()
    def _affine_logits(self) -> AffineLogits:
        linear = self.linear_head
        if linear is None:
            # What changes a layer's output knows the layer's grid.
            rows = not self._head.bypassed and not self.network.is_changed
            return affine_logits(self._head, self.activation, self.absent_activation, rows)
        none, added = linear.by_position(self.activation, self.absent_activation)
        return AffineLogits(none[:, 0], added, torch.ones_like(self.target, dtype=torch.bool))
