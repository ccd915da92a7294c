"""Utilities: what the players of the game are worth, as a function of the logits.

Each takes logits (B, K) and the target classes (B,) and gives one number an image, (B,); nothing of one
image enters another's.
"""

from __future__ import annotations

from torch import Tensor

from camkit.entries import utility


@utility("rest")
def rest(logits: Tensor, target: Tensor) -> Tensor:
    """Residual Softmax Target-class (ReST), y_c + ln p_c (arXiv 2501.06261)."""
    return logit(logits, target) + log_softmax(logits, target)


@utility("logit")
def logit(logits: Tensor, target: Tensor) -> Tensor:
    """y_c."""
    return logits.gather(1, target[:, None])[:, 0]


@utility("softmax")
def softmax(logits: Tensor, target: Tensor) -> Tensor:
    """p_c."""
    return logit(logits.softmax(dim=1), target)


@utility("log-softmax")
def log_softmax(logits: Tensor, target: Tensor) -> Tensor:
    """ln p_c."""
    return logit(logits.log_softmax(dim=1), target)
