"""Writing files that survive a crash: whole, and on disk when the call returns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from camkit.errors import RunError

# Names of files that are no valid UTF-8 survive the way through a CSV.
UTF8, ODD_NAMES = "utf-8", "surrogateescape"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in whatever the system says against writing it.

    Raises:
        RunError: a full disk, a read-only folder, a folder that is gone.
    """
    try:
        yield
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        raise RunError(
            f"{path}: {error.strerror or error}\n"
            + ("The results folder was taken away while the run was going on." if gone else "")
            + ("" if gone else "What was written before is kept: the same command goes on from there.")
        ) from error


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write under a temporary name, then rename: a reader sees the old file or the new one, whole.

    Raises:
        CamkitError: it cannot be written; the old file is still there.
    """
    data = data.encode(UTF8, ODD_NAMES) if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            append(temporary, data)
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_first(path: Path, data: bytes) -> None:
    """Write a file that other processes may be writing too: whichever comes first stands, whole.

    Raises:
        RunError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            append(temporary, data)
            with suppress(FileExistsError):
                os.link(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what a crash between writing and renaming left; only for who holds the folder's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk; a file alone does not bring its name along."""
    with suppress(OSError):  # not every system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def append(path: Path, data: bytes) -> None:
    """Append to a file; the data are on disk when this returns."""
    new = not path.exists()
    # Unbuffered: what a full disk did not take must not be written by closing the file, behind the cut.
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        left = memoryview(data)
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                os.truncate(path, before)
            raise
    if new:
        _sync_folder(path.parent)
