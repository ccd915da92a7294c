"""DeepLIFT's rescale rule through the rest of a network, against captum's."""

from __future__ import annotations

import pytest
import torch
from networks import Net
from tiny import CPU, Headed, noise, seeded, trace
from torch import Tensor, nn

from camkit.errors import CamkitError
from camkit.network.passes import Network
from camkit.network.rescale import elementwise_modules


class Deep(nn.Module):
    """Several kinds of elementwise modules behind a layer, one of them in place, each used once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.ReLU(inplace=True)
        self.mix = nn.Conv2d(4, 5, 3, padding=1)
        self.second = nn.Sigmoid()
        self.hidden = nn.Linear(5, 6)
        self.third = nn.ELU()
        self.drop = nn.Dropout()
        self.last = nn.Linear(6, 3)

    def forward(self, activation: Tensor) -> Tensor:
        maps = self.second(self.mix(self.first(self.norm(activation))))
        return self.last(self.drop(self.third(self.hidden(maps.mean(dim=(2, 3))))))


def deep() -> Headed:
    model = Headed(nn.Conv2d(3, 4, 2, stride=2), Deep())
    for parameter in model.parameters():
        parameter.data *= 3
    model.head.norm.running_mean[:] = torch.tensor([0.3, -0.2, 0.1, 0.0])
    return model


@pytest.mark.peers
def test_max_pooling_behind_a_relu_is_captums() -> None:
    captum = pytest.importorskip("captum.attr")

    def build() -> Headed:
        head = nn.Sequential(
            nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1)
        )
        return Headed(nn.Conv2d(3, 4, 1), nn.Sequential(*head, nn.Flatten(), nn.Linear(5, 3)))

    model = seeded(build)
    traced = trace(model, 3 * noise(2, 3, 6, 8), target=[2, 0])
    found = traced.contributions()
    activation = traced.activation.clone().requires_grad_()
    with pytest.warns(UserWarning, match="Setting forward, backward hooks"):
        peer = captum.DeepLift(seeded(build).head)
        expected = peer.attribute(activation, torch.zeros_like(activation), traced.target)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-5)
    assert found.abs().max() > 0.01


@pytest.mark.peers
def test_contributions_are_captums() -> None:
    captum = pytest.importorskip("captum.attr")
    model = seeded(deep)
    traced = trace(model, noise(2, 3, 6, 8), target=[2, 0])
    passes, head_passes = traced.network.passes, traced.network.head_passes
    found = traced.contributions()
    assert (traced.network.passes - passes, traced.network.head_passes - head_passes) == (0, 2)
    head = seeded(deep).head
    head.first.inplace = False  # captum's hooks need their input as it was
    activation = traced.activation.clone().requires_grad_()
    with pytest.warns(UserWarning, match="Setting forward, backward hooks"):
        expected = captum.DeepLift(head).attribute(activation, torch.zeros_like(activation), traced.target)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-5)
    assert found.abs().max() > 0.1
    difference = model.head(traced.activation) - model.head(torch.zeros_like(traced.activation))
    torch.testing.assert_close(
        found.sum(dim=(1, 2, 3)), difference.gather(1, traced.target[:, None])[:, 0], rtol=1e-4, atol=1e-5
    )
    gradient = traced.gradient_of(lambda logits: logits.gather(1, traced.target[:, None])[:, 0])
    assert (gradient * traced.activation - found).abs().max() > 0.01  # else the rule would do nothing


def test_one_module_before_and_behind_the_layer_and_twice_behind_it() -> None:
    """The block's ReLU runs on both sides; the contributions are complete all the same."""
    traced = trace(seeded(Net), 4 * noise(2, 3, 6, 6), "block.second", target=[1, 3])
    zero = torch.zeros_like(traced.activation)
    difference = traced._head(traced.activation) - traced._head(zero)
    torch.testing.assert_close(
        traced.contributions().sum(dim=(1, 2, 3)), difference.gather(1, traced.target[:, None])[:, 0]
    )
    for module in traced.network.model.modules():
        assert "forward" not in vars(module)


def biased(module: nn.Conv2d) -> nn.Conv2d:
    module.weight.data = noise(*module.weight.shape)
    module.bias.data = 3 * noise(*module.bias.shape)
    return module


REFUSED = {
    "LayerNorm": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 3)),
    "Softmax": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(dim=1), nn.Linear(4, 3)),
    "MaxPool2d": nn.Sequential(  # padding makes its reference another one at the border
        biased(nn.Conv2d(4, 4, 3, padding=1)),
        biased(nn.Conv2d(4, 4, 3, padding=1)),
        nn.MaxPool2d(3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ),
    "a function that the model itself calls": lambda a: torch.sigmoid(a).mean(dim=(2, 3)),
}


@pytest.mark.parametrize("culprit", REFUSED)
def test_what_has_no_rule_is_refused_by_its_name(culprit: str) -> None:
    model = Headed(seeded(lambda: nn.Conv2d(3, 4, 2, stride=2)), REFUSED[culprit]).eval()
    network = Network(model, CPU)
    network.logits(noise(1, 3, 12, 12))
    said = elementwise_modules(network, "features")
    assert isinstance(said, str)
    assert said.endswith(f"no elementwise module: {culprit}")
    with pytest.raises(CamkitError, match="behind the layer something is not linear"):
        trace(model, noise(2, 3, 12, 12)).contributions()
