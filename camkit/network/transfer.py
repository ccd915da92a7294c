"""Copies between the CPU's memory and the device's that neither side waits for.

A copy of the plain kind waits until the device has done all that is queued, and then finds it idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device."""
    if device.type != "cuda":
        return tensor.to(device)
    # Page-locked memory is not used again before the copy is made: torch's allocator of it sees to that.
    return tensor.pin_memory().to(device, non_blocking=True)


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
