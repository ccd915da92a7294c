"""Random numbers that belong to an image: the same whatever the batch, the order or the process."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: object) -> torch.Generator:
    """A generator on the CPU, seeded by `key` (the run's seed, the image's id and what it is for)."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode("utf-8", "surrogateescape")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
