"""The traced pass: what it keeps, what it leaves alone, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny import CPU, Headed, TinyNet, last_feature_layer, maps, noise, seeded, trace
from torch import Tensor, nn

from camkit.errors import CamkitError, UsageError
from camkit.network.layers import find_module
from camkit.network.passes import Network


def small(*extra: nn.Module) -> Headed:
    """A convolution, then `extra`, then a mean over positions: three classes, all parts smooth."""

    def build() -> Headed:
        features = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), *extra)
        return Headed(features, lambda a: a.flatten(2).mean(dim=2).tanh() * 4)

    return seeded(build)


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


class Failing(nn.Module):
    def forward(self, _: Tensor) -> Tensor:
        raise ArithmeticError("no")


class TestHooks:
    def test_gone_after_a_pass(self) -> None:
        network = Network(small(nn.ReLU()), CPU)
        before = network.logits(noise(1, 3, 8, 8))
        network.trace(noise(1, 3, 8, 8), ["features.0"])
        assert hooks(network.model) == 0
        assert torch.equal(network.logits(noise(1, 3, 8, 8)), before)

    def test_gone_after_an_exception_in_the_network(self) -> None:
        model = small(Failing())
        with pytest.raises(ArithmeticError):
            Network(model, CPU).trace(noise(1, 3, 8, 8), ["features.0"])
        assert hooks(model) == 0

    def test_gone_after_a_layer_that_does_not_exist(self) -> None:
        model = small()
        with pytest.raises(UsageError):
            Network(model, CPU).trace(noise(1, 3, 8, 8), ["features.0", "nowhere"])
        assert hooks(model) == 0

    def test_gone_after_the_search_for_the_last_feature_layer(self) -> None:
        model = small(nn.ReLU())
        last_feature_layer(model, noise(1, 3, 8, 8))
        assert hooks(model) == 0


class TestGraph:
    def test_it_begins_at_the_layer(self) -> None:
        """The backbone before the layer is never differentiated, and no parameter is."""
        model = seeded(TinyNet)
        needed: list[bool] = []
        for module in model.features[:3]:
            module.register_forward_hook(lambda _, __, output: needed.append(output.requires_grad))
        passed = Network(model, CPU).trace(noise(1, 3, 64, 64), ["features.3"])
        leaf = passed.leaves["features.3"]
        assert needed == [False] * 3
        assert leaf.is_leaf
        assert leaf.grad_fn is None
        assert passed.logits.requires_grad
        assert not any(parameter.requires_grad for parameter in model.parameters())

    def test_logits_are_those_of_a_plain_pass(self) -> None:
        """But for the last bits: from the leaf on the memory order is another one, and so is that of sums."""
        network = Network(seeded(TinyNet), CPU)
        images = noise(3, 3, 96, 64)
        plain = network.logits(images)
        traced = network.trace(images, ["features.3"]).logits.detach()
        torch.testing.assert_close(traced, plain, rtol=0, atol=1e-6)
        picked = plain.softmax(dim=1)[torch.arange(3), torch.tensor([5, 0, 999])]
        torch.testing.assert_close(network.score(images, torch.tensor([5, 0, 999])), picked, rtol=0, atol=0)

    def test_gradient_and_hvp_by_hand(self) -> None:
        """u = sum of a^3 of one channel: G = 3 a^2, HA = 6 a a."""
        model = Headed(
            nn.Identity(), lambda a: torch.stack([a[:, 0].pow(3).sum((1, 2)), a[:, 1].sum((1, 2))], 1)
        )
        images = noise(2, 3, 2, 2)
        traced = trace(model, images, utility="logit", target=[0, 1])
        assert torch.equal(traced.activation, images)
        zero = torch.zeros(2, 2)
        gradient, hvp = 3 * images[0, 0] ** 2, 6 * images[0, 0] ** 2
        torch.testing.assert_close(traced.gradient[0], torch.stack([gradient, zero, zero]))
        torch.testing.assert_close(traced.hvp[0], torch.stack([hvp, zero, zero]))
        torch.testing.assert_close(traced.gradient[1], torch.stack([zero, zero + 1, zero]))
        assert (traced.hvp[1] == 0).all()

    @pytest.mark.parametrize("neighbour", [noise(3, 64, 64, seed=9) * 100, torch.full((3, 64, 64), math.nan)])
    @pytest.mark.parametrize("utility", ["rest", "logit", "softmax", "log-softmax"])
    def test_no_image_reaches_anothers_derivatives(self, utility: str, neighbour: Tensor) -> None:
        model = seeded(TinyNet)
        images = noise(2, 3, 64, 64)
        first = trace(model, images, "features.3", utility, target=[4, 5])
        images = torch.stack([images[0], neighbour])
        second = trace(model, images, "features.3", utility, target=[4, 7])
        assert first.gradient[0].abs().max() > 0
        assert (first.hvp[0].abs().max() > 0) == (utility != "logit")  # ReLU and a linear head bend nothing
        assert torch.equal(first.activation[0], second.activation[0])
        assert torch.equal(first.gradient[0], second.gradient[0])
        assert torch.equal(first.hvp[0], second.hvp[0])

    def test_several_layers_in_one_pass_are_each_alone(self) -> None:
        model = seeded(TinyNet)
        images, layers = noise(2, 3, 96, 96), ["features.5", "features.2", "features.3"]
        network = Network(model, CPU)
        TinyNet.passed.clear()
        together = network.trace(images, layers)
        assert TinyNet.passed == [2]
        for layer in layers:
            alone = network.trace(images, [layer])
            assert torch.equal(together.leaves[layer], alone.leaves[layer])
            gradients = [
                torch.autograd.grad(p.logits[:, 3].sum(), p.leaves[layer], retain_graph=True)[0]
                for p in (together, alone)
            ]
            assert gradients[0].abs().max() > 0
            torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)


class Residual(nn.Module):
    """What Swin's last block does with norm1: its output goes on in a branch, the rest goes round it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(x).tanh()


