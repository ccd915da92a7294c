"""Utilities: what the players of the game are worth, as a function of the logits.

Each takes logits (B, K), the target classes (B,) and the activation that makes probabilities of logits, and
gives one number per image, (B,); nothing of one image enters another's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from camkit.entries import UTILITIES, utility
from camkit.network.activation import ACTIVATIONS, SOFTMAX, Activation, of_class


def find_utility(name: str, activation: str = SOFTMAX.name) -> Callable[[Tensor, Tensor], Tensor]:
    """A utility by its name, with the probabilities of an activation: logits (B, K), classes (B,) -> (B,).

    The same names give the same object.

    Raises:
        UsageError: there is no such utility.
    """
    return _with(UTILITIES[name].function, ACTIVATIONS[activation])


@cache
def _with(function: Callable[..., Tensor], activation: Activation) -> Callable[[Tensor, Tensor], Tensor]:
    return partial(function, activation=activation)


@dataclass(frozen=True)
class Form:
    """A utility as a sum: y_c (where `logit`), and p_c or ln p_c (what `of` says) or nothing."""

    logit: bool
    of: Literal["probability", "log-probability"] | None
    activation: Activation

    def against_class(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (B, n, classes) of which p_c is the softmax, the class's own being 0.

        Args:
            logits: (B, n, K); target: classes (B,). A sigmoid tells a class from none: 2 classes, not K.
        """
        own = logits.gather(2, target[:, None, None].expand(-1, logits.shape[1], 1))
        if self.activation.independent:
            return torch.cat([torch.zeros_like(own), -own], dim=2)
        return logits - own


def form_of(utility: Callable[[Tensor, Tensor], Tensor]) -> Form | None:
    """The form of one of the utilities below, as :func:`find_utility` or the registry gives it; else None."""
    function, activation = utility, SOFTMAX
    if isinstance(utility, partial):
        function, activation = utility.func, utility.keywords.get("activation", SOFTMAX)
    forms: dict[Callable[..., Tensor], Form] = {
        rest: Form(True, "log-probability", activation),
        logit: Form(True, None, activation),
        softmax: Form(False, "probability", activation),
        log_softmax: Form(False, "log-probability", activation),
    }
    return forms.get(function)


@utility("rest")
def rest(logits: Tensor, target: Tensor, activation: Activation = SOFTMAX) -> Tensor:
    """Residual Softmax Target-class (ReST), y_c + ln p_c (arXiv 2501.06261)."""
    return logit(logits, target) + log_softmax(logits, target, activation)


@utility("logit")
def logit(logits: Tensor, target: Tensor, activation: Activation = SOFTMAX) -> Tensor:
    """y_c."""
    return of_class(logits, target)


@utility("softmax")
def softmax(logits: Tensor, target: Tensor, activation: Activation = SOFTMAX) -> Tensor:
    """p_c."""
    return of_class(activation.probability(logits), target)


@utility("log-softmax")
def log_softmax(logits: Tensor, target: Tensor, activation: Activation = SOFTMAX) -> Tensor:
    """ln p_c."""
    return of_class(activation.log_probability(logits), target)
