"""Shapley values of positions whose logits are affine in the set that is present: y(S) = y_0 + sum over i in S of a_i.

A surrogate game with known Shapley values, and antithetic pairs of random orders for what it misses.

Surrogate. LEADERS players whose presence moves the logits most are told apart; Q are left. A coalition of m of the
Q, with the set b of leaders, has on average over coalitions of that kind the logits
    y_(m,b) = y_0 + sum over b of a_d + (m / Q) sum over the Q of a_j,
and deviates by eta = sum over its m of (a_j - their mean). It is worth what the third-order Taylor polynomial of u
at y_(m,b) gives for eta. All one needs are cumulants under p = softmax(y_(m,b)), classes being drawn: for g = ln p_c,
with logits taken relative to the class's own, g = -logsumexp(y) and
    g(y + eta) ~ g - E eta - var eta / 2 - skew eta / 6    (skew: the third central moment).
The expectation over coalitions of that size that do (not) contain i follows from the first three moments of sampling
without replacement; no quadrature, no autograd. At m = 0 and m = Q eta is 0, the surrogate is the game, and so its
values sum to u(all) - u(none).

What it misses, u - surrogate, is a game itself: contributions along random orders and their reverses, whose mean is
added. The estimate is unbiased, sums to u(all) - u(none) and has a standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEADERS = 2
PAIRS = 8
CHUNK = 2**23  # logits held at once
PROBES, TOLERANCE = 2, 1e-4


# Forms -------------------------------------------------------------------------------------------------------

@dataclass
class Forms:
    """Derivatives of u at base points along players' deviations a_i: shapes (..., Q), sums (..., 1).

    first L(i), second B(i, i), third T(i, i, i); seconds = sum_j B(j, j), thirds = sum_j T(j, j, j),
    mixed = sum_j T(j, j, i).
    """

    value: Tensor
    first: Tensor
    second: Tensor
    third: Tensor
    mixed: Tensor
    seconds: Tensor
    thirds: Tensor


def forms(value: Tensor, p: Tensor, added: Tensor, probability: bool) -> Forms:
    """Forms of ln p_c (or of p_c) at base points of ln p_c (B, n, 1) and p (B, n, K), for players added (B, Q, K)."""
    players, squares = added.mT, added.square()
    mean = p @ players  # (B, n, Q)
    second_moment = p @ squares.mT
    third_moment = p @ (squares * added).mT
    variance = second_moment - mean.square()
    skew = third_moment - 3 * mean * second_moment + 2 * mean**3
    along = mean @ added  # (B, n, K): sum_j mean_j a_j
    # sum_j (a_j - mean_j)^2, weighted by p
    spread = p * (squares.sum(dim=1, keepdim=True) - 2 * along + mean.square().sum(dim=2, keepdim=True))
    mixed = spread @ players - mean * spread.sum(dim=2, keepdim=True)
    variances = variance.sum(dim=2, keepdim=True)
    f = Forms(value, -mean, -variance, -skew, -mixed, -variances, -skew.sum(dim=2, keepdim=True))
    if not probability:
        return f
    weighted = p * along
    crossed = weighted @ players - mean * weighted.sum(dim=2, keepdim=True)  # sum_j L_j B_ij
    squared = mean.square().sum(dim=2, keepdim=True)
    chance = value.exp()
    third = chance * (f.first**3 + 3 * f.first * f.second + f.third)
    return Forms(
        chance,
        chance * f.first,
        chance * (f.first**2 + f.second),
        third,
        chance * (f.first * squared + 2 * crossed + f.first * f.seconds + f.mixed),
        chance * (squared + f.seconds),
        third.sum(dim=2, keepdim=True),
    )


def taylor(value: Tensor, p: Tensor, deviation: Tensor, probability: bool) -> Tensor:
    """The surrogate `deviation` (..., K) away from where ln p_c is `value` (...) and the classes' chances are p."""
    weighted = p * deviation
    mean = weighted.sum(dim=-1)
    weighted = weighted * deviation
    second = weighted.sum(dim=-1)
    third = (weighted * deviation).sum(dim=-1)
    variance = second - mean.square()
    skew = third - 3 * mean * second + 2 * mean**3
    first, second, third = -mean, -variance / 2, -skew / 6
    if not probability:
        return value + first + second + third
    return value.exp() * (1 + first + (second + first**2 / 2) + (third + first * second + first**3 / 6))


