"""Commands run in a terminal that is none."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence

END = "\x1e"
CODE = f"""
import json, os, sys
from camkit.cli import main
for changes in json.loads(sys.argv[1]):
    os.environ.update(changes)
    main(sys.argv[2:], standalone_mode=False)
    print({END!r}, end="", flush=True)
"""


def in_a_terminal(columns: int, environments: Sequence[dict[str, str]], *arguments: object) -> list[str]:
    """What `camkit` prints in a pseudo-terminal of so many columns, once per environment, in one process.

    Args:
        environments: variables that are set; each stays for the next ones.
    """
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    words = [sys.executable, "-c", CODE, json.dumps(environments), *map(str, arguments)]
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
    *printed, rest = data.decode().split(END)
    assert rest == "" and len(printed) == len(environments)
    return printed
