"""What the attention of one pass gives the methods that read it: gradients, readers, maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from camkit.errors import CamkitError
from camkit.network.attention import Attention
from camkit.network.head import head_after
from camkit.network.passes import Network, TracedPass
from camkit.network.reshape import AS_IT_IS


@dataclass(eq=False)
class Attended:
    """The attention of every block, (B, heads, N, N) each: queries by keys, N the number of tokens.

    Attributes:
        images: normalised, (B, 3, H, W).
        utility: logits (B, K) -> utility (B,).
    """

    network: Network
    images: Tensor
    passed: TracedPass
    utility: Callable[[Tensor], Tensor]

    @property
    def blocks(self) -> list[Attention]:
        """One per block, the first block first.

        Raises:
            CamkitError: the pass has not kept them.
        """
        if self.passed.attention is None:
            raise CamkitError('the attention is not traced: register the method with uses=("attention",)')
        return self.passed.attention

    @cached_property
    def gradients(self) -> tuple[Tensor, ...]:
        """du/d(attention) of each block."""
        weights = [one.weights for one in self.blocks]
        with torch.enable_grad():
            return torch.autograd.grad(self.utility(self.passed.logits).sum(), weights, retain_graph=True)

    @cached_property
    def block_gradients(self) -> tuple[Tensor, ...]:
        """du_l/d(attention of block l) of each block l.

        u_l is the utility where each token after the last block is the mean of the tokens after block l: what
        the block itself makes of the image, read as the model reads its last tokens. One pass, and per block
        one through what follows the last block.
        """
        rest = head_after(self.network, self.images, self.blocks[-1].block, AS_IT_IS)
        gradients: list[Tensor] = []
        with torch.enable_grad():
            for one in self.blocks:
                assert isinstance(one.tokens, Tensor)  # (B, N, C), see Transformer
                mean = one.tokens.mean(dim=1, keepdim=True).expand_as(one.tokens)
                utility = self.utility(rest(mean)).sum()
                gradients += torch.autograd.grad(utility, one.weights, retain_graph=True)
        return tuple(gradients)

    @cached_property
    def readers(self) -> Tensor:
        """Weights (B, N) of sum 1, equal for all tokens that the logits are read from after the last block.

        The class token; of a model that averages its tokens, these. They are those whose queries in the last
        attention have a gradient.
        """
        last = self.blocks[-1].weights
        with torch.enable_grad():
            top = self.passed.logits.max(dim=1).values.sum()
            (gradient,) = torch.autograd.grad(top, last, retain_graph=True)
        read = (gradient != 0).any(dim=3).any(dim=1).to(last)
        return read / read.sum(dim=1, keepdim=True)

    def on_grid(self, values: Tensor) -> Tensor:
        """Of values of tokens (B, N), those of tokens that have a position, as maps (B, h, w)."""
        reshape = self.network.positions.at(self.images).reshape(values[..., None])
        assert reshape is not None  # see Transformer
        return reshape.to_map(values[..., None])[:, 0]
