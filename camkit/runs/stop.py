"""SIGINT and SIGTERM: the first one lets the batch in hand finish, the second stops now."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from camkit.errors import Say

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether the run has been asked to stop.

    Attributes:
        asked: a signal has come.
        cut: work was left undone for it: :meth:`check` raises KeyboardInterrupt.
        twice: a second one has: nothing more is to be begun.
        patient: there is a batch in hand that is worth finishing. Otherwise one signal stops at once.
    """

    def __init__(self, say: Say) -> None:
        self.asked = self.cut = self.twice = self.patient = False
        self._say = say
        self._process = os.getpid()

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """While work goes on that is worth finishing."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False

    def check(self) -> None:
        """Raise KeyboardInterrupt where a stop left work undone."""
        if self.cut:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker, forked with this handler, that has none of its own yet
            if number == signal.SIGTERM:
                os._exit(1)
            return
        self.twice, self.asked = self.asked, True
        if self.twice or not self.patient:
            raise KeyboardInterrupt
        with suppress(RuntimeError):  # the signal came while a line was being printed
            self._say(f"{signal.Signals(number).name}: finishing this batch (once more: stop now)")


@contextmanager
def stop_signals(say: Say) -> Iterator[Stop]:
    """Listen to both signals; the old handlers come back at the end. Outside the main thread: do nothing."""
    stop = Stop(say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._handle) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
