"""Files that survive: append-only CSV logs, spooled maps, and writing by rename.

A log's row counts once its newline is on disk: what a crash leaves of a record is not read, and it is cut off
before the next row is written. An image that gets another score later has a second row; reading merges such
rows, and the value that was there first stays. :meth:`Table.compact` writes the merged table.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

import numpy as np

from camkit.csv_text import csv_line
from camkit.errors import CamkitError, RunError

# Names of files that are no valid UTF-8 survive the way through a CSV.
UTF8, ODD_NAMES = "utf-8", "surrogateescape"
# Kept of a deletion or insertion curve, if not all: enough for a picture, no more bytes than its CSV row.
CURVE_POINTS = 29

Row = dict[str, str]
Key = tuple[str, ...]


def number(value: float) -> str:
    """Nine significant digits: a float32 comes back exactly."""
    return format(value, ".9g")


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
            _append(temporary, data)
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


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


def _append(path: Path, data: bytes) -> None:
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
    """Columns and rows of several logs together, one row a key; the first value of a field stays."""
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


NONE: frozenset[str] = frozenset()
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
        fields = frozenset(name for name, value in row.items() if value) | known.get(key, NONE)
        known[_KEYS.setdefault(key, key)] = _FIELDS.setdefault(fields, fields)

    def has(self, key: Key, columns: Iterable[str] = ()) -> bool:
        """Whether there is a row, and it has a value in every one of `columns`."""
        if key not in self.known and key not in self.elsewhere:
            return False
        return (self.known.get(key, NONE) | self.elsewhere.get(key, NONE)).issuperset(columns)

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
            _append(self.path, render(self.columns, new, header=empty))
        for row in new:
            self._learn(row, self.known)

    def compact(self, order: Mapping[str, int], without: Container[Key] = ()) -> None:
        """Rewrite the file: one row a key, in the order of its images, `also` included; no rows, no file.

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


class Maps:
    """The signed maps of a cell (`--save-maps`): spooled batch by batch, one `.npz` at the end.

    The `.npz` holds `images` (N,), the names, and `maps` (N, h, w), float32, before ReLU.

    In memory are the names of the images that have a map, `names`; the maps stay on disk.

    Args:
        also: the `.npz` paths of other runs' maps of the same cell, which need not be made again.
    """

    def __init__(self, path: Path, also: Iterable[Path] = ()) -> None:
        self.path = path
        self.spool = path.with_suffix(".maps")
        self.also = list(also)
        self._mended = False
        self.reload()

    def reload(self) -> None:
        """Read again which images have a map."""
        self.names: set[str] = set()
        for path in (self.path, *self.also):
            if path.exists():
                with np.load(path, allow_pickle=False) as saved:
                    self.names.update(saved["images"].tolist())
            self.names.update(_scan_spool(path.with_suffix(".maps"))[0])

    def append(self, images: Sequence[str], maps: np.ndarray) -> None:
        """Add maps (N, h, w); they are on disk when this returns."""
        if not self._mended:
            _cut_torn_end(self.spool)
            self._mended = True
        _spool(self.spool, images, maps)
        self.names.update(images)

    def read(self, images: Container[str] | None = None) -> dict[str, np.ndarray]:
        """Image -> map (h, w), of `images` only where given; the finished stands above the spooled."""
        maps: dict[str, np.ndarray] = {}
        for path in (self.path, *self.also):
            found = _read_spool(path.with_suffix(".maps"))
            if path.exists():
                with np.load(path, allow_pickle=False) as saved:
                    found |= dict(zip(saved["images"].tolist(), saved["maps"], strict=True))
            maps = found | maps
        return maps if images is None else {name: one for name, one in maps.items() if name in images}

    def finish(self, order: Mapping[str, int]) -> None:
        """Write the `.npz`, in the order of the run's images; nothing where it has all of them already."""
        news = (self.spool, *self.also, *(path.with_suffix(".maps") for path in self.also))
        if self.path.exists() and not any(path.exists() for path in news):
            return
        maps = self.read() if self.names else {}
        if not maps:  # none were made, or the folder is gone: then what ended the run says so
            return
        names = sorted(maps, key=lambda name: (order.get(name, len(order)), name))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=np.array(names), maps=np.stack([maps[name] for name in names]))
        write_atomically(self.path, buffer.getvalue())
        self.spool.unlink(missing_ok=True)


