"""Target rules: which class of an image is explained, one entry each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from camkit.registry import unknown_name


def keeps_all(predicted: int, label: int | None) -> bool:
    """Leave no image out."""
    return True


@dataclass(frozen=True)
class Target:
    """A rule.

    Attributes:
        class_of: the predicted classes and the labels (-1: none), both (B,) -> the classes to explain, (B,).
        needs_labels: images without a label are left out.
        keeps: an image's predicted class and its label -> whether it is explained at all.
    """

    name: str
    class_of: Callable[[Tensor, Tensor], Tensor]
    needs_labels: bool = False
    keeps: Callable[[int, int | None], bool] = keeps_all


TARGETS = {
    rule.name: rule
    for rule in (
        Target("predicted", lambda predicted, labels: predicted),
        Target("label", lambda predicted, labels: labels, needs_labels=True),
        Target(
            "correct",
            lambda predicted, labels: labels,
            needs_labels=True,
            keeps=lambda predicted, label: predicted == label,
        ),
    )
}


def find_target(name: str) -> Target:
    """A rule by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    return TARGETS[name]
