"""Shapley values and Aumann maps against enumeration, closed forms, captum and shapiq."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from polynomials import Polynomial, trace, values
from torch import nn

import camkit.methods  # noqa: F401  (fills the registry)
from camkit.entries import METHODS
from camkit.errors import UsageError
from camkit.methods.aumann import completed
from camkit.network.game import absent_activation

EXACT = {"rtol": 0, "atol": 1e-10}


def utilities_of_coalitions(traced):
    """Utility (B,) of a coalition, a boolean (h, w), straight from the whole network."""

    def worth(present):
        images = torch.where(torch.as_tensor(present), traced.images, traced.absent_activation)
        return traced.utility(traced.network.model(images), traced.target)

    return worth


def shapley_by_orders(traced):
    """Every order of the players, one after the other: the definition."""
    h, w = traced.activation.shape[2:]
    worth = utilities_of_coalitions(traced)
    total = torch.zeros(len(traced.images), h * w, dtype=torch.float64)
    orders = list(itertools.permutations(range(h * w)))
    for order in orders:
        present = np.zeros(h * w, dtype=bool)
        before = worth(present.reshape(h, w))
        for player in order:
            present[player] = True
            after = worth(present.reshape(h, w))
            total[:, player] += after - before
            before = after
    return (total / len(orders)).unflatten(1, (h, w))


def third_derivatives(traced):
    """T (B, P, P, P): third derivatives of the utility in the players' presence, sums over channels."""
    model, a = traced.network.model, traced.activation
    batch, channels, h, w = a.shape
    sums = sum(model.cubic.permute(0, *(1 + p for p in order)) for order in itertools.permutations(range(3)))
    of_target = sums[traced.target].reshape(batch, *[channels, h * w] * 3)
    x = a.flatten(2)
    return torch.einsum("bcidjek,bci,bdj,bek->bijk", of_target, x, x, x)


def cubic_shapley(third, aumann):
    """The Aumann-Shapley value and the cubic identity's correction: exact for a cubic utility."""
    ijj = third.diagonal(dim1=2, dim2=3).sum(dim=2)
    iij = third.diagonal(dim1=1, dim2=2).transpose(1, 2).sum(dim=2)
    return aumann + ((ijj - iij) / 12).unflatten(1, aumann.shape[1:])


@pytest.mark.parametrize("utility", ["logit", "rest", "softmax"])
def test_enumeration_is_the_average_over_all_orders(utility):
    traced = trace(Polynomial(8, 3), values(2, 2, 2, 2) / 2, utility=utility)
    found, errors = traced.game.shapley("any")
    torch.testing.assert_close(found, shapley_by_orders(traced), **EXACT)
    assert not errors.any()


def integral(traced, nodes=3):
    """Sum over channels of (A - A0) times the gradient's mean on the path: exact up to degree 5 of it."""
    total, change = 0, traced.activation - traced.absent_activation
    for place, weight in zip(*np.polynomial.legendre.leggauss(nodes), strict=True):
        at = torch.lerp(traced.absent_activation, traced.activation, float(place + 1) / 2)
        total += weight / 2 * (change * traced.gradient_at(at)).sum(dim=1)
    return total


@pytest.mark.parametrize("absent", ["zero", "mean", "blur"])
def test_the_path_integral_is_exact_for_a_quadratic_utility(absent):
    traced = trace(Polynomial(8, 2), values(2, 2, 2, 2), absent=absent)
    torch.testing.assert_close(integral(traced), shapley_by_orders(traced), **EXACT)


@pytest.mark.parametrize("absent", ["zero", "mean", "blur"])
def test_aumann_comes_to_the_path_integral(absent):
    """Its error falls with the square of 2 N + 1, and is 0 for a linear utility."""
    traced = trace(Polynomial(8, 2), values(2, 2, 2, 2), absent=absent)
    exact = integral(traced)
    few, many = ((METHODS[f"aumann-{n}"].function(traced) - exact).flatten(1).norm(dim=1) for n in (7, 52))
    torch.testing.assert_close(few / many, torch.full_like(few, 49), rtol=0.02, atol=0)
    linear = trace(Polynomial(8, 1), values(2, 2, 2, 2), absent=absent)
    torch.testing.assert_close(METHODS["aumann-1"].function(linear), shapley_by_orders(linear), **EXACT)