# Sampling without replacement --------------------------------------------------------------------------------

def second_factor(n: Tensor, of: int) -> Tensor:
    """E of B(x, x), x the sum of n of `of` players that sum to 0, over the players' sum of B(j, j)."""
    return n * (of - n) / (of * (of - 1))


def third_factor(n: Tensor, of: int) -> Tensor:
    return n * (of - n) * (of - 2 * n) / (of * (of - 1) * (of - 2))


def expectation(f: Forms, own: Tensor, drawn: Tensor, of: int) -> Tensor:
    """E of the surrogate where i's share is `own` and `drawn` of the `of` others are present, (B, n, Q)."""
    e = 1 / of
    spread, skewed = second_factor(drawn, of), third_factor(drawn, of)
    second = own**2 * f.second + spread * (f.seconds - (1 + e) * f.second)
    third = own**3 * f.third + 3 * own * spread * (f.mixed - (1 + e) * f.third)
    third = third + skewed * (f.thirds + 3 * e * f.mixed - (1 + e) * (1 + 2 * e) * f.third)
    return f.value + own * f.first + second / 2 + third / 6


# The estimate ------------------------------------------------------------------------------------------------

def ln_choose(n: int, k: Tensor) -> Tensor:
    return math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def coalition_weight(players: int, size: Tensor) -> Tensor:
    """ln of size! (players - size - 1)! / players!"""
    return torch.lgamma(size + 1) + torch.lgamma(players - size) - math.lgamma(players + 1)


