"""Append-only CSV logs.

A log's row counts once its newline is on disk: what a crash leaves of a record is not read, and it is cut off
before the next row is written. An image that gets another score later has a second row; reading merges such
rows, and the value that was there first stays. :meth:`Table.compact` writes the merged table.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from camkit.errors import CamkitError
from camkit.results.files import ODD_NAMES, UTF8, append, write_atomically, writing


def csv_line(values: Iterable[Any]) -> str:
    r"""One line that ends with `\n`; None is an empty field.

    A value with a carriage return is quoted: Python's writer, told to end lines with `\n`, would not do that
    before 3.13, and a reader would take the rest of the value for the next line.
    """
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerow(values)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


Row = dict[str, str]
Key = tuple[str, ...]


def number(value: float) -> str:
    """Nine significant digits: a float32 comes back exactly."""
    return format(value, ".9g")


def complete(data: bytes) -> bytes:
    """CSV text without what a crash left of its last record.

    A record ends with a newline outside quotes: one with an even number of quotes before it.
    """
    end = data.rfind(b"\n") + 1
    while data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return data[:end]


def read_fields(path: Path) -> tuple[list[str], list[list[str]]]:
    """Columns of a log and its rows as lists, as they stand; a torn end and damaged rows are left out.

    Raises:
        CamkitError: it is no CSV.
    """
    try:
        text = complete(path.read_bytes()).decode(UTF8, ODD_NAMES)
        records = csv.reader(io.StringIO(text, newline=""))
        header = next(records, [])
        body = [record for record in records if len(record) == len(header)]
    except FileNotFoundError:
        return [], []
    except csv.Error as error:
        raise CamkitError(
            f"{path} is damaged ({error}): move it away, and its rows are made again"
        ) from error
    if "\0" in text:  # a block that never reached the disk before a power loss reads as zeros
        body = [record for record in body if "\0" not in "".join(record)]
    return header, body


def read_records(path: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows of a log, see :func:`read_fields`."""
    header, records = read_fields(path)
    return header, [dict(zip(header, record, strict=True)) for record in records]


def merge_rows(paths: Iterable[Path], keys: Sequence[str] = ("image",)) -> tuple[list[str], dict[Key, Row]]:
    """Columns and rows of several logs together, one row per key; the first value of a field stays."""
    columns: dict[str, None] = {}
    rows: dict[Key, Row] = {}
    for path in paths:
        header, records = read_records(path)
        columns |= dict.fromkeys(header)
        for record in records:
            row = rows.setdefault(tuple(record[key] for key in keys), record)
            if row is not record:
                row.update({name: value for name, value in record.items() if value and not row.get(name)})
    return list(columns), rows


def render(columns: Sequence[str], rows: Iterable[Mapping[str, str]], header: bool = True) -> bytes:
    """Rows as CSV."""
    lines = [csv_line(columns)] if header else []
    lines += [csv_line(row.get(column, "") for column in columns) for row in rows]
    return "".join(lines).encode(UTF8, ODD_NAMES)


NO_FIELDS: frozenset[str] = frozenset()
# One object for what is equal: thousands of images have the same few sets of fields in hundreds of tables.
_KEYS: dict[Key, Key] = {}
_FIELDS: dict[frozenset[str], frozenset[str]] = {}


class Table:
    """An append-only CSV file whose rows are merged by a key when it is read.

    Args:
        columns: in the order of the file; those that only the file has come behind them.
        keys: columns that identify a row.
        also: other logs of the same table, whose rows need not be written again.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], keys: Sequence[str] = ("image",), also: Iterable[Path] = ()
    ) -> None:
        self.path = path
        self.keys = keys
        self.also = list(also)
        self.columns = list(dict.fromkeys([*columns, *read_records(path)[0]]))
        self._mended = False
        self.reload()

    def _mend(self) -> None:
        """Cut off a torn end, and give the file all columns: what is appended stands behind whole rows."""
        if self.path.exists():
            data = self.path.read_bytes()
            whole = complete(data)
            if len(whole) < len(data):
                with writing(self.path):
                    os.truncate(self.path, len(whole))
            if read_records(self.path)[0] not in ([], self.columns):
                self._write(merge_rows([self.path], self.keys)[1].values())
        self._mended = True

    def reload(self) -> None:
        """Read again which fields have a value, here (`known`) and in `also` (`elsewhere`)."""
        self.known: dict[Key, frozenset[str]] = {}
        self.elsewhere: dict[Key, frozenset[str]] = {}
        for path in (self.path, *self.also):
            for row in read_records(path)[1]:
                self._learn(row, self.known if path == self.path else self.elsewhere)

    def _learn(self, row: Mapping[str, str], known: dict[Key, frozenset[str]]) -> None:
        key = tuple(row[name] for name in self.keys)
        fields = frozenset(name for name, value in row.items() if value) | known.get(key, NO_FIELDS)
        known[_KEYS.setdefault(key, key)] = _FIELDS.setdefault(fields, fields)

    @property
    def keys_there(self) -> set[Key]:
        """The keys that have a row, here or elsewhere."""
        return self.known.keys() | self.elsewhere.keys()

    def has(self, key: Key, columns: Iterable[str] = ()) -> bool:
        """Whether there is a row, and it has a value in every one of `columns`."""
        if key not in self.known and key not in self.elsewhere:
            return False
        return (self.known.get(key, NO_FIELDS) | self.elsewhere.get(key, NO_FIELDS)).issuperset(columns)

    def append(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Add rows, save those that bring nothing new; they are on disk when this returns.

        Raises:
            CamkitError: they cannot be written; the file is as it was.
        """
        new = [
            row
            for row in rows
            if not self.has(tuple(row[name] for name in self.keys), (name for name in row if row[name]))
        ]
        if not new:
            return
        if not self._mended:
            self._mend()
        with writing(self.path):
            empty = not self.path.exists() or self.path.stat().st_size == 0
            append(self.path, render(self.columns, new, header=empty))
        for row in new:
            self._learn(row, self.known)

    def compact(self, order: Mapping[str, int], without: Container[Key] = ()) -> None:
        """Rewrite the file: one row per key, in the order of its images, `also` included; no rows, no file.

        Args:
            order: image -> place; images that are not in it come last.
            without: rows to leave out.
        """
        columns, rows = merge_rows([self.path, *self.also], self.keys)
        self.columns = list(dict.fromkeys([*self.columns, *columns]))
        kept = [key for key in rows if key not in without]
        if not kept:
            with writing(self.path):
                self.path.unlink(missing_ok=True)
            return

        def place(key: Key) -> tuple:
            return tuple(
                (order.get(value, len(order)), value) if name == "image" else value
                for name, value in zip(self.keys, key, strict=True)
            )

        self._write(rows[key] for key in sorted(kept, key=place))

    def _write(self, rows: Iterable[Row]) -> None:
        data = render(self.columns, rows)
        if not self.path.exists() or self.path.read_bytes() != data:
            write_atomically(self.path, data)
