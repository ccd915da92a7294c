"""--activation sigmoid: one output y is class 1 with y and class 0 with -y; several stand alone."""

from __future__ import annotations

from collections.abc import Callable

import captum.attr
import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camkit
import camkit.methods  # noqa: F401  (fills the registry)
from camkit.errors import UsageError
from camkit.network.activation import ACTIVATIONS, SIGMOID, SOFTMAX
from camkit.network.inspect import inspect, open_network
from camkit.network.passes import Network
from camkit.network.utilities import find_utility

CPU = torch.device("cpu")
SHAPE = (3, 32, 48)  # positions 4 x 6


class Net(nn.Module):
    """`outputs` numbers, not affine in the features; positive and negative ones."""

    def __init__(self, outputs: int, flat: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Conv2d(3, 5, 8, stride=8)
        self.classify = nn.Linear(5, outputs)
        self.flat = flat
        with torch.no_grad():
            self.classify.bias -= 0.29  # so that the images below are of both classes

    def forward(self, images: Tensor) -> Tensor:
        outputs = 6 * self.classify(self.features(images).tanh().mean(dim=(2, 3)))
        return outputs[:, 0] if self.flat else outputs


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGES = 2 * noise(2, *SHAPE, seed=3)
# The utilities of class 1 and of class 0, as functions of the output.
OF_ONE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "logit": (lambda y: y, lambda y: -y),
    "softmax": (lambda y: 1 / (1 + torch.exp(-y)), lambda y: 1 / (1 + torch.exp(y))),
    "log-softmax": (lambda y: -torch.log1p(torch.exp(-y)), lambda y: -torch.log1p(torch.exp(y))),
    "rest": (lambda y: y - torch.log1p(torch.exp(-y)), lambda y: -y - torch.log1p(torch.exp(y))),
}


@pytest.mark.parametrize("utility", OF_ONE)
def test_utilities_of_one_output(utility: str) -> None:
    y = torch.tensor([[-3.0], [0.5], [7.0]])
    logits = SIGMOID.logits(y, images=3)
    assert logits.shape == (3, 2)
    found = find_utility(utility, "sigmoid")
    for target, expected in zip((1, 0), OF_ONE[utility], strict=True):
        torch.testing.assert_close(
            found(logits, torch.full((3,), target)), expected(y.double()[:, 0]).float()
        )


@pytest.mark.parametrize("utility", OF_ONE)
def test_utilities_of_independent_outputs_against_scipy(utility: str) -> None:
    y = 4 * noise(3, 5)
    target = torch.tensor([0, 4, 2])
    picked = y.double().numpy()[np.arange(3), target.numpy()]
    log_p = scipy.special.log_expit(picked)
    expected = {"logit": picked, "softmax": scipy.special.expit(picked), "log-softmax": log_p}
    expected["rest"] = picked + log_p
    y.requires_grad_()
    found = find_utility(utility, "sigmoid")(SIGMOID.logits(y, images=3), target)
    np.testing.assert_allclose(found.detach(), expected[utility], rtol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), y)
    others = gradient.scatter(1, target[:, None], 0)
    assert not others.any(), "one class is independent of the others"


def test_a_probability_that_is_0_has_a_logarithm() -> None:
    logits = SIGMOID.logits(torch.tensor([[200.0]]), images=1)
    assert find_utility("softmax", "sigmoid")(logits, torch.tensor([0])).item() == 0
    assert find_utility("log-softmax", "sigmoid")(logits, torch.tensor([0])).item() == -200
    assert find_utility("rest", "sigmoid")(logits, torch.tensor([0])).item() == -400


def test_softmax_leaves_outputs_as_they_are() -> None:
    assert SOFTMAX.logits(torch.ones(3, 1), images=3).shape == (3, 1)
    for outputs in (torch.ones(3, 4), torch.ones(3), torch.ones(2, 3, 1)):
        assert SIGMOID.logits(outputs, images=2) is outputs


def test_the_same_utility_is_the_same_object() -> None:
    """By that, cells of one utility share a trace."""
    assert find_utility("rest", "sigmoid") is find_utility("rest", "sigmoid")
    assert find_utility("rest", "sigmoid") is not find_utility("rest", "softmax")


