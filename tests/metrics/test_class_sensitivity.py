"""Maps of other classes: which classes, and correlations by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from subjects import explained, subject
from tiny import Headed, noise, seeded
from torch import Tensor, nn

from camkit.entries import METRICS, method
from camkit.network.gradients import gradient_of
from camkit.network.trace import Trace

IMAGES = noise(2, 3, 16, 24)
LOGITS = torch.tensor([[0.1, 2.0, -1.0, 1.5], [3.0, 0.0, 1.0, -2.0]])


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.fc(maps.mean(dim=(2, 3)))


def network() -> nn.Module:
    return seeded(lambda: Headed(nn.Conv2d(3, 6, 8, stride=8), Averaged()))


def classes(logits: Tensor, target: list[int], ids: list[str] | None = None) -> list[list[int]]:
    ids = ids or [str(place) for place in range(len(logits))]
    one = subject(
        noise(len(logits), 3, 2, 2), torch.zeros(len(logits), 2, 2), logits=logits,
        target=torch.tensor(target), image_ids=ids,
    )  # fmt: skip
    return one.other_classes.tolist()


def test_runner_up_and_least_likely() -> None:
    runner_up, _, least = classes(LOGITS, [1, 0])
    assert (runner_up, least) == ([3, 2], [2, 3])


def test_neither_is_the_target_whichever_it_is() -> None:
    """The target is the least likely class of the first image, and not the best of the second."""
    runner_up, _, least = classes(LOGITS, [2, 2])
    assert (runner_up, least) == ([1, 0], [0, 3])


def test_of_two_classes_there_is_one_other() -> None:
    assert classes(LOGITS[:, :2], [1, 0]) == [[0, 1]] * 3


def test_the_random_class_is_any_other_alike() -> None:
    images = 600
    ids = [str(place) for place in range(images)]
    _, drawn, _ = classes(LOGITS[:1].expand(images, 4), [1] * images, ids)
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0
    assert scipy.stats.chisquare(counts[[0, 2, 3]]).pvalue > 0.01
    assert classes(LOGITS, [1, 0], ["7", "3"])[1] == [drawn[7], classes(LOGITS[1:], [0], ["3"])[1][0]]


@pytest.mark.parametrize("name", ["gradcam", "hirescam"])
def test_correlations_by_hand(name: str) -> None:
    """Behind global average pooling the map of class k is the sum over channels of W_k A, signed."""
    model = network()
    (one,) = explained(model, IMAGES, "features", name)
    found = METRICS["class_sensitivity"].function(one)
    activation, weight = model.features(IMAGES).detach(), model.head.fc.weight.detach()

    def maps(chosen: Tensor) -> Tensor:
        return (weight[chosen][:, :, None, None] * activation).sum(dim=1).flatten(1)

    columns = ("class_runner_up", "class_random", "class_least")
    for column, others in zip(columns, one.other_classes, strict=True):
        for place, (a, b) in enumerate(zip(maps(one.target), maps(others), strict=True)):
            expected = scipy.stats.pearsonr(a.numpy(), b.numpy()).statistic
            assert found[column][place].item() == pytest.approx(expected, abs=1e-5)
    assert min(found[column].min() for column in columns) < 0


def test_a_method_that_knows_no_class_has_one() -> None:
    for one in explained(network(), IMAGES, "features", ("eigencam", "edges")):
        for column in METRICS["class_sensitivity"].function(one).values():
            assert column.tolist() == pytest.approx([1, 1])


def test_a_constant_map_has_no_value() -> None:
    @method("constant")
    def constant(trace: Trace) -> Tensor:
        return torch.full_like(trace.activation[:, 0], 0.1)

    (one,) = explained(network(), IMAGES, "features", "constant")
    for column in METRICS["class_sensitivity"].function(one).values():
        assert column.isnan().all()


@pytest.mark.parametrize(
    ("name", "passes"), [("gradcam", 0), ("hirescam~sqrt", 0), ("edges", 0), ("fullgrad", 3)]
)
def test_it_takes_gradients_and_no_pass(name: str, passes: int) -> None:
    model = network()
    made: list[int] = []
    model.register_forward_hook(lambda *_: made.append(1))
    (one,) = explained(model, IMAGES, "features", name)
    made.clear()
    METRICS["class_sensitivity"].function(one)
    assert len(made) == passes


def test_methods_share_the_gradients_of_the_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = explained(network(), IMAGES, "features", ("gradcam", "hirescam", "xgradcam"))
    taken: list[int] = []

    def counted(*given: Any, **options: Any) -> Tensor:
        taken.append(1)
        return gradient_of(*given, **options)

    monkeypatch.setattr("camkit.network.trace.gradient_of", counted)
    for one in subjects:
        METRICS["class_sensitivity"].function(one)
    assert len(taken) == 3


def test_it_is_no_ranking() -> None:
    assert {column.better for column in METRICS["class_sensitivity"].columns.values()} == {"neither"}