class Surrogate:
    """The surrogate game of each image: none (B, K), added (B, P, K), logits relative to the class's own."""

    def __init__(self, none: Tensor, added: Tensor, leaders: int, probability: bool) -> None:
        batch, self.players, _ = added.shape
        self.probability, self.leaders = probability, leaders
        self.rest = self.players - leaders  # Q
        images = torch.arange(batch, device=added.device)[:, None]
        total = added.sum(dim=1)
        half = (none + total / 2).softmax(dim=1)[:, :, None]
        variance = (added.square() @ half - (added @ half).square())[:, :, 0]
        self.leader = variance.topk(leaders, dim=1).indices  # (B, r)
        self.is_leader = torch.zeros_like(variance, dtype=torch.bool).scatter(1, self.leader, True)
        lead = added[images, self.leader]
        mean = (total - lead.sum(dim=1)) / self.rest
        self.deviations = (added - mean[:, None]).masked_fill(self.is_leader[:, :, None], 0)
        states = torch.arange(2**leaders, device=added.device)
        self.bits = states[:, None] >> torch.arange(leaders, device=added.device) & 1  # (2^r, r)
        bases = none[:, None] + self.bits.to(added) @ lead  # (B, 2^r, K)
        sizes = torch.arange(self.rest + 1, device=added.device)
        base = (bases[:, :, None] + sizes[:, None] * mean[:, None, None]).flatten(1, 2)  # (B, 2^r (Q + 1), K)
        self.value = -base.logsumexp(dim=2)
        self.log_chance = base + self.value[:, :, None]
        self.chance = self.log_chance.exp()

    def values(self) -> Tensor:
        """Its Shapley values, (B, P)."""
        rest, others = self.rest, self.rest - 1
        f = forms(self.value[:, :, None], self.chance, self.deviations, self.probability)
        size = torch.arange(rest + 1, dtype=torch.float64, device=self.chance.device).repeat(2**self.leaders)
        count = self.bits.sum(dim=1).double().repeat_interleave(rest + 1)

        def column(values: Tensor) -> Tensor:
            return values.to(self.chance)[:, None]

        # Ordinary players: joined by i as one of `size`, and left by i with `size` others.
        inside = expectation(f, column((rest - size) / others), column(size - 1), others)
        outside = expectation(f, column(-size / others), column(size), others)
        joined = (ln_choose(others, size - 1) + coalition_weight(self.players, size - 1 + count)).exp()
        left = (ln_choose(others, size) + coalition_weight(self.players, size + count)).exp()
        joined, left = joined.where(size > 0, 0), left.where(size < rest, 0)
        values = (column(joined) * inside - column(left) * outside).sum(dim=1)
        # Leaders.
        mean = f.value + column(second_factor(size, rest)) * f.seconds / 2
        mean = (mean + column(third_factor(size, rest)) * f.thirds / 6)[:, :, 0]
        with_bit = self.bits.bool().repeat_interleave(rest + 1, dim=0).T  # (r, n)
        gained = (ln_choose(rest, size) + coalition_weight(self.players, (size + count - 1).clamp(min=0))).exp()
        lost = (ln_choose(rest, size) + coalition_weight(self.players, (size + count).clamp(max=self.players - 1))).exp()
        leaders = mean @ torch.where(with_bit, gained, -lost).T.to(mean)
        return values.scatter(1, self.leader, leaders)

    def missed(self, orders: Tensor) -> Tensor:
        """What u - surrogate gives each player, mean of an order and its reverse: orders (B, n, P) -> (B, n, P)."""
        batch, count, players = orders.shape
        images = torch.arange(batch, device=orders.device)[:, None, None]
        chosen = orders[:, :, :-1]
        deviation = self.deviations[images, chosen].cumsum(dim=2)  # (B, n, P - 1, K)
        led = torch.zeros(batch, count, players - 1, dtype=torch.long, device=orders.device)
        state = led.clone()
        for place in range(self.leaders):
            here = (chosen == self.leader[:, place, None, None]).cumsum(dim=2)
            led, state = led + here, state + (here << place)
        size = torch.arange(1, players, device=orders.device) - led
        within = self.rest + 1
        forward = self._missed(images, state * within + size, deviation)
        # The reverse passes through the complements: the other leaders, the other players, the opposite deviation.
        last = 2**self.leaders - 1
        back = self._missed(images, (last - state) * within + self.rest - size, deviation.neg())
        ends = forward.new_zeros(batch, count, 1)
        steps = torch.cat([ends, forward, ends], dim=2).diff(dim=2)
        reverse = torch.cat([ends, back, ends], dim=2).diff(dim=2).neg()
        return ((steps + reverse) / 2).gather(2, orders.argsort(dim=2))

    def _missed(self, images: Tensor, index: Tensor, deviation: Tensor) -> Tensor:
        value, chance = self.value[images, index], self.chance[images, index]
        worth = value - (self.log_chance[images, index] + deviation).logsumexp(dim=3)
        worth = worth.exp() if self.probability else worth
        return worth - taylor(value, chance, deviation, self.probability)


