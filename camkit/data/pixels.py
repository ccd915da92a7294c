"""Image file -> uint8 crop -> normalised batch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from camkit.data.regions import Region, Tile
from camkit.data.sources import Photo, read_bytes
from camkit.errors import CamkitError

# Sixteen bits or more per channel: PIL's own conversion to RGB would clip everything above 255 to white.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# A strip as long as that, its short side enlarged to 256, takes 200 MB; longer ones fill the memory.
MAX_ASPECT = 1000
ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Cover:
    """Resize a photo, bilinear and in its proportions, until it covers a rectangle."""

    height: int
    width: int

    def __call__(self, photo: Image.Image) -> Image.Image:
        scale = max(self.height / photo.height, self.width / photo.width)
        sides = (max(self.width, round(scale * photo.width)), max(self.height, round(scale * photo.height)))
        return photo.resize(sides, Image.Resampling.BILINEAR)


def crop_to(size: int | tuple[int, int]) -> Compose:
    """The paper's crop, to another size: resized to cover 256/224 of it, bilinear, then the centre.

    Args:
        size: side of a square, or (H, W), in pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = (round(side * 256 / 224) for side in (height, width))
    # Of a square the short side decides.
    resize: Callable = (
        Resize(rows, InterpolationMode.BILINEAR, antialias=True) if rows == columns else Cover(rows, columns)
    )
    return Compose([resize, CenterCrop((height, width)), PILToTensor()])


PAPER_CROP = crop_to(224)


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes what the model sees.

    Attributes:
        crop: PIL RGB image -> uint8 (C, H, W).
        mean, std: per channel, in units of [0, 1]; of one channel the images are grey.
        orient: turn photos as their EXIF data say.
        side: photos along a side of the image; more than one make a mosaic.
    """

    name: str
    crop: Callable[[Image.Image], Tensor] = field(compare=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    orient: bool = False
    side: int = 1

    def pixels(self, data: bytes) -> Tensor:
        """The crop of a photo by its file's content, uint8 (C, H, W).

        Raises:
            CamkitError: it cannot be decoded, see :func:`decode`.
        """
        return self.crop(decode(data, self.orient))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.crop(Image.new("RGB", (512, 512))).shape
        return channels, self.side * height, self.side * width

    def assemble(self, crops: Sequence[Tensor]) -> Tensor:
        """Crops (C, h, w) in raster order as one image (C, H, W)."""
        rows = [torch.cat(list(crops[i : i + self.side]), dim=2) for i in range(0, len(crops), self.side)]
        return torch.cat(rows, dim=1)

    def region(self, region: Region, data: bytes) -> Tensor:
        """Which pixels of an image lie in a region, bool (H, W).

        A region of a photo is drawn on it and takes the photo's way, so that it lies where the photo's pixels
        do.

        Args:
            data: the photo's file.

        Raises:
            CamkitError: the region cannot be read, or nothing of it is left in the crop.
        """
        if isinstance(region, Tile):
            height, width = self.shape[1:]
            drawn = PILToTensor()(region.draw((width, height)))
        else:
            with Image.open(io.BytesIO(data)) as photo:
                mask = region.draw(photo.size)
                if self.orient:
                    mask.getexif()[ORIENTATION] = photo.getexif().get(ORIENTATION, 1)
                    mask = ImageOps.exif_transpose(mask)
            drawn = self.crop(mask)
        inside = drawn[0] >= 128
        if not inside.any():
            raise CamkitError("nothing of the region lies in the crop")
        return inside

    def describe_pixels(self) -> str:
        """One line that decides equality of two preprocessings' images."""
        steps = self.describe_crop()
        mosaic = f"{self.side}x{self.side} of: " if self.side > 1 else ""
        return mosaic + steps

    def describe_crop(self) -> str:
        """One line that decides equality of two preprocessings' crops of one photo."""
        steps = ", ".join(str(step) for step in getattr(self.crop, "transforms", [self.crop]))
        return ("turned by EXIF, " if self.orient else "") + steps

    def describe(self) -> str:
        """One line that decides equality of two preprocessings; kept in run.json."""
        return f"{self.name}: {self.describe_pixels()}; mean {list(self.mean)}, std {list(self.std)}"

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32, channels last in memory."""
        images = pixels.contiguous(memory_format=torch.channels_last).float()
        batch, channels, height, width = images.shape
        # Row by row: runs of three values, a pixel's, are too short for vector instructions.
        rows = images.permute(0, 2, 3, 1).view(batch, height, width * channels)
        mean, std = (one.flatten().repeat(width) for one in self._statistics(images.device))
        rows.div_(255).sub_(mean).div_(std)
        return images

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`, in [0, 1] where `images` came from pixels."""
        mean, std = self._statistics(images.device)
        return images * std + mean

    def rgb(self, images: Tensor) -> Tensor:
        """The same as RGB, (B, 3, H, W), grey ones too."""
        return self.denormalise(images).expand(-1, 3, -1, -1)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, device=device).view(1, -1, 1, 1)
        return mean, torch.tensor(self.std, device=device).view(1, -1, 1, 1)


def shrunk(preprocess: Preprocess) -> Preprocess:
    """The same for mosaics that are no larger than one photo's crop: each crop is reduced (bilinear)."""
    _, height, width = preprocess.shape
    size = (height // preprocess.side**2, width // preprocess.side**2)
    *steps, last = preprocess.crop.transforms  # type: ignore[attr-defined]
    smaller = Resize(size, InterpolationMode.BILINEAR, antialias=True)
    return replace(preprocess, crop=Compose([*steps, smaller, last]))


def read_file(source: Photo) -> bytes:
    """Content of an image file, wherever it lies.

    Raises:
        CamkitError: it is missing, unreadable, empty, too large or no regular file.
    """
    try:
        return read_bytes(source)
    except OSError as error:
        raise CamkitError(f"cannot be read: {error.strerror or error}") from error


def decode(data: bytes, orient: bool = False) -> Image.Image:
    """Any photo as 8-bit RGB.

    CMYK, palette and grey images are converted; transparency is dropped; 16-bit grey is scaled to 8 bits.

    Args:
        orient: turn the photo as its EXIF data say; the paper's loader ignores them.

    Raises:
        CamkitError: it is no image, truncated, too large (PIL's limit) or too narrow.
    """
    try:
        with warnings.catch_warnings():
            # Palettes with transparency and very large (but allowed) images: both are handled here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return _as_rgb(image, orient)
    except CamkitError:
        raise
    except UnidentifiedImageError as error:
        raise CamkitError("cannot be read: no image format that PIL knows") from error
    except Image.DecompressionBombError as error:
        raise CamkitError(f"too large: {error}") from error
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise CamkitError(f"cannot be read: {error or type(error).__name__}") from error


def _as_rgb(image: Image.Image, orient: bool) -> Image.Image:
    short, long = sorted(image.size)
    if long > MAX_ASPECT * short:
        size = "x".join(map(str, image.size))
        raise CamkitError(f"too narrow: {size}, one side is more than {MAX_ASPECT} times the other")
    if image.mode == "F":
        raise CamkitError("its pixels are floating-point numbers, whose range nobody knows")
    if orient:
        image = ImageOps.exif_transpose(image)
    if image.mode in DEEP_MODES:
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
