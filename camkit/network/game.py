"""The game whose players are a layer's positions, and its Shapley values.

A coalition is a set of positions that are present: there the layer's activation is what it is, elsewhere it
is the absent activation. A coalition is worth the utility that the rest of the network then gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from camkit.network.coalitions import AffineLogits, coalition_logits
from camkit.network.surrogate import shapley_values
from camkit.network.utilities import form_of

EXACT_PLAYERS = 16  # up to so many players all coalitions are enumerated
CHUNK = 2**23  # logits held at once
FIT_COALITIONS = 10  # coalitions per player, for the additive fit


def absent_activation(activation: Tensor, kind: str) -> Tensor:
    """The activation of absent positions, (B, C, h, w).

    Args:
        kind: `zero`; `mean`, over the positions of each channel; `blur`, a Gaussian over positions whose
            standard deviation is a quarter of the side.
    """
    if kind == "zero":
        return torch.zeros_like(activation)
    if kind == "mean":
        return activation.mean(dim=(2, 3), keepdim=True).expand_as(activation)
    rows, columns = (_gaussian(side).to(activation) for side in activation.shape[2:])
    return rows @ activation @ columns.T


def _gaussian(side: int) -> Tensor:
    """(side, side): each row the weights of one position's neighbours, of sum 1."""
    place = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-(((place[:, None] - place) / (side / 4)) ** 2) / 2)
    return weights / weights.sum(dim=1, keepdim=True)


