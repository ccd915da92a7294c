"""Utilities: what the players of the game are worth, as a function of the logits.

Each takes logits (B, K), the target classes (B,) and the activation that makes probabilities of logits, and
gives one number an image, (B,); nothing of one image enters another's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

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
