"""Where an image's bytes come from. Sources are small, can be pickled, and hold no open file.

A file is opened for every read: that costs some microseconds, and worker processes share nothing.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from camkit.errors import CamkitError

# More than any photo within PIL's limit of pixels takes, and less than what fills the memory.
MAX_BYTES = 2**30


@dataclass(frozen=True, order=True)
class TarMember:
    """A member of an uncompressed tar: `size` bytes from `offset` on."""

    archive: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            found = file.read(self.size)
        if len(found) < self.size:
            raise CamkitError(f"{self.archive.name} ends before the image does: the archive has changed")
        return found


@dataclass(frozen=True, order=True)
class ParquetRow:
    """A row of one row group of a parquet file; `column` holds bytes, alone or in the field `bytes`."""

    path: Path
    group: int
    row: int
    column: str

    def read_bytes(self) -> bytes:
        try:
            found = _column(self.path, self.group, self.column)[self.row].as_py()
        except OSError:
            raise
        except Exception as error:  # pyarrow raises nearly anything on a damaged file
            raise CamkitError(f"{self.path.name} cannot be read: {error}") from error
        if isinstance(found, dict):
            found = found.get("bytes")
        if found is None:
            raise CamkitError("the row holds no image")
        return found


@dataclass(frozen=True, order=True)
class Mosaic:
    """Photos set side by side, in raster order: `side` x `side` of them."""

    parts: tuple[Path | TarMember | ParquetRow, ...]
    side: int


Photo = Path | TarMember | ParquetRow
Source = Photo | Mosaic


@lru_cache(maxsize=1)
def _column(path: Path, group: int, column: str):  # type: ignore[no-untyped-def]  # pyarrow has no types
    """One column of a row group: parquet cannot give less. The last one is kept for images read in order."""
    import pyarrow.parquet

    # Threads of pyarrow's own would not survive the fork of a worker process.
    return pyarrow.parquet.ParquetFile(path).read_row_group(group, [column], use_threads=False)[column]


def read_bytes(source: Photo) -> bytes:
    """All bytes of an image file.

    Raises:
        CamkitError: it is empty, larger than 1 GiB, or no regular file (a pipe would block for ever).
        OSError: it cannot be read.
    """
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise CamkitError("no regular file")
    if isinstance(source, Path | TarMember) and size(source) > MAX_BYTES:
        raise CamkitError(f"too large: {size(source)} bytes, the limit is {MAX_BYTES}")
    found = source.read_bytes()
    if not found:
        raise CamkitError("empty: 0 bytes")
    return found


def size(source: Source) -> int:
    """Bytes of the image; in a parquet file, where that would mean to read it, of the file."""
    if isinstance(source, Mosaic):
        return sum(map(size, source.parts))
    if isinstance(source, TarMember):
        return source.size
    path = source.path if isinstance(source, ParquetRow) else source
    return path.stat().st_size


def parts_of(source: Source) -> tuple[Photo, ...]:
    """The photos that an image is made of: itself, or a mosaic's."""
    return source.parts if isinstance(source, Mosaic) else (source,)
