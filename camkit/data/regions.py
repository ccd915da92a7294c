"""Where in an image something is: boxes, masks, a tile of a mosaic."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from camkit.data.sources import Photo, read_bytes
from camkit.errors import CamkitError

Size = tuple[int, int]  # width, height
IGNORED = 1000


@dataclass(frozen=True)
class Boxes:
    """Boxes (x1, y1, x2, y2) in pixels of the stored photo, edges included: x from x1 to x2.

    Attributes:
        size: of the photo that they were drawn on, where that may be another one than the file's.
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    size: Size | None = None

    def draw(self, size: Size) -> Image.Image:
        """White on black, mode L.

        Raises:
            CamkitError: a box is empty or lies outside the photo.
        """
        width, height = self.size or size
        across, down = size[0] / width, size[1] / height
        drawn = Image.new("L", size)
        for x1, y1, x2, y2 in self.boxes:
            if not (0 <= x1 <= x2 < width + 1 and 0 <= y1 <= y2 < height + 1):
                raise CamkitError(
                    f"the box {x1:g},{y1:g},{x2:g},{y2:g} does not lie in the photo of {width}x{height}"
                )
            corners = (x1 * across, y1 * down, min(x2 * across, size[0] - 1), min(y2 * down, size[1] - 1))
            ImageDraw.Draw(drawn).rectangle(tuple(round(corner) for corner in corners), fill=255)
        return drawn


@dataclass(frozen=True)
class MaskFile:
    """A PNG mask of the photo's size: whatever is not 0 is inside.

    In a mask of three channels, ImageNet-S's encoding, the segment's number is R + 256 G, and 1000 is
    ignored.
    """

    source: Photo

    def draw(self, size: Size) -> Image.Image:
        """White on black, mode L.

        Raises:
            CamkitError: it cannot be read, has another size, or nothing in it is inside.
        """
        try:
            with Image.open(io.BytesIO(read_bytes(self.source))) as mask:
                values = np.asarray(mask)
        except CamkitError:
            raise
        except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
            raise CamkitError(f"the mask {self.source} cannot be read: {error}") from error
        if values.ndim == 3:
            values = values[..., 0].astype(np.int64) + 256 * values[..., 1]
            values = np.where(values == IGNORED, 0, values)
        if values.shape != (size[1], size[0]):
            raise CamkitError(
                f"the mask {self.source} has {values.shape[1]}x{values.shape[0]} pixels, the photo "
                f"{size[0]}x{size[1]}"
            )
        inside = values != 0
        if not inside.any():
            raise CamkitError(f"the mask {self.source} is empty")
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
