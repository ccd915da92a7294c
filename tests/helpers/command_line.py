"""`camkit` called in this process, as from the command line."""

from __future__ import annotations

import re

from click.testing import CliRunner, Result
from tiny import TINY as TINY_OPTIONS

from camkit.cli import main

MODEL = (
    *("--model", TINY_OPTIONS["model"][0], "--weights", "random", "--preprocess", "native"),
    *("--device", "cpu"),
)
TINY = (*MODEL, "--steps", "3", "--workers", "0")


def call(*arguments: object, **settings: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **settings)


def run(*arguments: object, code: int = 0) -> str:
    """What a command prints that ends with `code`."""
    found = call(*arguments)
    assert found.exit_code == code, found.output
    return found.output


def wrong(result: Result, code: int = 2) -> str:
    """The message of a failed command: one or two lines (below click's own usage), no traceback."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    message = re.split(r"^error: |^Error: ", result.stderr, maxsplit=1, flags=re.MULTILINE)[1]
    assert len(message.strip().splitlines()) <= 2
    return message
