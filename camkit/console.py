"""Lines and progress bars on a terminal, in a log file or down a pipe: none of them may end the work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tqdm import tqdm

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
# Seconds between two states of a bar that no one watches.
IN_A_LOG = 10


def say(line: str) -> None:
    """A line for the user that is no result, above any bar."""
    tqdm.write(line, file=sys.stderr)


class Bar(tqdm):
    """A progress bar over images; shares of an image count too."""

    def __init__(self, total: int, desc: str, disable: bool = False) -> None:
        super().__init__(
            total=total,
            desc=desc,
            disable=disable,
            unit="img",
            mininterval=0.2 if sys.stderr.isatty() else IN_A_LOG,
            bar_format=BAR,
        )
        self.images = total

    def reach(self, images: float) -> None:
        """Show that so many images are done, never more than all."""
        self.update(min(images, self.images) - self.n)


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Let standard output and error take every letter, and a reader who has gone.

    Letters that the terminal's encoding lacks become `?`; what would go down a closed pipe is dropped.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.stdout, sys.stderr = _Lenient(before[0]), _Lenient(before[1])  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before


class _Lenient:
    """A text stream that drops what nobody reads any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
