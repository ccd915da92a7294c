"""Target rules: which class of an image is explained, one entry each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camkit.data.items import Item
from camkit.errors import UsageError
from camkit.registry import unknown_name


def keeps_all(predicted: int, label: int | None) -> bool:
    """Leave no image out."""
    return True


@dataclass(frozen=True)
class Target:
    """A rule.

    Attributes:
        class_of: the logits (B, K), the predicted classes and the labels (-1: none), both (B,) -> the classes
            to explain, (B,).
        needs_labels: images without a label are left out.
        keeps: an image's predicted class and its label -> whether it is explained at all.
    """

    name: str
    class_of: Callable[[Tensor, Tensor, Tensor], Tensor]
    needs_labels: bool = False
    keeps: Callable[[int, int | None], bool] = keeps_all

    def expect(self, classes: int, items: Sequence[Item] = ()) -> None:
        """The model has the class of the rule, and those of images that are explained whatever it predicts.

        Raises:
            UsageError: it has not.
        """
        fixed = [int(self.name)] if self.name.isdecimal() else []
        labels = [item.label for item in items] if self.needs_labels else []
        given = [*fixed, *labels, *(item.target for item in items)]
        highest = max((one for one in given if one is not None), default=-1)
        if highest >= classes:
            raise UsageError(f"--target {self.name}: class {highest} of a model that gives {classes}")


def runner_up(logits: Tensor, predicted: Tensor) -> Tensor:
    """The most likely class but the predicted one, (B,)."""
    return logits.scatter(1, predicted[:, None], -torch.inf).argmax(dim=1)


TARGETS = {
    rule.name: rule
    for rule in (
        Target("predicted", lambda logits, predicted, labels: predicted),
        Target("runner-up", lambda logits, predicted, labels: runner_up(logits, predicted)),
        Target("label", lambda logits, predicted, labels: labels, needs_labels=True),
        Target(
            "correct",
            lambda logits, predicted, labels: labels,
            needs_labels=True,
            keeps=lambda predicted, label: predicted == label,
        ),
    )
}


def find_target(name: str) -> Target:
    """A rule by its name, or the class of an index.

    Raises:
        UsageError: there is none.
    """
    if name.isdecimal():
        return Target(name, lambda logits, predicted, labels: torch.full_like(predicted, int(name)))
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS, "; or a class, by its index or name")
    return TARGETS[name]
