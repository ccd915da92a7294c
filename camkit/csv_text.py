"""CSV lines that any reader takes apart as they were put together."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any


def csv_line(values: Iterable[Any]) -> str:
    r"""One line that ends with `\n`; None is an empty field.

    A value with a carriage return is quoted: Python's writer, told to end lines with `\n`, would not do that
    before 3.13, and a reader would take the rest of the value for the next line.
    """
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerow(values)
    return buffer.getvalue().removesuffix("\r\n") + "\n"
