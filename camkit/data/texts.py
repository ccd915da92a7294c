"""Text files that people hand over: in any usual encoding, tables with any usual separator."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from camkit.errors import UsageError

SEPARATORS = (",", ";", "\t")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 or UTF-16, with or without a byte order mark; line ends stay as they are.

    Bytes that are no UTF-8 come as surrogates, as they do in the names of files.

    Raises:
        UsageError: it cannot be read, or is neither.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    encoding = _encoding(data)
    try:
        return data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: begins as UTF-16 text and is none; save it as UTF-8") from error


def _encoding(data: bytes) -> str:
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Of the Latin letters that a file begins with, UTF-16 makes every other byte zero.
    if data[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if data[:1] == b"\0" else "utf-8"


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a table with a heading, separated by commas, semicolons or tabs.

    Spaces after a separator and around the names of columns do not count, nor does the case of those names.

    Args:
        columns: those that have to be there.
        optional: those that may be.

    Returns:
        Each row's values by column; those of optional columns that are not there are empty.

    Raises:
        UsageError: the file cannot be read, is no table, or lacks a column; the message says which it has.
    """
    text = read_text(path)
    try:
        rows = next((found for mark in SEPARATORS if (found := _rows(text, mark, columns, optional))), None)
        if rows is None:
            raise UsageError(f"{path}: {_what_is_there(text, columns)}")
    except csv.Error as error:
        raise UsageError(f"{path}: no CSV file ({error})") from error
    return rows[1:]


def _rows(
    text: str, separator: str, columns: Sequence[str], optional: Sequence[str]
) -> list[dict[str, str]] | None:
    """The rows, the heading first; None where the heading lacks a column."""
    lines = (line for line in _reader(text, separator) if line)
    heading = [name.strip().lower() for name in next(lines, [])]
    if any(name.lower() not in heading for name in columns):
        return None
    places = {name: heading.index(name.lower()) for name in (*columns, *optional) if name.lower() in heading}
    rows = [{name: name for name in (*columns, *optional)}]
    for line in lines:
        values = {name: line[place] if place < len(line) else "" for name, place in places.items()}
        rows.append(dict.fromkeys(optional, "") | values)
    return rows


def _reader(text: str, separator: str):  # type: ignore[no-untyped-def]  # csv's reader has no type to name
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)


def _what_is_there(text: str, columns: Sequence[str]) -> str:
    headings = (next(filter(None, _reader(text, mark)), None) for mark in SEPARATORS)
    there = [name.strip() for name in max((one for one in headings if one), key=len, default=[])]
    expected = f"expected a CSV file with the columns {','.join(columns)}"
    if not there:
        return f"{expected}; it is empty"
    lower = [name.lower() for name in there]
    absent = next((name for name in columns if name.lower() not in lower), None)
    # With all of them there, but not under one separator, the heading itself says most.
    return f"{expected}; no {absent!r}; its columns: {', '.join(there)}"
