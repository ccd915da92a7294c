"""The pixel cache: decoded, cropped uint8 pixels on disk, shared by models, runs and processes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import lmdb
import numpy as np
import PIL
import torch
from torch import Tensor

from camkit.errors import CamkitError

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
        self.recipe = f"{recipe}; PIL {PIL.__version__}".encode()
        self._environment: lmdb.Environment | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_environment": None}  # every process opens its own

    @property
    def environment(self) -> lmdb.Environment:
        if self._environment is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._environment = lmdb.open(str(self.folder), map_size=MAP_SIZE, max_readers=1024)
                self._environment.reader_check()  # forget the readers of killed processes
            except (lmdb.Error, OSError) as error:
                raise CamkitError(f"--cache {self.folder}: {error}") from error
        return self._environment

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def key(self, file: bytes) -> bytes:
        """Key of an image file's crop, from the file's content."""
        return hashlib.blake2b(file, key=hashlib.sha256(self.recipe).digest(), digest_size=20).digest()

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Crops, uint8 (3, H, W); None for those that are not there."""
        with self.environment.begin() as transaction:
            return [_unpack(transaction.get(key)) for key in keys]

    def put(self, crops: Mapping[bytes, Tensor]) -> None:
        """Store crops, all or none of them.

        Raises:
            CamkitError: the disk is full or the folder cannot be written.
        """
        if not crops:
            return
        try:
            with self.environment.begin(write=True) as transaction:
                for key, crop in crops.items():
                    transaction.put(
                        key, np.array(crop.shape[1:], dtype="<u2").tobytes() + crop.numpy().tobytes()
                    )
        except lmdb.Error as error:
            raise CamkitError(f"--cache {self.folder}: {error}") from error


def _unpack(value: bytes | None) -> Tensor | None:
    if value is None:
        return None
    height, width = np.frombuffer(value[:4], dtype="<u2").tolist()
    return torch.frombuffer(bytearray(value[4:]), dtype=torch.uint8).view(3, height, width)
