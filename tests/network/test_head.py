"""The rest of a network alone: the same logits as the whole network's, and nothing run twice."""

import pytest
import torch
from networks import Net
from polynomials import trace
from tiny import CPU
from torch import Tensor, nn

import camkit.methods  # noqa: F401  (fills the registry)
from camkit.entries import METHODS
from camkit.errors import CamkitError, UsageError
from camkit.network.head import head_after, head_of
from camkit.network.passes import Network


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


LAYERS = {
    "stem.0": False,
    "pair.left": True,
    "pair.right": True,
    "block.first": True,
    "block.second": True,
    "block.shortcut": True,
    "block": False,
    "last": False,
}


@pytest.mark.parametrize("layer", LAYERS)
def test_head_of_the_activation_gives_the_logits_and_its_gradient(model, images, layer):
    traced = trace(model, images, layer)
    for _ in range(2):  # the second time as well: nothing was changed in place
        assert torch.equal(traced._head(traced.activation), traced.logits)
    assert torch.equal(traced.gradient_at(traced.activation), traced.gradient)


@pytest.mark.parametrize("layer", LAYERS)
def test_head_of_another_activation_is_the_network_with_it_in_the_layers_place(model, images, layer):
    traced = trace(model, images, layer)
    other = 0.5 * traced.activation + 1
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda *_: other.clone())
    with torch.no_grad():
        expected = model(images)
    handle.remove()
    assert torch.equal(traced._head(other), expected)
    torch.testing.assert_close(
        traced.head(other), expected.gather(1, traced.target[:, None])[:, 0], rtol=0, atol=0
    )


@pytest.mark.parametrize(("layer", "bypassed"), LAYERS.items())
def test_what_passes_the_layer_by_is_seen(model, images, layer, bypassed):
    assert trace(model, images, layer)._head.bypassed is bypassed


def test_what_ran_before_the_layer_does_not_run_again(model, images):
    network = Network(model, CPU)
    head = head_after(network, images, "block.second")
    ran = []

    def counted(name, forward):
        return lambda x: ran.append(name) or forward(x)

    for name in ("stem", "stem.0", "pair.left", "block.first", "block.second", "block.shortcut", "last"):
        module = model.get_submodule(name)
        module.forward = counted(name, module.forward)
    head(torch.zeros(2, 6, 6, 6))
    assert ran == ["block.shortcut", "last"]


def test_the_model_is_left_as_it_was(model, images):
    traced = trace(model, images, "block.second")
    traced.head(traced.activation)
    with pytest.raises(CamkitError, match=r"\(2, 6, 6, 6\), not \(2, 6, 5, 6\)"):
        traced.head(traced.activation[:, :, 1:])
    with pytest.raises(RuntimeError):
        traced._head(torch.zeros(2, 5, 6, 6))
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_head_names_a_layer_that_does_not_run_or_has_no_positions(model, images):
    model.spare = nn.Conv2d(1, 1, 1)
    network = Network(model, CPU)
    with pytest.raises(CamkitError, match="does not run"):
        head_after(network, images, "spare")
    with pytest.raises(UsageError, match=r"gives \(2, 4\)"):
        head_after(network, images, "classify")


def test_only_what_is_asked_for_is_computed(model, images, monkeypatch):
    passes = []
    monkeypatch.setattr("camkit.network.trace.head_of", lambda *_: passes.append("head"))
    traced = trace(model, images, "last")
    METHODS["gradcam"].function(traced)
    assert not passes
    assert "hvp" not in vars(traced)


def test_token_sequences_keep_their_class_token(images):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_prefix_tokens = 1
            self.embed = nn.Conv2d(3, 8, 2, stride=2)
            self.norm = nn.LayerNorm(8)
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
            self.classify = nn.Linear(8, 4)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
            y = self.norm(x)
            return self.classify((x + self.mix(y, y, y)[0])[:, 0])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        traced = trace(Tokens().eval(), images, "norm")
    assert traced.activation.shape == (2, 8, 3, 3)
    torch.testing.assert_close(traced._head(traced.activation), traced.logits)
    assert traced._head.bypassed


@pytest.mark.parametrize(("layer", "bypassed"), LAYERS.items())
def test_a_head_costs_a_pass_only_where_something_passes_the_layer_by(model, images, layer, bypassed):
    traced = trace(model, images, layer)
    traced.head(traced.activation)
    traced.gradient_at(traced.activation)
    assert (traced.network.passes, traced.network.head_passes) == (1 + bypassed, 2)


def test_a_head_without_a_pass_serves_all_images_of_a_size(model, images):
    network = Network(model, CPU)
    activation = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(2))
    expected = head_after(network, images, "block")(activation)
    first, second = head_of(network, images, "block"), head_of(network, 3 * images, "block")
    assert first is second and first is not head_of(network, images[:1], "block")
    assert torch.equal(first(activation), expected)


class Gated(nn.Module):
    """The image decides over the logits in a way that has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classify = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        bright = (images.mean(dim=(1, 2, 3)) > 0).to(images)[:, None]
        return self.classify(self.features(images).relu().mean(dim=(2, 3))) * (1 + bright)


def test_what_decides_without_a_derivative_is_kept_too(images):
    network = Network(Gated().eval(), CPU)
    for shifted in (images - 3, images + 3):
        head = head_of(network, shifted, "features")
        with torch.no_grad():
            expected = network.model(shifted)
            assert torch.equal(head(network.model.features(shifted)), expected)


def test_a_changed_network_has_its_own_head(model, images):
    network = Network(model, CPU)
    activation = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(2))
    before = head_of(network, images, "block")(activation)
    with network.changed("last", lambda maps: 2 * maps):
        changed = head_of(network, images, "block")(activation)
    assert not torch.equal(before, changed)
    assert torch.equal(head_of(network, images, "block")(activation), before)
