"""The four utilities against SciPy, in values and in what they depend on."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
from tiny import noise

from camkit.entries import UTILITIES

LOGITS = noise(4, 7) * 5
TARGET = torch.tensor([0, 6, 3, 3])
PICKED = (np.arange(4), TARGET.numpy())
EXPECTED = {
    "logit": LOGITS.numpy()[PICKED],
    "softmax": scipy.special.softmax(LOGITS.numpy(), axis=1)[PICKED],
    "log-softmax": scipy.special.log_softmax(LOGITS.numpy(), axis=1)[PICKED],
    "rest": LOGITS.numpy()[PICKED] + scipy.special.log_softmax(LOGITS.numpy(), axis=1)[PICKED],
}


def test_there_are_four() -> None:
    assert set(UTILITIES) == set(EXPECTED)
    assert next(iter(UTILITIES)) == "rest"


@pytest.mark.parametrize("name", EXPECTED)
def test_values(name: str) -> None:
    np.testing.assert_allclose(UTILITIES[name].function(LOGITS, TARGET), EXPECTED[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_image_sees_only_its_own_logits(name: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(UTILITIES[name].function(logits, TARGET)[1], logits)
    assert (gradient[[0, 2, 3]] == 0).all()
    assert gradient[1].abs().max() > 0


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    assert UTILITIES["log-softmax"].function(logits, torch.tensor([2])).item() == -2e4
    assert UTILITIES["softmax"].function(logits, torch.tensor([0])).item() == 1
