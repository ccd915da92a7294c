"""Shapley values of affine logits: the surrogate's closed form and its correction, against enumeration."""

from __future__ import annotations

import itertools
from math import factorial

import pytest
import torch
from torch import Tensor

from camkit.network.activation import SIGMOID
from camkit.network.surrogate import Surrogate, shapley_values, taylor
from camkit.network.utilities import find_utility, form_of

UTILITIES = ("logit", "softmax", "log-softmax", "rest")


def streams(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + place) for place in range(count)]


def game(players: int, batch: int = 2, classes: int = 12, scale: float = 0.5, dominant: float = 0):
    """y_0 (B, K), a (B, P, K) and classes (B,); the third player adds `dominant` to the class's own logit."""
    generator = torch.Generator().manual_seed(0)
    none = torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    added = scale * torch.randn(batch, players, classes, generator=generator, dtype=torch.float64)
    target = torch.arange(batch) % classes
    added[torch.arange(batch), 2, target] += dominant
    return none, added, target


def enumerated(worth: Tensor, players: int) -> Tensor:
    """Shapley values (B, P) of games whose coalition with the bits of n is worth (B, 2^P) at n."""
    numbers = torch.arange(2**players)
    sizes = sum(numbers >> i & 1 for i in range(players))
    weight = [factorial(s) * factorial(players - 1 - s) / factorial(players) for s in range(players)]
    values = []
    for i in range(players):
        without = numbers[numbers >> i & 1 == 0]
        gain = worth[:, without | 1 << i] - worth[:, without]
        values.append((gain * torch.tensor(weight, dtype=worth.dtype)[sizes[without]]).sum(dim=1))
    return torch.stack(values, dim=1)


def coalitions(players: int) -> Tensor:
    return (torch.arange(2**players)[:, None] >> torch.arange(players) & 1).bool()


def exact(none: Tensor, added: Tensor, target: Tensor, utility: str, activation: str = "softmax") -> Tensor:
    logits = none[:, None] + coalitions(added.shape[1]).to(added) @ added
    of = find_utility(utility, activation)
    worth = torch.stack([of(logits[b], target[b].expand(logits.shape[1])) for b in range(len(logits))])
    return enumerated(worth, added.shape[1])


def found(none, added, target, utility, drawn=None, activation="softmax"):
    form = form_of(find_utility(utility, activation))
    return shapley_values(none, added, target, form, drawn or streams(len(none)))


def surrogate_of(none, added, target, utility, leaders) -> Surrogate:
    form = form_of(find_utility(utility))
    relative = form.against_class(torch.cat([none[:, None], added], dim=1), target)
    return Surrogate(relative[:, 0], relative[:, 1:], leaders, form.of == "probability")


@pytest.mark.parametrize("utility", ["softmax", "log-softmax"])
@pytest.mark.parametrize("leaders", [0, 1, 2])
def test_the_closed_form_is_the_shapley_value_of_the_surrogate(utility: str, leaders: int) -> None:
    players = 7
    none, added, target = game(players)
    surrogate = surrogate_of(none, added, target, utility, leaders)
    worth = torch.zeros(2, 2**players, dtype=torch.float64)
    for number, present in enumerate(coalitions(players)):
        for image in range(2):
            leader = surrogate.leader[image].tolist()
            led = sum(int(present[one]) << place for place, one in enumerate(leader))
            others = present.clone()
            others[leader] = False
            base = led * (players - leaders + 1) + int(others.sum())
            worth[image, number] = taylor(
                surrogate.value[image, base],
                surrogate.chance[image, base],
                surrogate.deviations[image][present].sum(dim=0),
                utility == "softmax",
            )
    torch.testing.assert_close(surrogate.values(), enumerated(worth, players), rtol=0, atol=1e-11)


@pytest.mark.parametrize("utility", ["softmax", "log-softmax"])
def test_the_polynomial_is_taylors(utility: str) -> None:
    """Against automatic derivatives of u along the deviation."""
    none, added, target = game(7)
    surrogate = surrogate_of(none, added, target, utility, 0)
    base, direction = surrogate.log_chance[0, 3], added[0, 1] - added[0, 1, target[0]]

    def worth(t: Tensor) -> Tensor:
        log = surrogate.value[0, 3] - (base + t * direction).logsumexp(dim=0)
        return log.exp() if utility == "softmax" else log

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    derivative, expected = worth(t), 0.0
    for order in range(4):
        expected += float(derivative.detach()) * 0.7**order / factorial(order)
        (derivative,) = torch.autograd.grad(derivative, t, create_graph=True)
    polynomial = taylor(surrogate.value[0, 3], surrogate.chance[0, 3], 0.7 * direction, utility == "softmax")
    assert float(polynomial) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("utility", UTILITIES[1:])
