"""Where in an image something is: boxes, masks, a tile of a mosaic."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from camkit.data.sources import read_bytes
from camkit.errors import CamkitError

Box = tuple[float, float, float, float]
Size = tuple[int, int]  # width, height
DISTORTED = 0.02  # by which proportions of two sizes of a photo may differ, for rounding
IGNORED = 1000


@dataclass(frozen=True)
class Boxes:
    """Boxes (x1, y1, x2, y2) in pixels of the stored photo, edges included: x from x1 to x2.

    Attributes:
        size: of the photo that they were drawn on, where that may be another one than the file's.
    """

    boxes: tuple[Box, ...]
    size: Size | None = None

    def draw(self, size: Size) -> Image.Image:
        """White on black, mode L.

        Raises:
            CamkitError: a box is empty or lies outside the photo, or they were drawn on a photo of other
                proportions.
        """
        width, height = self.size or size
        if abs(width * size[1] / (height * size[0]) - 1) > DISTORTED:
            raise CamkitError(
                f"the boxes were drawn on a photo of {width}x{height}, and this one is stored as "
                f"{size[0]}x{size[1]}"
            )
        across, down = size[0] / width, size[1] / height
        drawn = Image.new("L", size)
        for x1, y1, x2, y2 in self.boxes:
            if not (0 <= x1 <= x2 < width + 1 and 0 <= y1 <= y2 < height + 1):
                raise CamkitError(
                    f"the box {x1:g},{y1:g},{x2:g},{y2:g} does not lie in the photo of {width}x{height}"
                )
            columns, rows = _pixels(x1, x2, across, size[0]), _pixels(y1, y2, down, size[1])
            ImageDraw.Draw(drawn).rectangle((columns[0], rows[0], columns[1], rows[1]), fill=255)
        return drawn


def _pixels(first: float, last: float, scale: float, side: int) -> tuple[int, int]:
    """The first and the last pixel of a box's side in a photo of another scale, within the photo."""
    begin = min(round(first * scale), side - 1)
    return begin, max(begin, min(round((last + 1) * scale) - 1, side - 1))


@dataclass(frozen=True)
class MaskFile:
    """A PNG mask of the photo's size: whatever is not 0 is inside; transparency does not count.

    In a mask of three channels, ImageNet-S's encoding, the segment's number is R + 256 G, and 1000 is
    ignored.
    """

    source: Path

    @property
    def name(self) -> str:
        return self.source.name

    def draw(self, size: Size) -> Image.Image:
        """White on black, mode L.

        Raises:
            CamkitError: it cannot be read, has another size, or nothing in it is inside.
        """
        try:
            with Image.open(io.BytesIO(read_bytes(self.source))) as mask:
                values = np.asarray(mask)
        except CamkitError as error:
            raise CamkitError(f"the mask {self.name}: {error}") from error
        except UnidentifiedImageError as error:
            raise CamkitError(f"the mask {self.name} cannot be read: it is no image") from error
        except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
            raise CamkitError(f"the mask {self.name} cannot be read: {error}") from error
        if values.ndim == 3 and values.shape[2] > 2:
            values = values[..., 0] + 256 * values[..., 1].astype(np.int64)
            values = np.where(values == IGNORED, 0, values)
        elif values.ndim == 3:  # grey, with transparency
            values = values[..., 0]
        if values.shape != (size[1], size[0]):
            raise CamkitError(
                f"the mask {self.name} has {values.shape[1]}x{values.shape[0]} pixels, the photo "
                f"{size[0]}x{size[1]}"
            )
        inside = values != 0
        if not inside.any():
            raise CamkitError(f"the mask {self.name} is empty")
        return Image.fromarray(inside.astype(np.uint8) * 255)


@dataclass(frozen=True)
class Tile:
    """One tile of a mosaic of `side` x `side`, by its number in raster order."""

    side: int
    number: int

    def draw(self, size: Size) -> Image.Image:
        """White on black, mode L; the size is the whole mosaic's."""
        width, height = size[0] // self.side, size[1] // self.side
        row, column = divmod(self.number, self.side)
        drawn = Image.new("L", size)
        drawn.paste(255, (column * width, row * height, (column + 1) * width, (row + 1) * height))
        return drawn


Region = Boxes | MaskFile | Tile
