"""Shapley values where logits are affine in the set of present players: y(S) = y_0 + sum over i in S of a_i.

A surrogate game whose Shapley values have a closed form, and antithetic pairs of random orders (Castro et
al. 2009) for what it misses.

The surrogate. The LEADERS players that move the probabilities most are told apart; Q others are left. All
coalitions with the set b of leaders and m of the others have one base point,

    y_(b,m) = y_0 + sum over b of a_i + (m / Q) (sum over the others of a_j),

from which each of them deviates by eta, the sum over its m others of a_j less their mean. It is worth the
Taylor polynomial of order 3 of u at the base point. With logits relative to the class's own, ln p_c =
-logsumexp(y), and this polynomial is

    ln p_c(y) - E eta - Var eta / 2 - Skew eta / 6,

moments over classes drawn with the probabilities at y (Skew: the third central moment). Its mean over all
coalitions of m others that do, or do not, have player i follows from the moments of sampling without
replacement: no quadrature and no gradient. Where m is 0 or Q eta is 0 and the surrogate is the game, so that
its values sum to u(all) - u(none).

What it misses, u less the surrogate, is a game too. Its mean contributions over random orders and their
reverses are added; they sum to 0. Before, they are shrunk towards 0 by the share of their square that their
own noise explains (James and Stein 1961, positive part).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camkit.network.activation import of_class
from camkit.network.utilities import Form

LEADERS = 2
PAIRS = 8  # random orders of an image, each with its reverse
CHUNK = 2**23  # numbers that one tensor holds at once


def shapley_values(
    none: Tensor, added: Tensor, target: Tensor, form: Form, streams: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Shapley values and their standard errors, both (B, P), for P > 5 players.

    The errors are those of the whole correction, which shrinking makes smaller on average.

    Args:
        none: y_0, (B, K).
        added: a, (B, P, K).
        target: classes c, (B,).
        streams: one random generator per image.
    """
    batch, players, _ = added.shape
    own = of_class(added.transpose(1, 2), target[:, None].expand(-1, players))
    if form.of is None:
        return own, torch.zeros_like(own)
    relative = form.against_class(torch.cat([none[:, None], added], dim=1), target)
    at_once = max(1, CHUNK // (2**LEADERS * (players + 1) * relative.shape[2]))
    parts = []
    for some in torch.arange(batch).split(at_once):
        surrogate = Surrogate(relative[some, 0], relative[some, 1:], LEADERS, form.of == "probability")
        drawn = [
            torch.stack([torch.randperm(players, generator=streams[i]) for _ in range(PAIRS)])
            for i in some.tolist()
        ]
        correction, error = surrogate.correction(torch.stack(drawn).to(added.device))
        parts.append((surrogate.values() + _shrunk(correction, error), error))
    values, errors = (torch.cat(one) for one in zip(*parts, strict=True))
    return (values + own if form.logit else values), errors


def _shrunk(correction: Tensor, error: Tensor) -> Tensor:
    noise, square = (one.square().sum(dim=1, keepdim=True) for one in (error, correction))
    return correction * (1 - noise / square.clamp(min=torch.finfo(square.dtype).tiny)).clamp(min=0)


class Surrogate:
    """The surrogate games of ln p_c, or of p_c, of some images.

    Args:
        none: logits without any player, relative to the class's own, (B, K).
        added: what each player adds to them, (B, P, K).
        leaders: how many players are told apart, at most P - 4.
        probability: u is p_c.

    Attributes:
        value: ln p_c at the base points, (B, n); n = 2^leaders (Q + 1), the leaders' set first.
        log_chance, chance: ln p and p of all classes there, (B, n, K).
        deviations: a less the mean of the others, 0 for leaders, (B, P, K).
    """

    def __init__(self, none: Tensor, added: Tensor, leaders: int, probability: bool) -> None:
        self.players, self.leaders, self.probability = added.shape[1], leaders, probability
        self.rest = self.players - leaders  # Q
        total = added.sum(dim=1)
        half = (none + total / 2).softmax(dim=1)[:, :, None]
        moves = (added.square() @ half - (added @ half).square())[:, :, 0]
        self.leader = moves.topk(leaders, dim=1).indices  # (B, leaders)
        is_leader = torch.zeros_like(moves, dtype=torch.bool).scatter(1, self.leader, True)
        lead = added.gather(1, self.leader[:, :, None].expand(-1, -1, added.shape[2]))
        mean = (total - lead.sum(dim=1)) / self.rest
        self.deviations = (added - mean[:, None]).masked_fill(is_leader[:, :, None], 0)
        # Row b: which leaders the b-th set has.
        self.sets = torch.arange(2**leaders)[:, None] >> torch.arange(leaders) & 1
        with_set = none[:, None] + self.sets.to(added) @ lead  # (B, 2^leaders, K)
        sizes = torch.arange(self.rest + 1).to(added)
        base = (with_set[:, :, None] + sizes[:, None] * mean[:, None, None]).flatten(1, 2)
        self.value = -base.logsumexp(dim=2)
        self.log_chance = base + self.value[:, :, None]
        self.chance = self.log_chance.exp()

    def values(self) -> Tensor:
        """Shapley values of the surrogate games, (B, P)."""
        rest, others = self.rest, self.rest - 1
        terms = derivatives(self.value[:, :, None], self.chance, self.deviations, self.probability)
        size = torch.arange(rest + 1, dtype=torch.float64).repeat(2**self.leaders)  # m of each base point
        led = self.sets.sum(dim=1).double().repeat_interleave(rest + 1)

        def column(numbers: Tensor) -> Tensor:
            return numbers.to(self.chance)[:, None]

        def weight(present: Tensor) -> Tensor:
            """ln of s! (P - s - 1)! / P!, the weight of a coalition of s that another one joins."""
            sizes = present.clamp(0, self.players - 1)
            log_factorials = torch.lgamma(sizes + 1) + torch.lgamma(self.players - sizes)
            return log_factorials - math.lgamma(self.players + 1)

        # Another player is one of m, or it is not.
        inside = terms.mean(column((rest - size) / others), column(size - 1), others)
        outside = terms.mean(column(-size / others), column(size), others)
        joined = (_ln_choose(others, size - 1) + weight(size - 1 + led)).exp().where(size > 0, 0)
        left = (_ln_choose(others, size) + weight(size + led)).exp().where(size < rest, 0)
        values = (column(joined) * inside - column(left) * outside).sum(dim=1)
        # A leader is in the set, or it is not; the others are any m of Q.
        everyone = terms.value + column(_second(size, rest)) * terms.seconds / 2
        everyone = (everyone + column(_third(size, rest)) * terms.thirds / 6)[:, :, 0]
        has = self.sets.bool().repeat_interleave(rest + 1, dim=0).T  # (leaders, n)
        ways = _ln_choose(rest, size)
        signed = torch.where(has, (ways + weight(size + led - 1)).exp(), -(ways + weight(size + led)).exp())
        return values.scatter(1, self.leader, everyone @ signed.T.to(everyone))

    def correction(self, orders: Tensor) -> tuple[Tensor, Tensor]:
        """What u less the surrogate gives each player, and its standard error, both (B, P).

        Args:
            orders: orders of the players, (B, n, P), n > 1; each is taken with its reverse.
        """
        step = max(1, CHUNK // self.deviations.numel())
        found = torch.cat([self._contributions(some) for some in orders.split(step, dim=1)], dim=1)
        return found.mean(dim=1), found.std(dim=1) / math.sqrt(orders.shape[1])

    def _contributions(self, orders: Tensor) -> Tensor:
        """Of each order (B, n, P) and its reverse, the mean: (B, n, P)."""
        before = orders[:, :, :-1]
        images = torch.arange(len(orders), device=orders.device)[:, None, None]
        deviation = self.deviations[images, before].cumsum(dim=2)  # (B, n, P - 1, K)
        led, state = torch.zeros_like(before), torch.zeros_like(before)
        for place in range(self.leaders):
            here = (before == self.leader[:, place, None, None]).cumsum(dim=2)
            led, state = led + here, state + (here << place)
        size = torch.arange(1, self.players, device=orders.device) - led
        # The reverse passes through the complements: the other leaders, and the opposite deviation.
        complement = (2**self.leaders - 1 - state) * (self.rest + 1) + self.rest - size
        forward = self._missed(images, state * (self.rest + 1) + size, deviation)
        back = self._missed(images, complement, -deviation)
        end = forward.new_zeros(*orders.shape[:2], 1)
        steps, reverse = (torch.cat([end, one, end], dim=2).diff(dim=2) for one in (forward, back))
        return ((steps - reverse) / 2).gather(2, orders.argsort(dim=2))

    def _missed(self, images: Tensor, base: Tensor, deviation: Tensor) -> Tensor:
        """u less the surrogate of coalitions that deviate (..., K) from base points (...)."""
        value, chance = self.value[images, base], self.chance[images, base]
        worth = value - (self.log_chance[images, base] + deviation).logsumexp(dim=-1)
        worth = worth.exp() if self.probability else worth
        return worth - taylor(value, chance, deviation, self.probability)


def taylor(value: Tensor, chance: Tensor, deviation: Tensor, probability: bool) -> Tensor:
    """The polynomial of order 3 of ln p_c, or of p_c, (...), `deviation` (..., K) away from a base point.

    Args:
        value, chance: ln p_c (...) and p of all classes (..., K) at the base point.
    """
    weighted = chance * deviation
    mean = weighted.sum(dim=-1)
    weighted = weighted * deviation
    second, third = weighted.sum(dim=-1), (weighted * deviation).sum(dim=-1)
    first = -mean
    variance = mean.square() - second
    skew = 3 * mean * second - 2 * mean**3 - third
    if not probability:
        return value + first + variance / 2 + skew / 6
    of_order_3 = first**3 + 3 * first * variance + skew
    return value.exp() * (1 + first + (variance + first.square()) / 2 + of_order_3 / 6)


@dataclass(frozen=True)
class Derivatives:
    """Those of u at base points along the players' deviations: D, D2 and D3 of one, two and three of them.

    Shapes (B, n, P), those of `value` and of sums over players (B, n, 1).

    Attributes:
        first, second, third: D(i), D2(i, i), D3(i, i, i).
        mixed: sum over j of D3(i, j, j).
        seconds, thirds: sums over j of D2(j, j) and of D3(j, j, j).
    """

    value: Tensor
    first: Tensor
    second: Tensor
    third: Tensor
    mixed: Tensor
    seconds: Tensor
    thirds: Tensor

    def mean(self, own: Tensor, drawn: Tensor, others: int) -> Tensor:
        """Mean of the polynomial over the ways to draw that many of i's others, (B, n, P).

        Args:
            own: multiple of i's own deviation that is there without any draw, (n, 1).
            drawn: how many others are drawn, (n, 1); all deviations, i's too, sum to 0.
        """
        share = 1 / others
        spread, skewed = _second(drawn, others), _third(drawn, others)
        second = own**2 * self.second + spread * (self.seconds - (1 + share) * self.second)
        third = own**3 * self.third + 3 * own * spread * (self.mixed - (1 + share) * self.third)
        cubes = self.thirds + 3 * share * self.mixed - (1 + share) * (1 + 2 * share) * self.third
        return self.value + own * self.first + second / 2 + (third + skewed * cubes) / 6


def derivatives(value: Tensor, chance: Tensor, deviations: Tensor, probability: bool) -> Derivatives:
    """Of ln p_c, or of p_c: see :func:`taylor`; deviations (B, P, K), ln p_c (B, n, 1), p (B, n, K)."""
    players, squares = deviations.mT, deviations.square()
    mean = chance @ players  # (B, n, P)
    second_moment = chance @ squares.mT
    variance = second_moment - mean.square()
    skew = chance @ (squares * deviations).mT - 3 * mean * second_moment + 2 * mean**3
    along = mean @ deviations  # (B, n, K): sum over j of E(j) a_j
    # Of each class: p times the sum over j of (a_j - E(j))^2.
    spread = chance * (squares.sum(dim=1, keepdim=True) - 2 * along + mean.square().sum(dim=2, keepdim=True))
    mixed = spread @ players - mean * spread.sum(dim=2, keepdim=True)
    of_log = Derivatives(value, -mean, -variance, -skew, -mixed, -_total(variance), -_total(skew))
    if not probability:
        return of_log
    # Of the exponential, each derivative is a sum over the ways to split its directions among factors.
    weighted = chance * along
    crossed = weighted @ players - mean * weighted.sum(dim=2, keepdim=True)  # sum over j of D(j) D2(i, j)
    squared, chance_c, first = _total(mean.square()), value.exp(), of_log.first
    third = chance_c * (first**3 + 3 * first * of_log.second + of_log.third)
    return Derivatives(
        chance_c,
        chance_c * first,
        chance_c * (first.square() + of_log.second),
        third,
        chance_c * (first * squared + 2 * crossed + first * of_log.seconds + of_log.mixed),
        chance_c * (squared + of_log.seconds),
        _total(third),
    )


def _total(values: Tensor) -> Tensor:
    return values.sum(dim=2, keepdim=True)


# Of a sum of n that are drawn without replacement from `among` vectors x_j that sum to 0: E B(sum, sum) over
# the sum of B(x_j, x_j), and the same of a trilinear form.
def _second(n: Tensor, among: int) -> Tensor:
    return n * (among - n) / (among * (among - 1))


def _third(n: Tensor, among: int) -> Tensor:
    return n * (among - n) * (among - 2 * n) / (among * (among - 1) * (among - 2))


def _ln_choose(n: int, k: Tensor) -> Tensor:
    return math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
