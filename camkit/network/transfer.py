"""Copies between the CPU's memory and the device's that neither side waits for.

A copy of the plain kind waits until the device has done all that is queued, and then finds it idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device."""
    if device.type != "cuda":
        return tensor.to(device)
    # Page-locked memory is not used again before the copy is made: torch's allocator of it sees to that.
    return tensor.pin_memory().to(device, non_blocking=True)


class Moment:
    """A moment in the device's own work, in which all that was queued before is done."""

    def __init__(self, device: torch.device) -> None:
        self._host = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    def until(self, later: Moment) -> float:
        """Seconds to a later moment, which has passed."""
        if self._event is None or later._event is None:
            return later._host - self._host
        return float(self._event.elapsed_time(later._event)) / 1e3


def arriving(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin to copy tensors of one device into the CPU's memory.

    Returns:
        What waits until they are there, and gives them.
    """
    device = tensors[0].device
    if device.type != "cuda":  # a copy that is not waited for would be read too early
        copies = [tensor.cpu() for tensor in tensors]
        return lambda: copies
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    event = torch.cuda.current_stream(device).record_event()

    def arrived() -> list[Tensor]:
        event.synchronize()
        return copies

    return arrived
