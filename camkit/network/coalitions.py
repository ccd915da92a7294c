"""Coalitions of a layer's positions, and logits that are affine in the set of those that are present."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PROBES = 2  # random coalitions, each with its complement, that tell whether logits are affine
# How far an image's logits may miss (rounding), over the largest of them.
AFFINE_TOLERANCE = 1e-4

Head = Callable[[Tensor], Tensor]  # activation (B, C, h, w) -> logits (B, K)


@dataclass(frozen=True)
class AffineLogits:
    """Logits of coalitions, y(S) = none + sum over i in S of added_i, of the images of which that is true.

    Attributes:
        none: without any position, (B, K).
        added: what each position adds, (B, P, K).
        holds: of which images it is true, bool (B,).
    """

    none: Tensor
    added: Tensor
    holds: Tensor

    def of(self, coalitions: Tensor) -> Tensor:
        """Logits (B, n, K) of coalitions, bool (B, n, P) or (n, P)."""
        return self.none[:, None] + coalitions.to(self.added) @ self.added


def coalition_logits(head: Head, present: Tensor, absent: Tensor, coalitions: Tensor) -> Tensor:
    """Logits (B, n, K) of coalitions, bool (B, n, P): a pass through the head each.

    Args:
        present, absent: the activation where a position is present and where it is not, (B, C, h, w).
    """
    grid = coalitions.unflatten(2, (1, *present.shape[2:]))  # (B, n, 1, h, w)
    return torch.stack([head(torch.where(one, present, absent)) for one in grid.unbind(1)], dim=1)


def affine_logits(head: Head, present: Tensor, absent: Tensor, rows: bool) -> AffineLogits:
    """Logits that are affine in the set of present positions, found out image by image.

    They are where the rest of the network treats each position alone and then averages. Then each position
    of an image can go through it as an image of 1 x 1 positions: one head pass of B P rows. Where the numbers
    say that this is not the same, each position is present alone, P passes. 6 passes (none, all, and probes
    with their complements) tell whether the logits are affine.

    Args:
        head, present, absent: see :func:`coalition_logits`.
        rows: whether rows are worth a try: not where something passes the layer by.
    """
    batch, _, height, width = present.shape
    players = height * width
    some = torch.rand(PROBES, players, generator=torch.Generator().manual_seed(0)) < 0.5
    ends = torch.tensor([[False], [True]]).expand(2, players)
    coalitions = torch.cat([ends, some, ~some]).to(present.device)
    logits = coalition_logits(head, present, absent, coalitions.expand(batch, -1, -1))
    none, everyone, halves = logits[:, :1], logits[:, 1:2], logits[:, 2:]
    rounding = AFFINE_TOLERANCE * logits.abs().amax(dim=(1, 2))

    def within(miss: Tensor) -> Tensor:
        return miss.abs().amax(dim=(1, 2)) <= rounding

    # Most other heads are told by the sums of coalitions and complements already.
    affine = within(halves[:, :PROBES] + halves[:, PROBES:] - none - everyone)
    added = torch.zeros(batch, players, none.shape[2]).to(none)
    fits = torch.zeros_like(affine)
    if rows and affine.any():
        by_rows = _added_by_rows(head, present, absent, none)
        if by_rows is not None:
            added = by_rows
            fits = within(AffineLogits(none[:, 0], added, affine).of(coalitions) - logits)
    if (affine & ~fits).any():
        alone = torch.eye(players, dtype=torch.bool, device=present.device).expand(batch, -1, -1)
        passed = coalition_logits(head, present, absent, alone) - none
        added = torch.where(fits[:, None, None], added, passed)
        fits = within(AffineLogits(none[:, 0], added, affine).of(coalitions) - logits)
    return AffineLogits(none[:, 0], added, affine & fits)


def _added_by_rows(head: Head, present: Tensor, absent: Tensor, none: Tensor) -> Tensor | None:
    """What each position adds, (B, P, K), by positions as images; None where the head does not take them."""
    batch, players = len(present), present[0, 0].numel()
    try:
        everyone = head(_rows(present))
        # An absent activation that is the same everywhere gives the logits of the empty coalition.
        same = (absent == absent[:, :, :1, :1]).all()
        nobody = none if same else head(_rows(absent)).unflatten(0, (batch, players))
        added = (everyone.unflatten(0, (batch, players)) - nobody) / players
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):  # it knows its shapes
        return None
    return added if added.shape == (batch, players, none.shape[2]) else None


def _rows(activation: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C, 1, 1)."""
    return activation.flatten(2).transpose(1, 2).flatten(0, 1)[:, :, None, None]