class TestLayouts:
    def test_vggs_in_place_relu_leaves_the_activation_as_it_was(self) -> None:
        images = noise(2, 3, 8, 8)
        plain, in_place = small(nn.ReLU()), small(nn.ReLU(inplace=True))
        expected = trace(plain, images, "features.0")
        found = trace(in_place, images, "features.0")
        assert expected.activation.min() < 0
        assert torch.equal(found.activation, expected.activation)
        assert torch.equal(found.gradient, expected.gradient)
        assert torch.equal(found.hvp, expected.hvp)
        torch.testing.assert_close(found.activation, plain.features[0](images))

    def test_channels_last_output_is_permuted(self) -> None:
        class Last(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.permute(0, 2, 3, 1)  # (B, h, w, C), as Swin's layers

        def head(x: Tensor) -> Tensor:
            return x.mean(dim=(1, 2)).tanh()

        model = Headed(nn.Sequential(Last(), Residual()), head)
        images = noise(2, 5, 4, 4)
        traced = trace(model, images, "features.0", target=[0, 1])
        assert torch.equal(traced.activation, images)
        norm = trace(model, images, "features.1.norm", target=[0, 1])
        expected = nn.functional.layer_norm(images.permute(0, 2, 3, 1), (5,)).permute(0, 3, 1, 2)
        torch.testing.assert_close(norm.activation, expected)
        assert traced.gradient.shape == norm.gradient.shape == (2, 5, 4, 4)

    @pytest.mark.parametrize("prefix", [0, 1, 5])
    def test_tokens_become_a_map_and_prefix_tokens_stay(self, prefix: int) -> None:
        class Tokens(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                tokens = x.flatten(2).transpose(1, 2)  # (B, hw, C)
                return torch.cat([torch.full_like(tokens[:, :prefix], 7), tokens], dim=1)

        def head(tokens: Tensor) -> Tensor:
            assert (tokens[:, :prefix] == 7).all()
            place = torch.arange(tokens.shape[1] - prefix) + 1.0
            return torch.einsum("bnc,n->bc", tokens[:, prefix:], place) + tokens[:, :prefix].sum(1)

        images = noise(1, 4, 4, 4)
        model = Headed(Tokens(), head)
        model.num_prefix_tokens = prefix  # as timm's models say it
        traced = trace(model, images, utility="logit", target=[2])
        assert torch.equal(traced.activation, images)
        assert torch.equal(traced.gradient[0, 2], torch.arange(16).view(4, 4) + 1.0)
        assert (traced.gradient[0, [0, 1, 3]] == 0).all()

    def test_in_half_precision_the_derivatives_stay_float32(self) -> None:
        network = Network(seeded(TinyNet), CPU, torch.bfloat16)
        passed = network.trace(noise(1, 3, 64, 64), ["features.5"])
        assert passed.leaves["features.5"].dtype == passed.logits.dtype == torch.float32
        full = Network(seeded(TinyNet), CPU).trace(noise(1, 3, 64, 64), ["features.5"])
        difference = (passed.logits - full.logits).abs().max()
        assert 0 < difference < 0.05 * full.logits.abs().max()


class TestRefusals:
    def refused(self, model: nn.Module, layer: str, error: type[Exception] = CamkitError) -> str:
        with pytest.raises(error) as caught:
            Network(model, CPU).trace(noise(1, 3, 64, 64), [layer])
        return str(caught.value)

    def test_a_layer_that_runs_twice(self) -> None:
        twice = nn.Conv2d(3, 3, 1)
        assert "'features.1' runs more than once" in self.refused(
            small(twice, nn.ReLU(), twice), "features.1"
        )

    def test_a_layer_that_does_not_run(self) -> None:
        model = small()
        model.spare = nn.Conv2d(3, 3, 1)
        assert "'spare' does not run" in self.refused(model, "spare")

    def test_a_layer_without_positions(self) -> None:
        model = seeded(TinyNet)
        message = self.refused(model, "fc", UsageError)
        assert "'fc' (Linear) gives (1, 1000)" in message
        assert "(B, C, h, w)" in message
        assert "gives (1, 16, 1, 1)" in self.refused(model, "pool", UsageError)

    @pytest.mark.parametrize(
        ("path", "nearest", "listed"),
        [
            ("feature", "'features'", "fc, features, pool"),
            ("features[7]", "", "0, 1, 2, 3, 4, 5"),
            ("features[-7]", "", "0, 1, 2, 3, 4, 5"),
            ("features.3.weight", "", "unknown layer 'weight'"),
        ],
    )
    def test_a_layer_that_does_not_exist(self, path: str, nearest: str, listed: str) -> None:
        message = self.refused(seeded(TinyNet), path, UsageError)
        assert nearest in message
        assert listed in message

    def test_a_layer_that_the_logits_do_not_depend_on(self) -> None:
        model = small(nn.ReLU())
        for head in (
            lambda a: torch.ones(len(a), 3),
            lambda a: torch.ones(len(a), 3) + torch.ones(3, requires_grad=True),
        ):
            model.head = head
            with pytest.raises(CamkitError, match="logits do not depend on the layer"):
                _ = trace(model, noise(1, 3, 8, 8), target=[0]).gradient

    @pytest.mark.parametrize("path", ["features.3", "features[3]", "features[-3]"])
    def test_paths_as_they_can_be_written(self, path: str) -> None:
        model = seeded(TinyNet)
        assert find_module(model, path) is model.features[3]


def test_the_last_feature_layer_is_the_one_before_pooling() -> None:
    model = seeded(TinyNet)
    assert last_feature_layer(model, noise(1, 3, 96, 96)) == "features"
    assert last_feature_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), noise(1, 3, 2, 2)) is None


def test_a_pass_of_one_image_is_that_of_many() -> None:
    model = seeded(TinyNet)
    images = noise(5, 3, 96, 96)
    together = trace(model, images, "features.3", target=[1, 2, 3, 4, 5])
    compared: tuple[Callable, ...] = (lambda t: t.activation, lambda t: t.gradient, lambda t: t.hvp)
    for place in range(5):
        alone = trace(model, images[place : place + 1], "features.3", target=[place + 1])
        for part in compared:
            torch.testing.assert_close(part(alone)[0], part(together)[place], rtol=1e-4, atol=1e-6)
        for method in ("gradcam", "shapleycam", "shapleycam-e"):
            torch.testing.assert_close(
                maps(method, alone)[0], maps(method, together)[place], rtol=1e-4, atol=1e-5
            )