@pytest.mark.parametrize("leaders", [0, 1, 2])
def test_the_mean_over_all_orders_is_exact(utility: str, leaders: int) -> None:
    """So the estimate has no bias, however far the surrogate is from the game."""
    players = 6
    none, added, target = game(players, scale=1.5)
    surrogate = surrogate_of(none, added, target, utility, leaders)
    orders = torch.tensor(list(itertools.permutations(range(players))))[None].expand(2, -1, -1)
    values = surrogate.values() + surrogate.correction(orders)[0]
    if utility == "rest":
        values = values + added.gather(2, target[:, None, None].expand(-1, players, 1))[:, :, 0]
    torch.testing.assert_close(values, exact(none, added, target, utility), rtol=0, atol=1e-9)
    assert (surrogate.values() - values).abs().max() > 1e-3


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("dominant", [0, 3, 20])
def test_near_enumeration_also_with_a_dominant_position(utility: str, dominant: float) -> None:
    none, added, target = (
        one.float() if one.is_floating_point() else one
        for one in game(14, batch=4, classes=20, scale=0.2, dominant=dominant)
    )
    truth = exact(none.double(), added.double(), target, utility)
    values, errors = found(none, added, target, utility)
    miss = (values - truth).norm(dim=1) / truth.norm(dim=1)
    assert miss.max() < (0.01 if utility == "softmax" else 0.002)
    if utility == "logit":
        assert not errors.any()
    else:
        assert (errors.norm(dim=1) > 0).all()
        assert ((values - truth).norm(dim=1) < 5 * errors.norm(dim=1) + 1e-5).all()


@pytest.mark.parametrize("utility", UTILITIES)
def test_under_a_sigmoid(utility: str) -> None:
    none, added, target = game(12, batch=3, classes=5, dominant=2)
    truth = exact(none, added, target, utility, "sigmoid")
    values, _ = found(none, added, target, utility, activation=SIGMOID.name)
    assert ((values - truth).norm(dim=1) / truth.norm(dim=1)).max() < 0.02
    softmax = exact(none, added, target, utility)
    assert utility == "logit" or ((softmax - truth).norm(dim=1) / truth.norm(dim=1)).min() > 0.05


@pytest.mark.parametrize("utility", UTILITIES)
def test_values_sum_to_the_gain(utility: str) -> None:
    none, added, target = game(30, batch=4, scale=0.7, dominant=5)
    values, errors = found(none, added, target, utility)
    of = find_utility(utility)
    gain = of(none + added.sum(dim=1), target) - of(none, target)
    torch.testing.assert_close(values.sum(dim=1), gain, rtol=0, atol=1e-12)
    assert errors.isfinite().all()


@pytest.mark.parametrize("utility", ["softmax", "rest"])
def test_standard_errors_are_those_of_the_estimate(utility: str) -> None:
    """Over seeds, the mean squared error of the unshrunk estimate is the mean squared standard error."""
    none, added, target = game(10, batch=6, classes=10, scale=0.8)
    truth = exact(none, added, target, utility)
    surrogate = surrogate_of(none, added, target, utility, 2)
    values = surrogate.values()
    if utility == "rest":
        values = values + added.gather(2, target[:, None, None].expand(-1, 10, 1))[:, :, 0]
    generator = torch.Generator().manual_seed(1)
    squares, expected = torch.zeros(6).double(), torch.zeros(6).double()
    for _ in range(150):
        orders = torch.rand(6, 6, 10, generator=generator).argsort(dim=2)
        correction, errors = surrogate.correction(orders)
        squares += (values + correction - truth).square().sum(dim=1)
        expected += errors.square().sum(dim=1)
    assert (squares / expected).tolist() == pytest.approx([1] * 6, abs=0.25)


def test_shrinking_helps_where_the_correction_is_noise() -> None:
    """Nearly additive games: the surrogate is nearer than what eight noisy pairs make of it."""
    none, added, target = game(14, batch=6, scale=0.1)
    truth = exact(none, added, target, "log-softmax")
    surrogate = surrogate_of(none, added, target, "log-softmax", 2)
    drawn = streams(6)
    orders = torch.stack(
        [torch.stack([torch.randperm(14, generator=one) for _ in range(8)]) for one in drawn]
    )
    whole = surrogate.values() + surrogate.correction(orders)[0]
    shrunk, _ = found(none, added, target, "log-softmax")
    assert (shrunk - truth).square().sum() < (whole - truth).square().sum()


def test_an_image_does_not_see_its_batch() -> None:
    none, added, target = game(20, batch=5)
    together, errors = found(none, added, target, "rest")
    for image, stream in enumerate(streams(5)):
        one = slice(image, image + 1)
        alone = found(none[one], added[one], target[one], "rest", [stream])
        torch.testing.assert_close(alone[0], together[one], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone[1], errors[one], rtol=1e-9, atol=1e-12)


def test_an_images_draws_are_those_of_its_stream() -> None:
    none, added, target = game(20, scale=1.5)
    first, again, other = (found(none, added, target, "softmax", streams(2, seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-6


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    none, added, target = game(20, batch=3)
    whole = found(none, added, target, "softmax")
    monkeypatch.setattr("camkit.network.surrogate.CHUNK", 1)
    for one, other in zip(whole, found(none, added, target, "softmax"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_forms_are_of_camkits_own_utilities_alone() -> None:
    for name in UTILITIES:
        assert form_of(find_utility(name)) is not None
    assert form_of(lambda logits, target: logits[:, 0]) is None
    form = form_of(find_utility("rest", "sigmoid"))
    assert form is not None and form.activation is SIGMOID
