"""Shapley values and Aumann maps against enumeration, closed forms, captum and shapiq."""

import itertools
import math

import numpy as np
import pytest
import torch
from polynomials import Polynomial, trace, values
from torch import nn

import camkit.methods  # noqa: F401  (fills the registry)
from camkit.entries import METHODS
from camkit.errors import UsageError
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


@pytest.mark.parametrize("absent", ["zero", "mean", "blur"])
@pytest.mark.parametrize("method", ["aumann-1", "aumann-2", "aumann-5"])
def test_one_node_is_exact_for_a_quadratic_utility(method, absent):
    traced = trace(Polynomial(8, 2), values(2, 2, 2, 2), absent=absent)
    torch.testing.assert_close(METHODS[method].function(traced), shapley_by_orders(traced), **EXACT)


def test_shapleycam_is_exact_for_a_quadratic_utility_and_hirescam_for_a_linear_one():
    quadratic = trace(Polynomial(8, 2), values(2, 2, 2, 2))
    exact = shapley_by_orders(quadratic)
    torch.testing.assert_close(METHODS["shapleycam-h"].function(quadratic), exact, **EXACT)
    assert (METHODS["hirescam"].function(quadratic) - exact).abs().max() > 0.1
    linear = trace(Polynomial(8, 1), values(2, 2, 2, 2))
    torch.testing.assert_close(METHODS["hirescam"].function(linear), shapley_by_orders(linear), **EXACT)


def test_cubic_identity():
    traced = trace(Polynomial(8, 3), values(2, 2, 2, 2))
    aumann = METHODS["aumann-2"].function(traced)  # exact integral: the gradient is quadratic in t
    exact = shapley_by_orders(traced)
    torch.testing.assert_close(cubic_shapley(third_derivatives(traced), aumann), exact, **EXACT)
    assert (aumann - exact).abs().max() > 0.1
    assert (METHODS["aumann-1"].function(traced) - aumann).abs().max() > 0.1


def test_sampling_is_exact_for_a_quadratic_utility_thanks_to_antithetic_pairs():
    traced = trace(Polynomial(50, 2), values(2, 2, 5, 5), budget=8)
    found, errors = traced.game.shapley("any")
    torch.testing.assert_close(found, METHODS["aumann-1"].function(traced), rtol=0, atol=1e-9)
    assert errors.max() < 1e-9


def test_sampling_meets_the_closed_form_of_a_cubic_utility_within_its_standard_errors():
    traced = trace(Polynomial(25, 3), values(1, 1, 5, 5), budget=200)
    found, errors = traced.game.shapley("any")
    exact = cubic_shapley(third_derivatives(traced), METHODS["aumann-2"].function(traced))
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
    assert game.is_affine
    quick, quick_errors = game.shapley("any")
    slow = type(game)(
        traced._head,
        traced.utility,
        traced.target,
        present=traced.activation,
        absent=traced.absent_activation,
        streams=game._streams,
        budget=6,
    )
    slow._affine = None
    found, errors = slow.shapley("any")
    torch.testing.assert_close(quick, found, **EXACT)
    torch.testing.assert_close(quick_errors, errors, **EXACT)


def test_a_head_that_mixes_positions_is_not_affine():
    assert not trace(Polynomial(25, 2), values(1, 1, 5, 5)).game.is_affine
    assert trace(Polynomial(25, 1), values(1, 1, 5, 5)).game.is_affine


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
    assert not traced.game.is_affine
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
    assert trace(model, values(1, 1, 5, 5)).game.is_affine == affine


def test_sixteen_players_are_enumerated():
    """Under a cubic utility of affine logits, so that the 65,536 coalitions are no passes."""

    def cube(logits, target):
        return logits.gather(1, target[:, None])[:, 0] ** 3

    traced = trace(Polynomial(16, 1), values(1, 1, 4, 4), utility=cube)
    found, errors = traced.game.shapley("any")
    assert traced.game.is_affine and not errors.any()
    added = traced.network.model.linear[traced.target] * traced.activation.flatten(1)
    third = 6 * torch.einsum("bi,bj,bk->bijk", added, added, added)
    exact = cubic_shapley(third, METHODS["aumann-2"].function(traced))
    torch.testing.assert_close(found, exact, **EXACT)
    assert (METHODS["aumann-2"].function(traced) - exact).abs().max() > 0.1


def test_variants_of_aumann_average_the_gradient_over_positions_or_rectify_before_the_sum():
    traced = trace(Polynomial(18, 3), values(2, 2, 3, 3))
    gradient = torch.zeros_like(traced.activation)
    for t in (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)):
        leaf = (t * traced.activation).requires_grad_()
        utility = traced.utility(traced.network.model(leaf), traced.target)
        gradient += torch.autograd.grad(utility.sum(), leaf)[0] / 2
    products = gradient * traced.activation
    expected = {
        "aumann-2": products.sum(dim=1),
        "aumann-2-e": products.clamp(min=0).sum(dim=1),
        "aumann-2-gap": (gradient.mean(dim=(2, 3), keepdim=True) * traced.activation).sum(dim=1),
    }
    for name, maps in expected.items():
        torch.testing.assert_close(METHODS[name].function(traced), maps, **EXACT)


def test_names_of_aumann():
    assert METHODS["aumann-64"].name == "aumann-64"
    for wrong in ("aumann-0", "aumann-65", "aumann-65-gap"):
        with pytest.raises(UsageError, match="N, the gradients on the path, is from 1 to 64"):
            METHODS[wrong]
    assert not METHODS.knows("aumann-02")  # one map, one name


def test_what_a_game_of_49_players_costs():
    """Where the logits are not affine: budget (P - 1) + 12 passes through the head, non-additivity 10 P."""
    traced = trace(Polynomial(49, 2), values(1, 1, 7, 7), budget=8)
    head, passes = traced._head, []
    traced._head = lambda activation: passes.append(1) or head(activation)
    traced.game.shapley("any")
    assert len(passes) == 8 * 48 + 12 == 396
    assert traced.game.nonadditivity.isfinite().all()
    assert len(passes) == 396 + 490


def test_an_affine_game_costs_a_pass_a_player_and_ten():
    traced = trace(Polynomial(49, 1), values(1, 1, 7, 7), budget=8)
    head, passes = traced._head, []
    traced._head = lambda activation: passes.append(1) or head(activation)
    traced.game.shapley("any")
    assert traced.game.nonadditivity.isfinite().all()
    assert len(passes) == 49 + 10


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
def test_aumann_is_captums_integrated_gradients_on_the_head():
    captum = pytest.importorskip("captum.attr")
    traced = trace(Polynomial(18, 3), values(2, 2, 3, 3), utility="rest")
    for nodes in (1, 2, 5):
        theirs = captum.IntegratedGradients(traced.head).attribute(
            traced.activation, baselines=0.0, n_steps=nodes, method="gausslegendre", internal_batch_size=2
        )
        ours = METHODS[f"aumann-{nodes}"].function(traced)
        # captum keeps the nodes' weights in float32
        torch.testing.assert_close(ours, theirs.sum(dim=1), rtol=1e-7, atol=0)


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