def test_shapleycam_is_exact_for_a_quadratic_utility_and_hirescam_for_a_linear_one():
    quadratic = trace(Polynomial(8, 2), values(2, 2, 2, 2))
    exact = shapley_by_orders(quadratic)
    torch.testing.assert_close(METHODS["shapleycam-h"].function(quadratic), exact, **EXACT)
    assert (METHODS["hirescam"].function(quadratic) - exact).abs().max() > 0.1
    linear = trace(Polynomial(8, 1), values(2, 2, 2, 2))
    torch.testing.assert_close(METHODS["hirescam"].function(linear), shapley_by_orders(linear), **EXACT)


def test_cubic_identity():
    traced = trace(Polynomial(8, 3), values(2, 2, 2, 2))
    aumann = integral(traced)
    exact = shapley_by_orders(traced)
    torch.testing.assert_close(cubic_shapley(third_derivatives(traced), aumann), exact, **EXACT)
    assert (aumann - exact).abs().max() > 0.1


def test_sampling_is_exact_for_a_quadratic_utility_thanks_to_antithetic_pairs():
    traced = trace(Polynomial(50, 2), values(2, 2, 5, 5), budget=8)
    found, errors = traced.game.shapley("any")
    torch.testing.assert_close(found, integral(traced), rtol=0, atol=1e-9)
    assert errors.max() < 1e-9


def test_sampling_meets_the_closed_form_of_a_cubic_utility_within_its_standard_errors():
    traced = trace(Polynomial(25, 3), values(1, 1, 5, 5), budget=200)
    found, errors = traced.game.shapley("any")
    exact = cubic_shapley(third_derivatives(traced), integral(traced))
    deviations = (found - exact) / errors
    # 25 standard normal deviates: their mean square lies in (0.4, 2) but once in ten thousand times.
    assert 0.4 < deviations.square().mean() < 2
    assert errors.max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("absent", ["zero", "mean", "blur"])
def test_values_sum_to_the_gain_whatever_is_sampled(absent):
    traced = trace(Polynomial(25, 3), values(2, 1, 5, 5), budget=4, utility="rest", absent=absent)
    none, everyone = traced.game.ends
    torch.testing.assert_close(traced.game.shapley("any")[0].sum(dim=(1, 2)), everyone - none)
    worth = utilities_of_coalitions(traced)
    torch.testing.assert_close(everyone, worth(np.ones((5, 5), bool)))
    torch.testing.assert_close(none, worth(np.zeros((5, 5), bool)))


def test_an_images_draws_depend_on_seed_image_and_purpose_alone():
    model, images = Polynomial(25, 3), values(3, 1, 5, 5)

    def found(images, ids, purpose="a", seed=0):
        traced = trace(model, images, ids=ids, budget=4, seed=seed)
        traced.target = torch.zeros(len(images), dtype=torch.long)
        return traced.game.shapley(purpose)[0]

    together = found(images, ["x", "y", "z"])
    torch.testing.assert_close(found(images[1:2], ["y"])[0], together[1])
    assert (found(images[1:2], ["y"], purpose="b")[0] - together[1]).abs().max() > 1e-3
    assert (found(images[1:2], ["y"], seed=1)[0] - together[1]).abs().max() > 1e-3
    assert (found(images[1:2], ["other"])[0] - together[1]).abs().max() > 1e-3


