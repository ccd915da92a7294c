"""Preprocessings, and what processes of their own do with a pixel cache (spawned ones import it by name)."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from camkit.data import Item, find_images
from camkit.data.batches import batches
from camkit.data.cache import PixelCache
from camkit.data.pixels import PAPER_CROP, Preprocess

PAPER = Preprocess("paper", PAPER_CROP, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = Preprocess("small", Compose([Resize(40), CenterCrop(32), PILToTensor()]), PAPER.mean, PAPER.std)


def items_of(folder: Path) -> list[Item]:
    return list(find_images(str(folder), seed=0).items)


def pixels(items: Sequence[Item], preprocess: Preprocess, cache: Path | None, workers: int = 0) -> Tensor:
    found = [batch.pixels for batch in batches(items, preprocess, 2, workers, cache=cache)]
    assert all(part is not None for part in found)
    return torch.cat([part for part in found if part is not None])


def build(photos: Path, cache: Path, times: int) -> None:
    for _ in range(times):
        pixels(items_of(photos), SMALL, cache)


def fill_for_ever(cache: Path, started: Event) -> None:
    store = PixelCache(cache, "recipe")
    for number in range(1_000_000):
        store.put({store.key(b"%d" % number): torch.full((3, 64, 64), number % 256, dtype=torch.uint8)})
        if number == 5:
            started.set()
