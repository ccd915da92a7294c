"""Scoring passes with batch norm folded into convolutions: the same logits, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from tiny import CPU, TINY, TinyNet, noise, run, segments
from torch import Tensor, nn

from camkit.config import RunConfig
from camkit.data.items import sample_items
from camkit.network.folding import fold, folded
from camkit.network.passes import Network
from camkit.network.prepare import prepare


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms that do something, each channel its own."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1, 1), (module.running_var, 0.5, 2),
                (module.weight.data, 0.5, 2), (module.bias.data, -1, 1),
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(one, nn.BatchNorm2d) for one in model.modules())


class Odd(nn.Module):
    """A convolution and a batch norm, and something between or beside them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        made = self.conv(images)
        if self.kind == "changed in place":
            made.relu_()
        maps = self.norm(made)
        if self.kind == "taken twice":
            maps = maps + made
        elif self.kind == "normalised twice":
            maps = self.norm(maps)
        elif self.kind == "looked at":
            maps = maps * self.norm.weight[:, None, None]
        return self.fc(maps.mean(dim=(2, 3)))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(with_statistics(TinyNet(7)), CPU)


def test_the_same_scores_without_a_batch_norm(network: Network) -> None:
    images, target = noise(3, 3, 64, 64), torch.tensor([0, 3, 6])
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    logits, scores = network.logits(images), network.score(images, target)
    passes = network.passes
    assert fold(network, noise(2, 3, 64, 64)) and network.passes == passes
    assert isinstance(network.scored, TinyNet) and network.scored is not network.model
    assert norms(network.scored) == 0 and norms(network.model) == 2
    torch.testing.assert_close(network.logits(images), logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(network.score(images, target), scores, atol=1e-6, rtol=1e-4)
    assert network.passes == passes + 2
    after = network.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_is_not_folded_is_shared(network: Network) -> None:
    model = folded(network.model, noise(1, 3, 64, 64))
    assert isinstance(model, TinyNet) and model.fc.weight is network.model.get_parameter("fc.weight")
    own = {id(one) for one in network.model.parameters()}
    assert [name for name, one in model.named_parameters() if id(one) not in own] == [
        "features.0.weight", "features.0.bias", "features.3.weight", "features.3.bias"
    ]  # fmt: skip


def test_an_activation_in_a_batch_norm_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), BatchNormAct2d(4), nn.Flatten(), nn.Linear(144, 5))
    with_statistics(model)
    images = noise(2, 3, 8, 8)
    other = folded(model, images)
    assert other is not None and norms(other) == 0
    torch.testing.assert_close(other(images), model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["changed in place", "taken twice", "normalised twice", "looked at"])
def test_where_it_would_be_wrong_the_model_itself_scores(kind: str) -> None:
    torch.manual_seed(0)
    network = Network(with_statistics(Odd(kind)), CPU)
    images = noise(2, 3, 8, 8)
    logits = network.logits(images)
    assert not fold(network, images)
    assert network.scored is network.model and torch.equal(network.logits(images), logits)


def test_a_plain_convolution_and_its_batch_norm_are_folded() -> None:
    """What the cases above are compared with."""
    torch.manual_seed(0)
    assert fold(Network(with_statistics(Odd("")), CPU), noise(2, 3, 8, 8))


def test_a_changed_layer_is_scored_by_the_model_itself(network: Network) -> None:
    images = noise(2, 3, 64, 64)
    with network.changed("features.2", lambda maps: maps * 0.5):
        expected = network.logits(images)
    plain = network.logits(images)
    fold(network, images)
    with network.changed("features.2", lambda maps: maps * 0.5):
        assert torch.equal(network.logits(images), expected)
    assert not torch.allclose(network.logits(images), expected, atol=1e-3)
    torch.testing.assert_close(network.logits(images), plain, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"), [({}, True), ({"dtype": "bfloat16"}, False), ({"tf32": True}, False)]
)
def test_only_float32_is_folded(options: dict, expected: bool) -> None:
    config = RunConfig(**(TINY | options))
    prepared = prepare("timm/camkit_tiny", ("conv",), sample_items(), config, lambda line: None)
    assert prepared.is_folded is expected
    assert norms(prepared.network.scored) == (0 if expected else 2)  # type: ignore[arg-type]


def test_run_json_says_it(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path, method=("gradcam",), metrics=("adcc",), limit=2)
    assert [one["folded"] for one in segments(tmp_path)] == [True]