class Pooled(nn.Module):
    """Position-wise up to pooling, then linear: affine logits."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.activation = nn.Conv2d(3, 4, 1)
            self.after = nn.Sequential(
                nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 1), nn.GELU()
            )
            self.classify = nn.Linear(6, 5)

    def forward(self, images):
        return self.classify(self.after(self.activation(images)).mean(dim=(2, 3)))


def test_affine_logits_are_recognised_and_give_what_replays_give():
    traced = trace(Pooled().double().eval(), values(2, 3, 5, 5), utility="rest", budget=6)
    game = traced.game
    assert game.is_affine.all()
    quick, quick_errors = game.shapley("any")
    for holds in ([False, False], [True, False]):  # also in a batch in which one image's logits are not
        affine = replace(game._affine, holds=torch.tensor(holds))
        slow = type(game)(
            traced._head,
            traced.utility,
            traced.target,
            present=traced.activation,
            absent=traced.absent_activation,
            streams=game._streams,
            affine=affine,
            budget=6,
        )
        before = traced.network.head_passes
        found, errors = slow.shapley("any")
        assert traced.network.head_passes - before == 6 * 24 + 2
        torch.testing.assert_close(quick, found, **EXACT)
        torch.testing.assert_close(quick_errors, errors, **EXACT)


@pytest.mark.parametrize("utility", ["logit", "softmax", "log-softmax", "rest"])
def test_the_estimate_of_affine_logits_meets_many_orders(utility):
    traced = trace(Pooled().double().eval(), values(2, 3, 5, 5), utility=utility, budget=2000)
    found, errors = traced.game.estimate("method")
    sampled, noise = traced.game.shapley("yardstick")
    square = (found - sampled).square().sum(dim=(1, 2))
    assert (square <= 4 * (noise.square() + errors.square()).sum(dim=(1, 2)) + 1e-20).all()
    none, everyone = traced.game.ends
    torch.testing.assert_close(found.sum(dim=(1, 2)), everyone - none)
    assert utility == "logit" or (errors.square().sum() < noise.square().sum() * 250)  # 8 pairs, not 1000


def test_other_utilities_and_other_heads_are_sampled():
    """A surrogate is known of camkit's utilities and of affine logits alone, image by image."""
    pooled = Pooled().double().eval()
    own = trace(pooled, values(2, 3, 5, 5), utility=lambda y, c: y[:, 0] ** 3, budget=6)
    mixing = trace(Polynomial(25, 2), values(2, 1, 5, 5), utility="rest", budget=6)
    for traced in (own, mixing):
        assert traced.game.estimate("any")[0] is traced.game.shapley("any")[0]
    traced = trace(pooled, values(2, 3, 5, 5), utility="rest", budget=6)
    quick, sampled = traced.game.estimate("any")[0], traced.game.shapley("any")[0]
    traced.game._affine = replace(traced.game._affine, holds=torch.tensor([True, False]))
    mixed = traced.game.estimate("any")[0]
    assert torch.equal(mixed[0], quick[0]) and torch.equal(mixed[1], sampled[1])
    assert not torch.equal(quick, sampled)


def test_a_head_that_mixes_positions_is_not_affine():
    assert not trace(Polynomial(25, 2), values(2, 1, 5, 5)).game.is_affine.any()
    assert trace(Polynomial(25, 1), values(2, 1, 5, 5)).game.is_affine.all()


class SelfDual(nn.Module):
    """Logits +-tanh(3 (w.x - w.1 / 2)): a coalition and the one it leaves out sum to the ends, w.1 = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.Identity()
        weights = torch.arange(1.0, 10, dtype=torch.float64)
        self.register_buffer("weights", weights / weights.sum())

    def forward(self, images):
        y = torch.tanh(3 * (self.activation(images).flatten(1) @ self.weights - 0.5))
        return torch.stack([y, -y], dim=1)


def test_a_self_dual_game_is_not_affine():
    traced = trace(SelfDual(), torch.ones(1, 1, 3, 3, dtype=torch.float64))
    assert not traced.game.is_affine.any()
    weights = traced.network.model.weights
    worth = {
        some: math.tanh(3 * (sum(float(weights[i]) for i in some) - 0.5))
        for size in range(10)
        for some in itertools.combinations(range(9), size)
    }
    exact = [
        sum(
            (worth[tuple(sorted((*some, i)))] - without) / (9 * math.comb(8, len(some)))
            for some, without in worth.items()
            if i not in some
        )
        for i in range(9)
    ]
    found = traced.game.shapley("any")[0].flatten()
    torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize(("share", "affine"), [(1e-7, True), (1e-2, False)])
def test_how_far_a_head_may_be_from_affine(share, affine):
    model = Polynomial(25, 2)
    model.quadratic *= share
    assert trace(model, values(1, 1, 5, 5)).game.is_affine.tolist() == [affine]


def test_sixteen_players_are_enumerated():
    """Under a cubic utility of affine logits, so that the 65,536 coalitions are no passes."""

    def cube(logits, target):
        return logits.gather(1, target[:, None])[:, 0] ** 3

    traced = trace(Polynomial(16, 1), values(1, 1, 4, 4), utility=cube)
    found, errors = traced.game.shapley("any")
    assert traced.game.is_affine.all() and not errors.any()
    added = traced.network.model.linear[traced.target] * traced.activation.flatten(1)
    third = 6 * torch.einsum("bi,bj,bk->bijk", added, added, added)
    exact = cubic_shapley(third, integral(traced))
    torch.testing.assert_close(found, exact, **EXACT)
    assert (integral(traced) - exact).abs().max() > 0.1
    assert torch.equal(traced.game.estimate("any")[0], found)


@pytest.mark.parametrize("absent", ["zero", "mean"])
def test_aumann_is_the_mean_gradient_at_steps_back_completed(absent):
    """From gradients of the whole network: nodes 0.2, 0.6 and 1 with weights 0.4, 0.4 and 0.2."""
    traced = trace(Polynomial(18, 3), values(2, 2, 3, 3), absent=absent)
    activation, none = traced.activation, traced.absent_activation

    def utility(leaf):
        return traced.utility(traced.network.model(leaf), traced.target)

    gradient = torch.zeros_like(activation)
    for t, weight in ((0.2, 0.4), (0.6, 0.4), (1, 0.2)):
        leaf = (none + t * (activation - none)).requires_grad_()
        gradient += weight * torch.autograd.grad(utility(leaf).sum(), leaf)[0]
    products = gradient * (activation - none)
    m = products.sum(dim=1)
    left = utility(activation) - utility(none) - m.sum(dim=(1, 2))
    share = m.abs() / m.abs().sum(dim=(1, 2), keepdim=True)
    expected = {
        "aumann-2": m + left[:, None, None] * share,
        "aumann-2-e": products.clamp(min=0).sum(dim=1),
        "aumann-2-gap": (gradient.mean(dim=(2, 3), keepdim=True) * (activation - none)).sum(dim=1),
    }
    assert left.abs().min() > 0.01
    for name, maps in expected.items():
        torch.testing.assert_close(METHODS[name].function(traced), maps, **EXACT)


def test_completion_by_hand():
    maps = torch.tensor([[[3.0, -1.0]], [[0.0, 0.0]], [[2.0, -2.0]]])
    expected = torch.tensor([[[6.0, 0.0]], [[0.0, 0.0]], [[1.0, -3.0]]])
    assert torch.equal(completed(maps, torch.tensor([6.0, 5.0, -2.0])), expected)


@pytest.mark.parametrize("utility", ["rest", "softmax"])
def test_aumann_sums_to_the_gain(utility):
    traced = trace(Polynomial(18, 3), values(2, 2, 3, 3), utility=utility)
    none, everyone = traced.game.ends
    for nodes in (1, 3):
        found = METHODS[f"aumann-{nodes}"].function(traced)
        torch.testing.assert_close(found.sum(dim=(1, 2)), everyone - none)


def test_what_aumann_costs():
    """N + 1 head passes: N gradients on the path and u(A0); the gradient at A is every method's."""
    for name, heads in (("aumann-1", 2), ("aumann-3", 4), ("aumann-3-gap", 3), ("aumann-3-e", 3)):
        traced = trace(Polynomial(18, 3), values(2, 2, 3, 3))
        METHODS[name].function(traced)
        assert (traced.network.passes, traced.network.head_passes) == (1, heads)


