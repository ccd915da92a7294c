"""One run at a time in a folder.

The lock belongs to the process, and the kernel drops it when the process ends, however it ends: a crashed
run leaves no dead lock behind. The file stays; who held it last stands in it, for people.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from camkit.errors import RunError
from camkit.results.files import writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
ATTEMPTS = 10
_HELD: set[Path] = set()


class InUse(RunError):
    """Another run holds the lock."""


@contextmanager
def hold(folder: Path, wait: float = 0) -> Iterator[None]:
    """Hold the lock of a folder, which is made where it is missing.

    Args:
        wait: seconds to wait for who holds it.

    Raises:
        InUse: another run holds it.
        RunError: the folder cannot be written.
    """
    path = folder.resolve() / LOCK
    if path in _HELD:
        raise _in_use(folder, "this process")
    with writing(path):
        handle = _open(path)
    try:
        deadline = time.monotonic() + wait
        while not _lock(handle, folder):
            if time.monotonic() >= deadline:
                raise _in_use(folder, os.pread(handle, 200, 0).decode(errors="replace").strip())
            time.sleep(0.05)
        _HELD.add(path)
        with suppress(OSError):  # on a full disk
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        _HELD.discard(path)
        os.close(handle)


def _open(path: Path, attempts: int = ATTEMPTS) -> int:
    """Open the file, in a folder that is made; again where another process removes the empty folder then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        if attempts == 1:
            raise
        return _open(path, attempts - 1)


def _in_use(folder: Path, holder: str) -> InUse:
    return InUse(
        f"another run is at work in {folder} ({holder or 'another process'}).\n"
        "Wait until it has ended, or use another --out."
    )


def _lock(handle: int, folder: Path) -> bool:
    """Take the lock if it is free.

    A record lock (`lockf`), not `flock`: worker processes do not inherit it, and so cannot outlive the run
    with it. It is the process's own, which is why `_HELD` keeps a second run of one process out.
    """
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (OSError, AttributeError) as error:
        warnings.warn(f"{folder}: no locks here ({error}): nothing keeps a second run out", stacklevel=2)
    return True