def derivatives(model: Net, image: Tensor, utility: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """A, G and HA (C, h, w) of one image by torch.func, in float64."""
    double = model.double()
    activation = double.features(image.double()[None]).detach()

    def value(features: Tensor) -> Tensor:
        return utility(6 * double.classify(features.tanh().mean(dim=(2, 3)))[0, 0])

    gradient, product = torch.func.jvp(torch.func.grad(value), (activation,), (activation,))
    return activation[0], gradient[0], product[0]


@pytest.mark.parametrize("utility", OF_ONE)
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("flat", [False, True], ids=["(B, 1)", "(B,)"])
def test_first_and_second_derivatives_of_one_output(utility: str, target: int, flat: bool) -> None:
    settings = {"layer": "features", "utility": utility, "target": target, "activation": "sigmoid"}
    hires, shapley = (
        camkit.explain(Net(1, flat), IMAGES, method=method, **settings)
        for method in ("hirescam", "shapleycam-h")
    )
    for place, image in enumerate(IMAGES):
        of_class = OF_ONE[utility][1 - target]
        activation, gradient, product = derivatives(Net(1), image, of_class)
        first = (gradient * activation).sum(dim=0)
        second = ((gradient - product / 2) * activation).sum(dim=0)
        torch.testing.assert_close(hires.maps[place].double(), first, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shapley.maps[place].double(), second, rtol=1e-4, atol=1e-5)
        assert utility == "logit" or (first - second).abs().max() > 1e-3


def test_captum_gives_the_same_maps_of_the_bare_network() -> None:
    model = Net(1).eval()

    def rest_of_class_0(images: Tensor) -> Tensor:
        y = model(images)[:, 0]
        return -y + F.logsigmoid(-y)

    explainer = captum.attr.LayerGradientXActivation(rest_of_class_0, model.features)
    expected = explainer.attribute(IMAGES).sum(dim=1)
    found = camkit.explain(model, IMAGES, method="hirescam", layer="features", target=0, activation="sigmoid")
    torch.testing.assert_close(found.maps, expected.detach())


@pytest.mark.parametrize("outputs", [1, 3])
def test_explainers_of_other_packages_see_the_same_classes(outputs: int) -> None:
    settings = {"layer": "features", "target": [0, 1], "activation": "sigmoid"}
    model = Net(outputs)
    own = camkit.explain(model, IMAGES, method="hirescam", **settings)
    other = camkit.explain(model, IMAGES, method="grad_cam:HiResCAM", **settings)
    torch.testing.assert_close(own.saliency, other.saliency, atol=1e-4, rtol=0)
    captums = camkit.explain(model, IMAGES, method="captum:LayerGradientXActivation", **settings)
    torch.testing.assert_close(own.maps, captums.maps)
    shapes = camkit.explain(model, IMAGES, method="torchcam:LayerCAM", **settings)
    layercam = camkit.explain(model, IMAGES, method="layercam", **settings)
    torch.testing.assert_close(shapes.maps, layercam.maps.relu())


def test_the_game_of_one_output() -> None:
    """Efficiency, and class 0's logit is minus class 1's."""
    maps = {}
    for target in (0, 1):
        found = camkit.explain(
            Net(1), IMAGES, method="shapley", layer="features", target=target, utility="logit",
            activation="sigmoid", budget=64,
        )  # fmt: skip
        maps[target] = found.maps
    torch.testing.assert_close(maps[0], -maps[1])
    model = Net(1)
    with torch.no_grad():
        gain = model(IMAGES)[:, 0] - 6 * model.classify(torch.zeros(2, 5))[:, 0]
    torch.testing.assert_close(maps[1].sum(dim=(1, 2)), gain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outputs", [1, 3])
def test_probabilities_and_the_predicted_class(outputs: int) -> None:
    model = Net(outputs).eval()
    network = Network(model, CPU, activation=SIGMOID)
    with torch.no_grad():
        y = model(IMAGES)
    found = camkit.explain(model, IMAGES, method="gradcam", layer="features", activation="sigmoid")
    if outputs == 1:
        assert sorted((y[:, 0] > 0).tolist()) == [False, True], "one of each"
        assert found.target.tolist() == (y[:, 0] > 0).long().tolist()
        expected = y[:, 0].abs().sigmoid()
    else:
        assert found.target.tolist() == y.argmax(dim=1).tolist()
        expected = y.amax(dim=1).sigmoid()
    torch.testing.assert_close(found.probability, expected)
    torch.testing.assert_close(network.score(IMAGES, found.target), expected)
    total = sum(network.score(IMAGES, torch.full((2,), target)) for target in range(max(outputs, 2)))
    assert torch.allclose(total, torch.ones(2)) == (outputs == 1)


def opened(model: nn.Module, activation: str) -> list[str]:
    lines: list[str] = []
    network = open_network("net", model, SHAPE, CPU, torch.float32, "", ACTIVATIONS[activation])
    inspect("net", network, SHAPE, lines.append)
    return lines


class Ended(nn.Module):
    """A network that ends in an activation of its own."""

    def __init__(self, net: Net, end: nn.Module) -> None:
        super().__init__()
        self.net, self.end = net, end

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.net(images))


@pytest.mark.parametrize("outputs", [1, 3])
def test_outputs_that_are_probabilities_already_are_said(outputs: int) -> None:
    (said,) = opened(Ended(Net(outputs), nn.Sigmoid()), "sigmoid")
    assert "a sigmoid of a sigmoid. Take the sigmoid out of the model" in said
    assert not opened(Net(outputs), "sigmoid")
    (said,) = opened(Ended(Net(3), nn.Softmax(dim=1)), "softmax")
    assert "a softmax of a softmax" in said


@pytest.mark.parametrize("flat", [False, True])
def test_one_output_under_softmax_is_refused_with_advice(flat: bool) -> None:
    with pytest.raises(UsageError, match="one output, .* two classes apart: --activation sigmoid") as error:
        opened(Net(1, flat), "softmax")
    assert "learnt by regression: camkit explains image classifiers" in str(error.value)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (nn.Unflatten(1, (3, 1, 1)), r"gives \(1, 3, 1, 1\): not a classifier \(segmentation\?\)"),
        (nn.Unflatten(1, (3, 1)), r"gives \(1, 3, 1\): not a classifier;"),
        (nn.Flatten(0), r"gives \(3,\): not a classifier;"),
    ],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_no_classifier_is_refused_with_what_is_supported(
    end: nn.Module, said: str, activation: str
) -> None:
    with pytest.raises(UsageError, match=f"{said}.*camkit explains image classifiers"):
        opened(Ended(Net(3), end), activation)