def test_names_of_aumann():
    assert METHODS["aumann-64"].name == "aumann-64"
    for wrong in ("aumann-0", "aumann-65", "aumann-65-gap"):
        with pytest.raises(UsageError, match="N, the gradients on the path, is from 1 to 64"):
            METHODS[wrong]
    assert not METHODS.knows("aumann-02")  # one map, one name


def test_what_a_game_of_49_players_costs():
    """Where logits are not affine: 6 passes tell so, budget (P - 1) + 2 sample, non-additivity takes 10 P."""
    traced = trace(Polynomial(49, 2), values(1, 1, 7, 7), budget=8)
    traced.game.shapley("any")
    assert (traced.network.passes, traced.network.head_passes) == (1, 6 + 8 * 48 + 2)
    assert traced.game.nonadditivity.isfinite().all()
    assert traced.network.head_passes == 392 + 490
    traced.game.estimate("method")
    assert traced.network.head_passes == 392 + 490 + 8 * 48


@pytest.mark.parametrize(("build", "heads"), [(lambda: Polynomial(49, 1), 6 + 1 + 49), (Pooled, 6 + 1)])
def test_an_affine_game_costs_a_pass_of_rows_or_one_a_player(build, heads):
    """The latter after rows failed. There is no pass up to the layer, and all later questions are free."""
    model = build().double().eval()
    traced = trace(model, values(2, 3 if isinstance(model, Pooled) else 1, 7, 7), budget=8)
    traced.game.estimate("method")
    assert (traced.network.passes, traced.network.head_passes) == (1, heads)
    traced.game.shapley("any")
    assert traced.game.nonadditivity.isfinite().all() and traced.game.is_affine.all()
    assert (traced.network.passes, traced.network.head_passes) == (1, heads)


def test_a_linear_head_costs_nothing():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.activation, self.classify = nn.Conv2d(3, 6, 1), nn.Linear(6, 5)

        def forward(self, images):
            return self.classify(self.activation(images).mean(dim=(2, 3)))

    traced = trace(Linear().double().eval(), values(2, 3, 7, 7), utility="rest")
    traced.game.estimate("method")
    assert (traced.network.passes, traced.network.head_passes) == (1, 0)
    torch.testing.assert_close(traced.game.ends[1], traced.utility(traced.logits, traced.target))


