"""Torch's numeric switches: set explicitly for a run, and recorded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def numerics(tf32: bool, deterministic: bool) -> Iterator[dict[str, Any]]:
    """Set torch's numeric switches, all of them explicitly, and set them back.

    Gives the record for run.json of what moves only last bits (`tf32` moves more: the protocol has it); under
    `deterministic` its entry `not_deterministic` grows by each operation that runs and has no deterministic
    form in torch.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    switches = {(matmul, "allow_tf32"): tf32, (cudnn, "allow_tf32"): tf32}
    switches |= {(cudnn, "benchmark"): False, (cudnn, "deterministic"): deterministic}
    before = {(owner, name): getattr(owner, name) for owner, name in switches}
    algorithms = torch.are_deterministic_algorithms_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    exceptions: list[str] = []
    record = {
        "cudnn_benchmark": False,
        "deterministic": deterministic,
        "not_deterministic": exceptions,
    }
    show = warnings.showwarning

    def keep(message: Warning | str, *details: Any, **more: Any) -> None:
        operation, found, _ = str(message).partition(" does not have a deterministic implementation")
        if found:
            exceptions.append(operation)
        else:
            show(message, *details, **more)

    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    with warnings.catch_warnings():
        warnings.showwarning = keep
        try:
            for (owner, name), value in switches.items():
                setattr(owner, name, value)
            torch.use_deterministic_algorithms(deterministic, warn_only=True)
            yield record
        finally:
            torch.use_deterministic_algorithms(algorithms, warn_only=only_warn)
            for (owner, name), value in before.items():
                setattr(owner, name, value)


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32, all other switches as they are: for what is found on noise and holds but for rounding."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = False
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
