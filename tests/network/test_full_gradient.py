"""The full gradient of a network: complete where the network is piecewise linear, and nothing left behind."""

from __future__ import annotations

import pytest
import timm
import torch
from tiny import CPU, noise, seeded
from torch import Tensor, nn

from camkit.network.biases import full_gradient
from camkit.network.passes import Network


class Piecewise(nn.Module):
    """Convolutions with and without bias, batch norms with statistics, ReLU in place, max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.other = nn.BatchNorm2d(8, affine=False)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(8, 5)
        self.last = nn.Linear(5, 4)
        for norm in (self.norm, self.other):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.norm(self.first(images)))
        maps = self.pool(self.relu(self.other(self.second(maps))))
        return self.last(self.relu(self.hidden(maps.mean(dim=(2, 3)))))


def test_it_sums_to_the_logit_with_the_biases_behind_the_pooling() -> None:
    model = seeded(Piecewise).double()
    images = noise(2, 3, 8, 6).double()
    target = torch.tensor([3, 1])
    network = Network(model, CPU)
    by_images, by_biases = full_gradient(network, images, lambda y: y.gather(1, target[:, None])[:, 0])
    assert network.passes == 1
    assert by_images.shape == (2, 3, 8, 6)
    assert [tuple(one.shape) for one in by_biases] == [(2, 6, 8, 6), (2, 6, 8, 6), (2, 8, 8, 6)]
    positions = by_images.sum(dim=(1, 2, 3)) + sum(one.sum(dim=(1, 2, 3)) for one in by_biases)
    with torch.no_grad():
        maps = model.pool(model.relu(model.other(model.second(model.relu(model.norm(model.first(images)))))))
        hidden = model.hidden(maps.mean(dim=(2, 3)))
        behind = model.last.bias[target] + (model.last.weight[target] * (hidden > 0) * model.hidden.bias).sum(
            1
        )
        logits = model(images).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(positions + behind, logits, rtol=1e-9, atol=1e-9)
    assert (positions - logits).abs().min() > 1e-3  # else the biases behind the pooling would not matter


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_biases_are_found_whatever_the_module(name: str) -> None:
    """timm's batch norms hold an activation function; a ViT has linear maps and layer norms of tokens."""
    model = seeded(lambda: timm.create_model(name, num_classes=5))
    with torch.no_grad():
        for module in model.modules():
            if (
                isinstance(module, nn.Linear | nn.LayerNorm | nn.BatchNorm2d | nn.Conv2d)
                and module.bias is not None
            ):
                module.bias.normal_()
    expected = sum(
        isinstance(module, nn.BatchNorm2d | nn.LayerNorm)
        or (isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None)
        for module in model.modules()
    )
    images = noise(1, 3, 224, 224)
    _, by_biases = full_gradient(Network(model, CPU), images, lambda y: y[:, 0])
    behind = 1 if "lite" in name else 2  # the classifier; a ViT's last norm sees the class token alone
    assert expected - behind <= len(by_biases) <= expected