def test_nonadditivity():
    additive = trace(Polynomial(25, 1), values(2, 1, 5, 5)).game.nonadditivity
    assert additive.abs().max() < 1e-10

    # u = z1 z2: over coalitions with p(present) uniform, R^2 of the additive fit by direct integration.
    class Product(Polynomial):
        def forward(self, images):
            x = self.activation(images).flatten(1)
            return torch.stack([x[:, 0] * x[:, 1], x[:, 0]], dim=1)

    # Images alike are so many draws of one game.
    traced = trace(Product(25, 1), torch.ones(200, 1, 5, 5, dtype=torch.float64))
    traced.target = torch.zeros_like(traced.target)
    found = traced.game.nonadditivity.mean()
    # E z1 = 1/2, E z1 z2 = 1/3: cov(u, z) = 1/6, var z = 1/4, cov(z1, z2) = 1/12.
    covariance = torch.full((25, 25), 1 / 12, dtype=torch.float64).fill_diagonal_(1 / 4)
    with_u = torch.full((25,), 1 / 4 - 1 / 6, dtype=torch.float64)
    with_u[:2] = 1 / 3 - 1 / 6
    expected = 1 - with_u @ torch.linalg.solve(covariance, with_u) / (1 / 3 - 1 / 9)
    # Without the correction for the fitted coefficients it would be a tenth less.
    assert float(found) == pytest.approx(float(expected), rel=0.03)


def test_absent_activations():
    activation = values(2, 3, 4, 5)
    assert not absent_activation(activation, "zero").any()
    mean = absent_activation(activation, "mean")
    torch.testing.assert_close(mean[1, 2, 3, 4], activation[1, 2].mean())
    blurred = absent_activation(activation, "blur")
    rows = torch.exp(-((torch.arange(4.0).double() - 1) ** 2) / 2)
    columns = torch.exp(-(((torch.arange(5.0).double() - 2) / 1.25) ** 2) / 2)
    weights = rows[:, None] * columns
    torch.testing.assert_close(blurred[0, 1, 1, 2], (weights * activation[0, 1]).sum() / weights.sum())
    constant = torch.full((1, 1, 4, 4), 3.0)
    torch.testing.assert_close(absent_activation(constant, "blur"), constant)


@pytest.mark.peers
def test_aumann_is_captums_integrated_gradients_of_the_layer():
    """The whole network, from a blank image to the images: A0 is the blank image's activation."""
    captum = pytest.importorskip("captum.attr")
    model, images = Pooled().double().eval(), values(2, 3, 5, 5)
    model.after[1] = nn.GELU()  # no kink: the error falls with the square of the step
    traced = trace(model, images, utility="rest")
    blank = torch.zeros_like(images)
    traced.absent_activation = model.activation(blank).detach()
    assert traced.absent_activation.abs().min() > 1e-3
    theirs = captum.LayerIntegratedGradients(
        lambda x, target: traced.utility(model(x), target), model.activation
    ).attribute(
        images,
        baselines=blank,
        additional_forward_args=(traced.target,),
        n_steps=400,
        method="riemann_middle",
    )
    exact = theirs.sum(dim=1)
    errors = [
        float((METHODS[f"aumann-{n}"].function(traced) - exact).norm() / exact.norm()) for n in (1, 8, 64)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2], errors
    assert errors[2] < 1e-4


@pytest.mark.peers
def test_shapiq_gives_the_same_values(monkeypatch):
    shapiq = pytest.importorskip("shapiq")
    traced = trace(Polynomial(9, 3), values(1, 1, 3, 3), utility="rest", budget=400)
    worth = utilities_of_coalitions(traced)

    def game(coalitions):
        return np.array([float(worth(one.reshape(3, 3))) for one in coalitions])

    theirs = shapiq.ExactComputer(n_players=9, game=game)("SV").get_n_order_values(1)
    exact = traced.game.shapley("exact")[0]
    np.testing.assert_allclose(exact.flatten(), theirs, atol=1e-10)
    monkeypatch.setattr("camkit.network.game.EXACT_PLAYERS", 8)
    sampled, errors = (one.flatten().numpy() for one in traced.game.shapley("sampled"))
    assert (np.abs(sampled - theirs) < 5 * errors).all()
    assert (errors < 0.2 * np.abs(theirs).max()).all()
