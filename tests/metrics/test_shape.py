"""How a map is spread: by hand, and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from subjects import subject
from torch import Tensor

from camkit.entries import METRICS


def shape(saliency: Tensor) -> dict[str, list[float]]:
    found = METRICS["shape"].function(subject(torch.zeros(len(saliency), 3, 2, 2), saliency))
    return {name: column.tolist() for name, column in found.items()}


def test_by_hand() -> None:
    """Of 1, 2, 0, 1: mean absolute difference of all 16 pairs 12/16, over twice the mean of 1."""
    found = shape(torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]]))
    assert found["complexity"] == [1.0, 0.25]
    assert found["gini"] == [pytest.approx(12 / 16 / 2), 0.75]
    assert found["entropy"] == [pytest.approx(0.75), 0]  # 1/4, 1/2, 0, 1/4: one bit and a half of two
    assert found["roughness"] == [(1 + 1 + 1 + 1) / 4, (1 + 1) / 4]


def test_constant_and_empty_maps() -> None:
    found = shape(torch.stack([torch.full((3, 4), value) for value in (0.0, 0.3, 1.0)]))
    assert found["gini"] == pytest.approx([0, 0, 0], abs=1e-7)
    assert found["entropy"] == pytest.approx([1, 1, 1])
    assert found["roughness"] == [0, 0, 0]


def test_against_scipy_and_all_pairs() -> None:
    saliency = torch.rand(4, 5, 7, generator=torch.Generator().manual_seed(0)) ** 3
    found = shape(saliency)
    for place, one in enumerate(saliency.double().numpy()):
        flat = one.ravel()
        pairs = np.abs(flat[:, None] - flat[None]).mean()
        assert found["gini"][place] == pytest.approx(pairs / (2 * flat.mean()), rel=1e-5)
        assert found["entropy"][place] == pytest.approx(scipy.stats.entropy(flat, base=35), rel=1e-5)
        variation = np.abs(np.diff(one, axis=0)).sum() + np.abs(np.diff(one, axis=1)).sum()
        assert found["roughness"][place] == pytest.approx(variation / 35, rel=1e-5)


def test_it_takes_no_pass() -> None:
    """The subject's score raises where it is asked for."""
    assert set(shape(torch.rand(1, 3, 3))) == set(METRICS["shape"].columns)
