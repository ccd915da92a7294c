"""The rest of a network as a linear head: found where it is one, refused with the reason where it is not."""

from __future__ import annotations

import pytest
import torch
from networks import Net
from tiny import CPU, Headed, TinyNet, noise, seeded, trace
from torch import Tensor, nn

from camkit.network.head import LinearHead, classifier_weight, linear_head
from camkit.network.passes import Network


def network(model: nn.Module, *size: int) -> Network:
    found = Network(model, CPU)
    found.logits(noise(1, *size))
    return found


class Pooled(nn.Module):
    """Pooling, a batch norm, dropout and a linear map: affine, but not by its last layer's weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 7)

    def forward(self, activation: Tensor) -> Tensor:
        return self.linear(nn.functional.dropout(self.norm(activation.mean(dim=(2, 3))), training=False))


def test_weights_and_bias_are_those_of_the_layer_behind_the_pooling() -> None:
    model = seeded(TinyNet)
    found = linear_head(network(model, 3, 48, 80), "features.5")
    assert isinstance(found, LinearHead)
    torch.testing.assert_close(found.weight, model.fc.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.bias, model.fc.bias, rtol=1e-5, atol=1e-6)


def test_all_that_is_affine_is_one_map() -> None:
    model = Headed(nn.Conv2d(3, 4, 2, stride=2), seeded(Pooled))
    with torch.no_grad():
        model.head.norm.running_mean[:] = torch.tensor([0.5, -1.0, 2.0, 0.0])
        model.head.norm.running_var[:] = torch.tensor([4.0, 1.0, 0.25, 1.0])
    found = linear_head(network(model, 3, 4, 6), "features")
    assert isinstance(found, LinearHead)
    factor = torch.tensor([0.5, 1.0, 2.0, 1.0])
    torch.testing.assert_close(found.weight, model.head.linear.weight * factor, rtol=1e-4, atol=1e-5)
    activation = noise(3, 4, 2, 3, seed=5) * 10
    torch.testing.assert_close(found.logits(activation), model.head(activation), rtol=1e-4, atol=1e-4)


def test_by_position_is_the_game_of_single_positions() -> None:
    found = LinearHead(torch.tensor([[2.0, 0.0], [0.0, -4.0]]), torch.tensor([1.0, 5.0]))
    present = torch.tensor([[[[1.0, 3.0]], [[2.0, -1.0]]]])
    none, added = found.by_position(present, torch.zeros_like(present))
    assert none.tolist() == [[[1, 5]]]
    assert added.tolist() == [[[1, -4], [3, 2]]]  # W A_p / 2


REFUSED = {
    "not linear (an activation": lambda a: a.relu().mean(dim=(2, 3)),
    "weights of its own": lambda a: (a * torch.linspace(0, 1, a.shape[2])[:, None]).mean(dim=(2, 3)),
    "not linear": lambda a: 30 * torch.tanh(a.mean(dim=(2, 3)) / 30),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_something_else_is_refused_with_the_reason(reason: str) -> None:
    model = Headed(seeded(lambda: nn.Conv2d(3, 4, 2, stride=2)), REFUSED[reason])
    said = linear_head(network(model, 3, 8, 6), "features")
    assert isinstance(said, str)
    assert reason in said


def test_what_passes_the_layer_by_is_refused() -> None:
    model = network(seeded(Net), 3, 8, 6)
    assert isinstance(linear_head(model, "act"), LinearHead)
    for layer in ("block.second", "pair.left"):
        assert "a skip connection" in str(linear_head(model, layer))


def test_a_class_token_is_refused() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 4, 2, stride=2)
            self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
            self.block = nn.Linear(4, 4)

        def forward(self, images: Tensor) -> Tensor:
            positions = self.embed(images).flatten(2).mT
            first = self.cls_token + positions.mean(dim=1, keepdim=True)
            return self.block(torch.cat([first, positions], dim=1)).mean(dim=1)

    assert "a class token" in str(linear_head(network(seeded(Tokens), 3, 8, 8), "block"))


def test_a_layer_that_the_logits_do_not_depend_on_is_refused_with_the_reason() -> None:
    model = Headed(nn.Conv2d(3, 4, 2), lambda a: torch.ones(len(a), 3))
    assert "do not depend on the output" in str(linear_head(network(model, 3, 4, 4), "features"))


def test_it_is_found_once_and_its_passes_are_no_images() -> None:
    model = network(seeded(TinyNet), 3, 64, 64)
    passes, runs = model.passes, len(TinyNet.passed)
    first = linear_head(model, "features.5")
    assert len(TinyNet.passed) > runs
    assert (model.passes, model.head_passes) == (passes, 0)
    runs = len(TinyNet.passed)
    assert linear_head(model, "features.5") is first
    assert len(TinyNet.passed) == runs


def test_under_a_change_behind_the_layer_it_is_not_used() -> None:
    """The changed network gives its positions other weights."""
    traced = trace(seeded(TinyNet), noise(2, 3, 64, 64), "features.5")
    assert traced.linear_head is not None
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    with traced.network.changed("features.5", lambda maps: maps * mask):
        assert traced.linear_head is None
        values, _ = traced.game.shapley("test")
    assert values[:, :2].abs().min() > 0
    assert (values[:, 2:].abs() < 1e-5).all()
    assert traced.linear_head is not None


@pytest.mark.parametrize("absent", ["zero", "mean"])
def test_the_game_of_a_linear_head_is_the_one_that_passes_find(
    monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    images = noise(2, 3, 48, 96)
    closed = trace(seeded(TinyNet), images, "features.5", "rest", absent=absent, budget=64)
    slow = trace(seeded(TinyNet), images, "features.5", "rest", absent=absent, budget=64)
    values = closed.game.shapley("test")[0]
    assert (closed.network.passes, closed.network.head_passes) == (1, 0)
    monkeypatch.setattr("camkit.network.trace.linear_head", lambda *_: "no")
    expected = slow.game.shapley("test")[0]
    assert slow.network.head_passes == 6 + 1  # probes, and all positions as images of one
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-4)


def test_the_classifier_is_what_gives_the_logits() -> None:
    model = seeded(Net)
    assert torch.equal(classifier_weight(network(model, 3, 8, 8)), model.classify.weight)
    convolution = nn.Conv2d(3, 5, 1)
    last = nn.Sequential(nn.AvgPool2d(4), convolution, nn.Flatten())
    assert torch.equal(classifier_weight(network(last, 3, 4, 4)), convolution.weight[:, :, 0, 0])
    scaled = Headed(nn.Conv2d(3, 4, 2), lambda a: 2 * a.mean(dim=(2, 3)))
    assert "no linear layer gives the logits" in classifier_weight(network(scaled, 3, 4, 4))