class Curves:
    """The curves of a cell under one metric: appended batch by batch, at the end one array.

    An image that is there twice (its row never reached the disk) counts once.

    Args:
        also: the paths of other runs' curves of the same cell.
    """

    def __init__(self, path: Path, also: Iterable[Path] = ()) -> None:
        self.path = path
        self.also = list(also)
        _cut_torn_end(path)

    def append(self, images: Sequence[str], curves: np.ndarray) -> None:
        """Add curves (N, points); they are on disk when this returns."""
        _spool(self.path, images, curves)

    def finish(self, order: Mapping[str, int]) -> None:
        """Write the curves in the order of the run's images, `also` included, each image once."""
        curves: dict[str, np.ndarray] = {}
        for path in (*reversed(self.also), self.path):
            curves |= read_curves(path)
        names = sorted(curves, key=lambda name: (len(curves[name]), order.get(name, len(order)), name))
        # Whole curves and thinned ones, where a run had both, stand in arrays of their own.
        data = b"".join(
            _packed(list(group), np.stack([curves[name] for name in group]))
            for group in (list(found) for _, found in groupby(names, key=lambda name: len(curves[name])))
        )
        if data and (not self.path.exists() or self.path.read_bytes() != data):
            write_atomically(self.path, data)


def curve_paths(folder: Path, method: str) -> list[Path]:
    """The files of curves of a cell; `method` as in its file's name."""
    return sorted(path for path in folder.glob("*_curve") if path.name.startswith(f"{method}."))


def read_curves(path: Path) -> dict[str, np.ndarray]:
    """Image -> curve (points,), p_c at the start and after each step; empty without a file."""
    return _read_spool(path)


def thin(curves: np.ndarray) -> np.ndarray:
    """At most :data:`CURVE_POINTS` evenly spaced points of curves (N, points), ends included, as float16."""
    points = curves.shape[1]
    kept = np.round(np.linspace(0, points - 1, min(points, CURVE_POINTS))).astype(int)
    return curves[:, kept].astype(np.float16)


def _packed(images: Sequence[str], arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(images))
    np.save(buffer, arrays)
    return buffer.getvalue()


def _spool(path: Path, images: Sequence[str], arrays: np.ndarray) -> None:
    with writing(path):
        _append(path, _packed(images, arrays))


def _cut_torn_end(path: Path) -> None:
    if path.exists():
        with writing(path):
            os.truncate(path, _scan_spool(path)[1])


def _read_spool(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a spool, of whole batches."""
    arrays: dict[str, np.ndarray] = {}
    if path.exists():
        with path.open("rb") as file, suppress(EOFError, ValueError, OSError):  # its torn end
            while True:
                names = np.load(file, allow_pickle=False)
                arrays |= dict(zip(names.tolist(), np.load(file, allow_pickle=False), strict=True))
    return arrays


def _scan_spool(path: Path) -> tuple[list[str], int]:
    """The names in a spool, and where its last whole batch ends; the arrays are skipped, not read."""
    names: list[str] = []
    end = 0
    if path.exists():
        size = path.stat().st_size
        with path.open("rb") as file, suppress(EOFError, ValueError, OSError):  # its torn end
            while True:
                images = np.load(file, allow_pickle=False).tolist()
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if file.seek(math.prod(shape) * dtype.itemsize, io.SEEK_CUR) > size:
                    break
                names += images
                end = file.tell()
    return names, end
