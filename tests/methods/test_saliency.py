"""From maps to saliency maps, by hand and against OpenCV's resize (which the field's code uses)."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from tiny import noise

from camkit.methods.saliency import is_degenerate, min_max, to_saliency


def test_min_max_by_hand() -> None:
    maps = torch.tensor([[[1.0, 3.0], [5.0, 2.0]], [[-1.0, 0.0], [0.0, 1.0]]])
    expected = torch.tensor([[[0, 0.5], [1, 0.25]], [[0, 0.5], [0.5, 1]]])
    torch.testing.assert_close(min_max(maps), expected, rtol=0, atol=2e-7)


def test_same_size_is_relu_and_min_max() -> None:
    maps = torch.tensor([[[-4.0, 1.0], [2.0, 5.0]]])
    torch.testing.assert_close(
        to_saliency(maps, (2, 2)), torch.tensor([[[0, 0.2], [0.4, 1.0]]]), rtol=0, atol=1e-6
    )


def test_against_opencv() -> None:
    maps = noise(3, 7, 5, seed=1)
    for ours, signed in zip(to_saliency(maps, (64, 40)), maps.numpy(), strict=True):
        relu = np.maximum(signed, 0)
        scaled = (relu - relu.min()) / (1e-7 + (relu - relu.min()).max())
        resized = cv2.resize(scaled, (40, 64))  # width first
        expected = (resized - resized.min()) / (1e-7 + (resized - resized.min()).max())
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)


def test_half_pixel_centres() -> None:
    """One row of two positions on four pixels: centres at 1/4 and 3/4, so pixels 0 and 3 are flat."""
    saliency = to_saliency(torch.tensor([[[0.0, 8.0]]]), (1, 4))
    torch.testing.assert_close(saliency, torch.tensor([[[0, 0.25, 0.75, 1.0]]]), rtol=0, atol=1e-6)


def test_degenerate_maps() -> None:
    flat, negative, good = torch.full((2, 2), 3.0), -torch.rand(2, 2), torch.eye(2)
    infinite, undefined = torch.tensor([[1.0, math.inf], [0, 0]]), torch.tensor([[math.nan, 1.0], [2, 3]])
    saliency = to_saliency(torch.stack([flat, negative, infinite, undefined, good]), (4, 4))
    assert is_degenerate(saliency).tolist() == [True, True, True, True, False]
    assert (saliency[:4] == 0).all()
    assert saliency[4].min() == 0
    assert saliency[4].max() > 0.999


def test_a_map_does_not_see_its_neighbours() -> None:
    maps = noise(4, 7, 7)
    together = to_saliency(maps, (50, 60))
    broken = maps.clone()
    broken[0] = math.nan
    assert (to_saliency(maps[2:3], (50, 60))[0] == together[2]).all()
    assert (to_saliency(broken, (50, 60))[1:] == together[1:]).all()
