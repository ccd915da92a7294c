"""Image file -> uint8 crop -> normalised batch; and the data loader that feeds the loop."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from camkit.data import Item
from camkit.errors import CamkitError
from camkit.stop import STOP_SIGNALS

# Sixteen bits or more a channel: PIL's own conversion to RGB would clip everything above 255 to white.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")

PAPER_CROP = Compose(
    [Resize(256, InterpolationMode.BILINEAR, antialias=True), CenterCrop(224), PILToTensor()]
)


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes what the model sees.

    Attributes:
        crop: PIL RGB image -> uint8 (3, H, W).
        mean, std: per channel, in units of [0, 1].
    """

    name: str
    crop: Callable[[Image.Image], Tensor] = field(compare=False)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def describe(self) -> str:
        """One line that decides equality of two preprocessings; kept in run.json."""
        steps = ", ".join(str(step) for step in getattr(self.crop, "transforms", [self.crop]))
        return f"{self.name}: {steps}; mean {list(self.mean)}, std {list(self.std)}"

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32, channels last in memory."""
        mean, std = self._statistics(pixels.device)
        images = (pixels.float() / 255 - mean) / std
        return images.contiguous(memory_format=torch.channels_last)

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`, in [0, 1] where `images` came from pixels."""
        mean, std = self._statistics(images.device)
        return images * std + mean

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        return mean, torch.tensor(self.std, device=device).view(1, 3, 1, 1)


def read_rgb(path: Path) -> Image.Image:
    """Open any photo as 8-bit RGB.

    CMYK, palette and grey images are converted; transparency is dropped; 16-bit grey is scaled to 8 bits;
    orientation in EXIF is ignored, as the paper's loader ignores it.

    Raises:
        CamkitError: the file is missing, empty, truncated, no image, or too large (PIL's limit).
    """
    try:
        with warnings.catch_warnings():
            # Palettes with transparency and very large (but allowed) images: both are handled here.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if image.mode in DEEP_MODES:
                    grey = np.asarray(image).astype(np.float64) / 257
                    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
                if image.mode == "P" and "transparency" in image.info:
                    return image.convert("RGBA").convert("RGB")
                return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise CamkitError(f"too large: {error}") from error
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = reason.replace(repr(os.fspath(path)), "the file").replace(os.fspath(path), "the file")
        raise CamkitError(f"cannot be read: {reason or type(error).__name__}") from error


@dataclass(frozen=True)
class Batch:
    """One batch on its way to the network: the images that could be read, and those that could not."""

    items: tuple[Item, ...]
    pixels: Tensor | None  # uint8 (B, 3, H, W); None where no image could be read
    errors: tuple[tuple[Item, str], ...]


class _Crops(Dataset):
    """Whole batches of decoded crops; runs in the loader's worker processes."""

    def __init__(self, chunks: Sequence[Sequence[Item]], crop: Callable[[Image.Image], Tensor]) -> None:
        self.chunks = chunks
        self.crop = crop

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Batch:
        items, crops, errors = [], [], []
        for item in self.chunks[index]:
            try:
                crops.append(self.crop(read_rgb(item.path)))
                items.append(item)
            except CamkitError as error:
                errors.append((item, str(error)))
        return Batch(tuple(items), torch.stack(crops) if crops else None, tuple(errors))


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A signal to the whole group (Ctrl-C, a scheduler) is the run's business: it ends its workers itself.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def batches(
    items: Sequence[Item], preprocess: Preprocess, batch_size: int, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """Decode `items` in order, `batch_size` at a time, in `workers` processes (0: in this one)."""
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    loader = DataLoader(
        _Crops(chunks, preprocess.crop),
        batch_size=None,
        num_workers=min(workers, len(chunks)),
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )
    yield from loader


def pad(images: Tensor, size: int) -> Tensor:
    """Repeat the last image until the batch has `size`: every pass has one shape.

    Results on one machine then do not depend, to the last bit, on which images share a batch.
    """
    missing = size - len(images)
    if missing == 0:
        return images
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
