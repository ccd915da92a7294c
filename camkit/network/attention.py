"""The attention of a transformer, as a pass computes it.

Whether a model calls a softmax or PyTorch's fused attention, its weights are the output of one softmax: it is
seen there, and the fused attention is computed as the formula that it stands for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkit.network.layers import hooked, replaced
from camkit.network.reshape import Positions

Seen = tuple[tuple[str, ...], Tensor]  # the modules that run, the outermost first, and the weights


@dataclass(eq=False)
class Attention:
    """One softmax over tokens in one pass, still tied to its graph.

    Attributes:
        weights: what it gives, (B, heads, queries, keys), in [0, 1]; each row sums to 1. Of windows
            (B * windows, heads, queries, keys).
        module: path of the module that computes it.
        block: path of the outermost module that has no other attention in it.
        tokens: what this module gives, (B, tokens, C) in a ViT.
    """

    weights: Tensor
    module: str
    block: str
    tokens: object

    @property
    def of_tokens(self) -> bool:
        """Whether it is between all tokens that the block hands on: no windows, channels or pooling."""
        tokens = self.tokens
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or self.weights.ndim != 4:
            return False
        batch, _, queries, keys = self.weights.shape
        return batch == len(tokens) and queries == keys == tokens.shape[1]

    @property
    def pools(self) -> bool:
        """Whether a single query reads the tokens: class attention, or pooling by attention."""
        return self.weights.shape[-2] == 1 < self.weights.shape[-1]


@dataclass(frozen=True)
class Transformer:
    """What a model's attention is, whatever the images.

    Attributes:
        lack: why methods that need the attention between all tokens cannot explain it; "" where they can.
        grid: sides (h, w) of the tokens that have a position; (0, 0) where `lack` says something.
    """

    lack: str
    grid: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, attention: Sequence[Attention], positions: Positions) -> Transformer:
        """What one pass shows.

        Args:
            positions: of the images of that pass.
        """
        grids = {grid for one in attention if (grid := _grid(one, positions)) is not None}
        others = [one for one in attention if _grid(one, positions) is None]
        if not attention:
            return cls("the model has no softmax attention between tokens")
        if grids and others and all(one.pools for one in others):
            return cls(f"{others[0].block} reads its tokens by another attention, of a single query")
        if others:
            return cls(f"the attention of {others[0].block} is not between all tokens of an image")
        if len(grids) > 1:
            return cls("its blocks have different numbers of tokens")
        return cls("", grids.pop())


def _grid(one: Attention, positions: Positions) -> tuple[int, int] | None:
    """Sides (h, w) of an attention's tokens; None where it is not between all tokens of an image."""
    reshape = positions.reshape(one.tokens) if one.of_tokens else None
    if reshape is None:
        return None
    height, width = reshape.to_map(one.tokens).shape[2:]  # type: ignore[arg-type]
    return height, width


@contextmanager
def attention_seen(model: nn.Module, batch: int) -> Iterator[list[Attention]]:
    """See every attention of the one pass that runs inside; the list is filled at the end.

    Where gradients are on, the first one begins the graph if nothing before it has. Nothing of this is left
    after an exception.

    Args:
        batch: number of images in the pass.
    """
    running: list[str] = []
    softmaxes: list[Seen] = []
    outputs: dict[str, object] = {}

    def enter(path: str, _: nn.Module, __: tuple) -> None:
        running.append(path)

    def leave(path: str, _: nn.Module, __: tuple, output: object) -> None:
        running.pop()
        outputs[path] = output

    def see(weights: Tensor) -> Tensor:
        if weights.ndim == 3 and len(weights) % batch == 0:  # (B * heads, queries, keys)
            return see(weights.unflatten(0, (batch, -1))).flatten(0, 1)
        if weights.ndim < 3:  # class probabilities
            return weights
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights = weights.detach().requires_grad_()
        softmaxes.append((tuple(running), weights))
        return weights

    paths = list(model.named_modules())
    after = [(module, partial(leave, path)) for path, module in paths]
    before = [(module, partial(enter, path)) for path, module in paths]
    found: list[Attention] = []
    with hooked(after, before), _behind_softmax(see):
        yield found
    found += _with_blocks(softmaxes, outputs)


def _with_blocks(softmaxes: Sequence[Seen], outputs: dict[str, object]) -> Iterator[Attention]:
    within = Counter(path for paths, _ in softmaxes for path in paths)
    for paths, weights in softmaxes:
        block = next((path for path in paths[1:] if within[path] == 1), paths[-1])
        yield Attention(weights, paths[-1], block, outputs.get(block))


@contextmanager
def _behind_softmax(see: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let `see` replace what each softmax over the last dimension gives, also that of fused attention."""
    own, fused = torch.softmax, F.scaled_dot_product_attention

    def softmax(scores: Tensor, dim: int, *more: Any, **named: Any) -> Tensor:
        weights = own(scores, dim, *more, **named)
        return see(weights) if dim in (-1, scores.ndim - 1) else weights

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p or is_causal or enable_gqa:  # of language models, and of training
            return fused(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if attn_mask is not None:
            whole = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if whole else scores + attn_mask
        return softmax(scores, -1) @ value

    with ExitStack() as until:
        until.enter_context(replaced(torch, "softmax", softmax))
        until.enter_context(replaced(Tensor, "softmax", softmax))
        until.enter_context(replaced(F, "scaled_dot_product_attention", attend))
        yield
