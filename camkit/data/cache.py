"""The pixel cache: decoded, cropped uint8 pixels on disk, shared by models, runs and processes."""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import lmdb
import numpy as np
import PIL
import torch
from torch import Tensor

from camkit.errors import CamkitError

# Of an entry: <u4 checksum of key and rest, <u2 height, <u2 width, the pixels. Part of the key: entries of
# another format are not found.
FORMAT = 2
# Address space, not disk: the file grows with what is in it (7.6 GB for the 50,000 validation images).
MAP_SIZE = 1 << 40


class PixelCache:
    """Crops by the content of the image file and the recipe that made them.

    An LMDB environment: any number of runs read and write it at once, and one that is killed leaves either
    a whole crop or none. Not for network file systems, whose memory maps are not coherent.

    Args:
        folder: made if it does not exist.
        recipe: names the cropping; another recipe, or another version of PIL, has entries of its own.
    """

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder = folder
        self.recipe = f"format {FORMAT}; {recipe}; PIL {PIL.__version__}".encode()
        self._environment: lmdb.Environment | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_environment": None}  # every process opens its own

    @property
    def environment(self) -> lmdb.Environment:
        """The open environment.

        Raises:
            CamkitError: the folder cannot be used, or its file is cut short.
        """
        if self._environment is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                environment = lmdb.open(str(self.folder), map_size=_map_size(), max_readers=1024)
                self._check_length(environment)
                environment.reader_check()  # forget the readers of killed processes
            except (lmdb.Error, OSError) as error:
                raise self._error(error) from error
            self._environment = environment
        return self._environment

    def check(self) -> None:
        """Open and close: a cache that cannot be used is an error here, before worker processes start.

        Raises:
            CamkitError: see :attr:`environment`.
        """
        assert self.environment
        self.close()  # an open environment must not be carried through a fork

    def _check_length(self, environment: lmdb.Environment) -> None:
        """Of a file that ends too early the missing pages cannot be read: the system kills who tries."""
        used = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if (self.folder / "data.mdb").stat().st_size < used:
            environment.close()
            raise CamkitError(
                f"--cache {self.folder}: damaged, its file is cut short: remove the folder; it is filled anew"
            )

    def _error(self, error: Exception) -> CamkitError:
        said = f"--cache {self.folder}: {error}"
        if isinstance(error, lmdb.MapFullError) or "Cannot allocate memory" in str(error):
            return CamkitError(
                f"{said}\nThe cache is mapped into the process's address space, and that is limited to "
                f"{_map_size() / 1e9:.0f} GB here: raise the limit (ulimit -v), or leave --cache out."
            )
        if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
            return CamkitError(f"{said}\nIt is damaged: remove the folder; it is filled anew.")
        return CamkitError(said)

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def key(self, file: bytes) -> bytes:
        """Key of an image file's crop, from the file's content."""
        return hashlib.blake2b(file, key=hashlib.sha256(self.recipe).digest(), digest_size=20).digest()

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Crops, uint8 (3, H, W); None for those that are not there, or are damaged.

        Raises:
            CamkitError: the cache as a whole is damaged or cannot be opened.
        """
        try:
            with self.environment.begin() as transaction:
                return [_unpack(key, transaction.get(key)) for key in keys]
        except lmdb.Error as error:
            raise self._error(error) from error

    def put(self, crops: Mapping[bytes, Tensor]) -> None:
        """Store crops in the place of what is there, all or none of them.

        Raises:
            CamkitError: the disk is full or the folder cannot be written.
        """
        if not crops:
            return
        try:
            with self.environment.begin(write=True) as transaction:
                for key, crop in crops.items():
                    transaction.put(key, _pack(key, crop))
        except lmdb.Error as error:
            raise self._error(error) from error


def _map_size() -> int:
    """Bytes of address space for the map; an eighth where it is limited (`ulimit -v`): passes need some."""
    if sys.platform == "win32":
        return MAP_SIZE
    from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

    limit, _ = getrlimit(RLIMIT_AS)
    return MAP_SIZE if limit == RLIM_INFINITY else min(MAP_SIZE, limit // 8)


def _pack(key: bytes, crop: Tensor) -> bytes:
    data = np.array(crop.shape[1:], dtype="<u2").tobytes() + crop.numpy().tobytes()
    return _checksum(key, data) + data


def _unpack(key: bytes, value: bytes | None) -> Tensor | None:
    if value is None or value[:4] != _checksum(key, value[4:]):
        return None
    height, width = np.frombuffer(value[4:8], dtype="<u2").tolist()
    return torch.frombuffer(bytearray(value[8:]), dtype=torch.uint8).view(3, height, width)


def _checksum(key: bytes, data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32(key)).to_bytes(4, "little")
