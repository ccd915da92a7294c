"""The section `table` of scripts/gpu.py: the paper's main table, by its twelve models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from gpu_fast import Row, Scale, going_on, job_of, per_batch, usual
from speed_jobs import Setting

from camkit.errors import is_out_of_memory

IMAGES, CELLS = 50_000, 10


def table(setting: Setting, scale: Scale) -> Iterator[Row]:
    """All twelve: ten methods, ADCC scores, in bfloat16 on a GPU; hours for 10 cells of each × 50,000."""
    hours: dict[str, float] = {}
    yield from going_on({one: partial(in_table, setting, scale, one, hours) for one in scale.twelve})
    words = f"{len(hours)} of {len(scale.twelve)} models, {CELLS * len(hours)} cells × {IMAGES:,} images"
    yield Row(words, f"{sum(hours.values()):.2f} h")


def in_table(setting: Setting, scale: Scale, model: str, hours: dict[str, float]) -> Iterator[Row]:
    """One model, in the largest batch that fits; its hours."""
    for size in sorted(scale.sizes, reverse=True):
        found = that_fits(setting, replace(scale, batches=1), model, size)
        if found is not None:
            took, passes, _ = found
            hours[model] = IMAGES * took / size / 3600
            note = f"{passes:.0f} passes, batch {size}; {hours[model]:.2f} h"
            yield Row(model, f"{size / took:,.1f} images/s", note)
            return
        torch.cuda.empty_cache()
    yield Row(model, "does not fit into memory")


def that_fits(setting: Setting, scale: Scale, model: str, size: int) -> tuple[float, float, float] | None:
    """:func:`per_batch` of ten methods; None where memory runs out."""
    try:
        return per_batch(job_of(setting, scale, model, ("paper",), size, **usual(setting)))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None
