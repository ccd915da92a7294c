"""Arrays per image that survive: saved maps and curves, spooled batch by batch."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np

from camkit.results.files import append, write_atomically, writing

# Kept of a deletion or insertion curve, if not all: enough for a picture, no more bytes than its CSV row.
CURVE_POINTS = 29


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
        append(path, _packed(images, arrays))


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