class Game:
    """The game of each image of a batch.

    Args:
        logits: activation (B, C, h, w) -> logits (B, K).
        present, absent: the activation where a position is present and where it is not, (B, C, h, w).
        streams: purpose -> one random generator per image.
        budget: permutations from which a Shapley value is estimated (beyond 16 players).
        affine: the logits of coalitions, of images of which they are affine in the set of present positions.

    Attributes:
        players: P = h * w.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        utility: Callable[[Tensor, Tensor], Tensor],
        target: Tensor,
        *,
        present: Tensor,
        absent: Tensor,
        streams: Callable[[str], Sequence[torch.Generator]],
        affine: AffineLogits,
        budget: int,
    ) -> None:
        self._logits = logits
        self._utility = utility
        self._target = target
        self._present = present
        self._absent = absent
        self._streams = streams
        self._affine = affine
        self.budget = budget
        self.players = present.shape[2] * present.shape[3]
        self._shapley: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def is_affine(self) -> Tensor:
        """Of which images the logits are affine in the set of present positions, bool (B,).

        So they are where the rest of the network treats each position alone up to pooling. What each position
        adds then tells the logits of every coalition, see :mod:`camkit.network.coalitions`.
        """
        return self._affine.holds

    @torch.inference_mode()
    def utility(self, present: Tensor) -> Tensor:
        """What coalitions are worth: boolean (B, n, P) -> (B, n)."""
        batch = len(present)
        chunk = max(1, CHUNK // self._affine.none.numel())
        values = []
        for some in present.split(chunk, dim=1):
            logits = self._coalition_logits(some)
            target = self._target.repeat_interleave(some.shape[1])
            values.append(self._utility(logits.flatten(0, 1), target).unflatten(0, (batch, -1)))
        return torch.cat(values, dim=1)

    def _coalition_logits(self, present: Tensor) -> Tensor:
        """Logits (B, n, K); of an image they come from the same place whatever the other images are."""
        if not self.is_affine.any():
            return coalition_logits(self._logits, self._present, self._absent, present)
        affine = self._affine.of(present)
        if self.is_affine.all():
            return affine
        passed = coalition_logits(self._logits, self._present, self._absent, present)
        return torch.where(self.is_affine[:, None, None], affine, passed)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """u(none present) and u(all present), each (B,)."""
        ends = torch.tensor([[False], [True]], device=self._present.device)
        none, everyone = self.utility(ends.expand(len(self._present), 2, self.players)).unbind(1)
        return none, everyone

    def shapley(self, purpose: str) -> tuple[Tensor, Tensor]:
        """Shapley values and their standard errors, both (B, h, w).

        Enumeration up to 16 players (errors 0), beyond that `budget` permutations in antithetic pairs (each
        with its reverse): what pairs of players do together then cancels, and only higher interactions
        make noise.

        Args:
            purpose: names the random stream; another purpose gives an independent estimate.
        """
        if purpose not in self._shapley:
            exact = self.players <= EXACT_PLAYERS
            values, errors = self._enumerate() if exact else self._sample(purpose)
            self._shapley[purpose] = self._on_grid(values), self._on_grid(errors)
        return self._shapley[purpose]

    def estimate(self, purpose: str) -> tuple[Tensor, Tensor]:
        """The nearest Shapley values that are cheap, and their standard errors, both (B, h, w).

        Those of a surrogate game and a correction (:mod:`camkit.network.surrogate`), of images whose logits
        are affine in the set of present positions, with more than 16 players and one of camkit's utilities.
        Else those of :meth:`shapley`.

        Args:
            purpose: see :meth:`shapley`.
        """
        form = form_of(self._utility)
        if self.players <= EXACT_PLAYERS or form is None or not self.is_affine.any():
            return self.shapley(purpose)
        none, added = self._affine.none, self._affine.added
        found = shapley_values(none, added, self._target, form, self._streams(purpose))
        values, errors = (self._on_grid(one) for one in found)
        if self.is_affine.all():
            return values, errors
        sampled, sampled_errors = self.shapley(purpose)
        affine = self.is_affine[:, None, None]
        return torch.where(affine, values, sampled), torch.where(affine, errors, sampled_errors)

    def _on_grid(self, values: Tensor) -> Tensor:
        return values.unflatten(1, self._present.shape[2:])

    def _enumerate(self) -> tuple[Tensor, Tensor]:
        players = self.players
        numbers = torch.arange(2**players, device=self._present.device)
        coalitions = (numbers[:, None] >> torch.arange(players, device=numbers.device) & 1).bool()
        worth = self.utility(coalitions.expand(len(self._present), -1, -1))  # (B, 2^P)
        # Weight of a coalition that i joins, by the coalition's size: s! (P - s - 1)! / P!
        joined = worth.new_tensor([1 / (players * math.comb(players - 1, s)) for s in range(players)])
        size = coalitions.sum(dim=1, keepdim=True).expand_as(coalitions)
        gained = joined[(size - 1).clamp(min=0)]
        lost = joined[size.clamp(max=players - 1)]
        values = worth @ torch.where(coalitions, gained, -lost)
        return values, torch.zeros_like(values)

    def _sample(self, purpose: str) -> tuple[Tensor, Tensor]:
        pairs = max(2, self.budget // 2)
        orders = torch.stack(
            [
                torch.stack([torch.randperm(self.players, generator=stream) for _ in range(pairs)])
                for stream in self._streams(purpose)
            ]
        ).to(self._present.device)  # (B, pairs, P)
        at_once = max(1, CHUNK // (len(orders) * self.players**2))
        estimates = torch.cat(
            [
                (self._contributions(some) + self._contributions(some.flip(2))) / 2
                for some in orders.split(at_once, dim=1)
            ],
            dim=1,
        )
        return estimates.mean(dim=1), estimates.std(dim=1) / math.sqrt(pairs)

    def _contributions(self, orders: Tensor) -> Tensor:
        """What each player adds to those before it: orders of players (B, n, P) -> (B, n, P)."""
        batch, count, players = orders.shape
        places = orders.argsort(dim=2)  # of each player in the order
        sizes = torch.arange(1, players, device=orders.device)
        before = places[:, :, None] < sizes[:, None]  # (B, n, P - 1, P): the first 1, 2, ... players
        worth = self.utility(before.flatten(1, 2)).unflatten(1, (count, players - 1))
        none, everyone = (end[:, None, None].expand(batch, count, 1) for end in self.ends)
        added = torch.cat([none, worth, everyone], dim=2).diff(dim=2)
        return added.gather(2, places)

    @cached_property
    def nonadditivity(self) -> Tensor:
        """1 - R^2 (adjusted) of the best additive game over random coalitions, (B,).

        A coalition's share of players is uniform in [0, 1], as in a random order. Where it is 0, each
        player adds the same to every coalition and the Shapley values are trivial.
        """
        count = FIT_COALITIONS * self.players
        draws = [torch.rand(count, self.players + 1, generator=g) for g in self._streams("nonadditivity")]
        share, level = torch.stack(draws).split([1, self.players], dim=2)
        coalitions = level < share
        worth = self.utility(coalitions.to(self._present.device)).cpu().double()
        design = torch.cat([torch.ones_like(share), coalitions], dim=2).double()  # (B, n, 1 + P)
        fit = torch.linalg.lstsq(design, worth[..., None]).solution
        residual = (worth - (design @ fit)[..., 0]).square().sum(dim=1) / (count - self.players - 1)
        return (residual / worth.var(dim=1)).to(self._present)
