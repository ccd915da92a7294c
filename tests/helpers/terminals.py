"""Commands run in a terminal that is none."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios


def in_a_terminal(columns: int, *arguments: object) -> str:
    """What `camkit` prints in a pseudo-terminal of so many columns."""
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    words = [sys.executable, "-m", "camkit", *map(str, arguments)]
    child = subprocess.Popen(words, stdout=inside, stderr=inside, stdin=inside, env=environment)
    os.close(inside)
    data = b""
    try:
        while piece := os.read(outside, 65536):
            data += piece
    except OSError:  # the other end is closed
        pass
    assert child.wait() == 0, data
    os.close(outside)
    return data.decode()
