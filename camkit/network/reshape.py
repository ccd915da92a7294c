"""How a layer's output becomes an activation map (B, C, h, w) and back, by what model and images say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from camkit.errors import UsageError

# What libraries call the parameters (1, tokens, C) of tokens that have no position.
PREFIX_NAME = re.compile(r"(cls|class|dist|distillation|reg|register)_tokens?_?\d*|class_embedding")


@dataclass(frozen=True)
class Reshape:
    """How a layer's output becomes an activation map (B, C, h, w) and back.

    The map has the memory order that the rest of the network works best in: channels last where the layer
    gives them last; else channels first, as the gradient of a pooling comes (a backward pass in which the
    two orders meet takes several times as long).
    """

    to_map: Callable[[Tensor], Tensor]
    from_map: Callable[[Tensor, Tensor], Tensor]  # (map, the layer's output) -> tensor handed on


CHANNELS_FIRST = Reshape(lambda t: t.contiguous(), lambda m, _: m)
AS_IT_IS = Reshape(lambda t: t, lambda m, _: m)
CHANNELS_LAST = Reshape(lambda t: t.permute(0, 3, 1, 2), lambda m, _: m.permute(0, 2, 3, 1))


@dataclass(frozen=True)
class Positions:
    """What a model and its images say of the positions in its layers.

    Attributes:
        prefixes: how many tokens without a position (class, distillation, registers) may stand before the
            others, the likeliest number first.
        ordered: number of tokens that stand in raster order; None: all do.
        batch, height, width: of the images.
    """

    prefixes: tuple[int, ...] = (0,)
    ordered: int | None = None
    batch: int = 0
    height: int = 0
    width: int = 0

    @classmethod
    def of(cls, model: nn.Module, images: Tensor) -> Positions:
        """Those of a model's layers for images (B, C, H, W)."""
        # Hiera sorts its tokens by windows until the last pooling.
        units = getattr(model, "mask_spatial_shape", None) if hasattr(model, "reroll") else None
        ordered = None if units is None else math.prod(units)
        return cls(prefix_tokens(model), ordered).at(images)

    def at(self, images: Tensor) -> Positions:
        """The same for other images."""
        return replace(self, batch=len(images), height=images.shape[2], width=images.shape[3])

    def reshape(self, output: object, path: str = "") -> Reshape | None:
        """Recognise (B, C, h, w), (B, h, w, C) and token sequences (B, prefix + h * w, C).

        Prefix tokens stay as they are. The sides h and w must have the proportions of the images: heads,
        windows and blocks of an attention have not. None where the output has no positions.

        Args:
            path: the layer's, where it is known.
        """
        if not isinstance(output, Tensor) or not output.is_floating_point() or len(output) != self.batch:
            return None
        if output.ndim == 4:
            return None if _is_attention(output, path) else self._of_maps(*output.shape[1:])
        return self._of_tokens(output.shape[1]) if output.ndim == 3 else None

    def _of_maps(self, first: int, second: int, third: int) -> Reshape | None:
        misfits = {
            CHANNELS_LAST: self._misfit(first, second),
            CHANNELS_FIRST: self._misfit(second, third),
        }
        best = min(misfits.values())
        if best == math.inf:
            return None
        # Where both fit alike, as (B, 7, 7, 7), the channels come first.
        return CHANNELS_FIRST if misfits[CHANNELS_FIRST] == best else CHANNELS_LAST

    def _misfit(self, rows: int, columns: int) -> float:
        """How far the strides in both directions are apart, as a ratio; infinite where they cannot be one.

        A side of n positions may have lost or won one by padding.
        """
        if rows == columns == 1 or rows > self.height or columns > self.width:
            return math.inf
        strides = [
            (side / (count + 1), side / (count - 1) if count > 1 else math.inf)
            for side, count in ((self.height, rows), (self.width, columns))
        ]
        if max(low for low, _ in strides) >= min(high for _, high in strides):
            return math.inf
        return abs(math.log((self.height / rows) / (self.width / columns)))

    def _of_tokens(self, tokens: int) -> Reshape | None:
        for prefix in self.prefixes:
            grids = list(self._grids(tokens - prefix))
            if len(grids) == 1 and self.ordered in (None, tokens - prefix):
                return _tokens(prefix, *grids[0])
        return None

    def _grids(self, tokens: int) -> Iterator[tuple[int, int]]:
        """Sides (h, w) with h * w tokens that one stride gives."""
        for rows in range(1, max(tokens, 0) + 1):
            columns, rest = divmod(tokens, rows)
            if not rest and tokens > 1 and self._one_stride(rows, columns):
                yield rows, columns

    def _one_stride(self, rows: int, columns: int) -> bool:
        if self.height == self.width:
            return rows == columns
        return any(
            rows in (self.height // stride, -(-self.height // stride))
            and columns in (self.width // stride, -(-self.width // stride))
            for stride in range(1, min(self.height, self.width) + 1)
        )


def _tokens(prefix: int, rows: int, columns: int) -> Reshape:
    return Reshape(
        lambda t: t[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns)),
        lambda m, t: torch.cat([t[:, :prefix], m.flatten(2).transpose(1, 2)], dim=1),
    )


def _is_attention(output: Tensor, path: str) -> bool:
    """Whether (B, heads, tokens, tokens) are the weights of an attention: they sum to 1."""
    if output.shape[2] != output.shape[3] or "att" not in path.lower():
        return False
    sums = output.detach().sum(dim=3)
    return bool((output.detach().amin() >= 0) & ((sums - 1).abs().amax() < 1e-2))


def prefix_tokens(model: nn.Module) -> tuple[int, ...]:
    """How many tokens without a position may stand before those of the patches: all, some kinds, none."""
    known = getattr(model, "num_prefix_tokens", None)
    kinds = [known] if isinstance(known, int) else []
    if not kinds:
        kinds = [
            parameter.shape[1] if parameter.ndim == 3 else 1
            for name, parameter in model.named_parameters()
            if PREFIX_NAME.fullmatch(name.rpartition(".")[2])
        ]
    return tuple(dict.fromkeys((sum(kinds), *kinds, 0)))


def find_reshape(layer: str, module: nn.Module, output: object, positions: Positions) -> Reshape:
    """The reshape of a layer's output.

    Raises:
        UsageError: it has no positions.
    """
    reshape = positions.reshape(output, layer)
    if reshape is not None:
        return reshape
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    where = f"layer {layer!r} ({type(module).__name__}) gives {shape}"
    if isinstance(output, Tensor) and output.ndim >= 3 and len(output) != positions.batch:
        raise UsageError(
            f"{where} for {positions.batch} images: windows or heads stand where images should. "
            "Choose the --layer around them."
        )
    raise UsageError(
        f"{where}, which is no map of {positions.height}x{positions.width} images: expected (B, C, h, w), "
        "(B, h, w, C) or (B, tokens, C) with sides in the images' proportions, in raster order. "
        "Choose a --layer before pooling, and none inside an attention."
    )