def shapley(
    none: Tensor,
    added: Tensor,
    target: Tensor,
    utility: str,
    generators: Sequence[torch.Generator],
    pairs: int = PAIRS,
    leaders: int = LEADERS,
    shrink: bool = True,
) -> tuple[Tensor, Tensor]:
    """Shapley values and standard errors, both (B, P).

    Args:
        none: logits without any player, (B, K). added: what each player adds, (B, P, K).
        generators: one an image.
        pairs: random orders, each with its reverse; 0: the surrogate's values alone, errors NaN.
        shrink: whether the correction is shrunk towards 0 (positive-part James-Stein). The errors are those of
            the whole correction, which bound the shrunk one's in the mean square.
    """
    own = added.gather(2, target[:, None, None].expand(-1, added.shape[1], 1))[:, :, 0]
    if utility == "logit":
        return own, torch.zeros_like(own)
    at_once = max(1, CHUNK // (2**leaders * (added.shape[1] + 1) * added.shape[2]))
    values, errors = [], []
    for some in torch.arange(len(added), device=added.device).split(at_once):
        relative = none[some] - none[some].gather(1, target[some, None])
        surrogate = Surrogate(relative, added[some] - own[some, :, None], leaders, utility == "softmax")
        estimate = surrogate.values()
        if pairs:
            drawn = [
                torch.stack([torch.randperm(added.shape[1], generator=generators[i]) for _ in range(pairs)])
                for i in some.tolist()
            ]
            orders = torch.stack(drawn).to(added.device)
            step = max(1, CHUNK // (len(some) * added.shape[1] * added.shape[2]))
            missed = torch.cat([surrogate.missed(part) for part in orders.split(step, dim=1)], dim=1)
            correction, error = missed.mean(dim=1), missed.std(dim=1) / math.sqrt(pairs)
            if shrink:  # by the share of its square that noise explains
                noise = error.square().sum(dim=1, keepdim=True)
                length = correction.square().sum(dim=1, keepdim=True)
                correction = correction * (1 - noise / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(min=0)
            estimate = estimate + correction
            errors.append(error)
        else:
            errors.append(torch.full_like(estimate, torch.nan))
        values.append(estimate)
    value = torch.cat(values) + (own if utility == "rest" else 0)
    return value, torch.cat(errors)


# The coalitions' logits --------------------------------------------------------------------------------------

def coalition_logits(
    head: Callable[[Tensor], Tensor], present: Tensor, absent: Tensor, rows: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K) of nobody, what each position adds (B, P, K), and whether an image's logits are such sums, (B,).

    Where the rest of the network treats positions alone and then takes their mean, each position can go through it
    as an image of 1 x 1 positions: one pass of B P rows. Whether that is so is seen by the numbers; else each
    position is present alone, P passes. All is decided image by image, against the image's own logits.

    Args:
        rows: whether rows are worth a try: not where something passes the layer by.
    """
    batch, _, height, width = present.shape
    players = height * width
    some = torch.rand(PROBES, players, generator=torch.Generator().manual_seed(0)) < 0.5
    ends = torch.tensor([[False], [True]]).expand(2, players)
    coalitions = torch.cat([ends, some, ~some]).to(present.device)

    def passes(coalitions: Tensor) -> Tensor:
        grid = coalitions.unflatten(1, (height, width))
        return torch.stack([head(torch.where(one, present, absent)) for one in grid], dim=1)

    logits = passes(coalitions)  # (B, 2 + 2 PROBES, K)
    none, everyone, halves = logits[:, :1], logits[:, 1:2], logits[:, 2:]
    rounding = TOLERANCE * logits.abs().amax(dim=(1, 2))

    def small(miss: Tensor) -> Tensor:
        return miss.abs().amax(dim=(1, 2)) <= rounding

    def fits(added: Tensor) -> Tensor:
        return small(none + coalitions.to(added) @ added - logits)

    # A coalition and its complement sum to the ends: most other heads are told by that already.
    affine = small(halves[:, :PROBES] + halves[:, PROBES:] - none - everyone)
    added = none.new_zeros(batch, players, none.shape[2])
    fitted = torch.zeros_like(affine)
    if rows and affine.any():
        try:
            through = head(_rows(present)) - head(_rows(absent))
        except (RuntimeError, ValueError, IndexError):  # the network knows its shapes
            pass
        else:
            if through.shape == (batch * players, none.shape[2]):
                added = through.unflatten(0, (batch, players)) / players
                fitted = fits(added)
    if (affine & ~fitted).any():
        alone = passes(torch.eye(players, dtype=torch.bool, device=present.device)) - none
        added = torch.where(fitted[:, None, None], added, alone)
    return none[:, 0], added, affine & fits(added)


def _rows(activation: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C, 1, 1)."""
    return activation.flatten(2).transpose(1, 2).flatten(0, 1)[:, :, None, None]
