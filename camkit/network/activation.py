"""Activations: what probabilities are, as a function of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Activation:
    """From a model's outputs to logits of classes, and from these to probabilities.

    Attributes:
        probability: logits (B, K) -> probabilities (B, K), in [0, 1].
        log_probability: logits (B, K) -> their natural logarithms (B, K); finite where a probability is so
            small that it is 0.
        independent: each class has a probability by itself, and one output tells two classes apart.
    """

    name: str
    probability: Callable[[Tensor], Tensor]
    log_probability: Callable[[Tensor], Tensor]
    independent: bool = False

    def logits(self, outputs: Tensor, images: int) -> Tensor:
        """Logits (B, K) of a model's outputs.

        One output y, (B, 1) or (B,), of an independent activation becomes two classes, (B, 2): class 1 has y,
        class 0 has -y, so that their probabilities are sigmoid(y) and sigmoid(-y) = 1 - sigmoid(y). All other
        outputs are logits as they are.

        Args:
            images: B.
        """
        if not self.independent or outputs.shape not in ((images,), (images, 1)):
            return outputs
        single = outputs.reshape(images, 1)
        return torch.cat([-single, single], dim=1)


SOFTMAX = Activation(
    "softmax", lambda logits: logits.softmax(dim=1), lambda logits: logits.log_softmax(dim=1)
)
SIGMOID = Activation("sigmoid", torch.sigmoid, F.logsigmoid, independent=True)
ACTIVATIONS = {one.name: one for one in (SOFTMAX, SIGMOID)}


def of_class(values: Tensor, target: Tensor) -> Tensor:
    """The values (B,) of one class per image, (B,), of values (B, K)."""
    return values.gather(1, target[:, None])[:, 0]
