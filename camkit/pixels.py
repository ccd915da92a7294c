"""Image file -> uint8 crop -> normalised batch; and the data loader that feeds the loop."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from camkit.cache import PixelCache
from camkit.data import Item
from camkit.data.sources import Source, read_bytes
from camkit.errors import CamkitError

# Sixteen bits or more a channel: PIL's own conversion to RGB would clip everything above 255 to white.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# A strip as long as that, its short side enlarged to 256, takes 200 MB; longer ones fill the memory.
MAX_ASPECT = 1000

# Batches that each worker decodes ahead: torch's default, named because shared memory is computed from it.
PREFETCH = 2
# Seconds for one batch; a worker that is silent for longer will say nothing any more.
TIMEOUT = 600
# Where batches of worker processes travel on Linux.
SHARED_MEMORY = Path("/dev/shm")

PAPER_CROP = Compose(
    [Resize(256, InterpolationMode.BILINEAR, antialias=True), CenterCrop(224), PILToTensor()]
)


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes what the model sees.

    Attributes:
        crop: PIL RGB image -> uint8 (3, H, W).
        mean, std: per channel, in units of [0, 1].
        orient: turn photos as their EXIF data say.
    """

    name: str
    crop: Callable[[Image.Image], Tensor] = field(compare=False)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    orient: bool = False

    def pixels(self, data: bytes) -> Tensor:
        """The crop of a photo by its file's content, uint8 (3, H, W).

        Raises:
            CamkitError: it cannot be decoded, see :func:`decode`.
        """
        return self.crop(decode(data, self.orient))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, H, W) of every crop."""
        channels, height, width = self.crop(Image.new("RGB", (512, 512))).shape
        return channels, height, width

    def describe_pixels(self) -> str:
        """One line that decides equality of two preprocessings' crops."""
        steps = ", ".join(str(step) for step in getattr(self.crop, "transforms", [self.crop]))
        return ("turned by EXIF, " if self.orient else "") + steps

    def describe(self) -> str:
        """One line that decides equality of two preprocessings; kept in run.json."""
        return f"{self.name}: {self.describe_pixels()}; mean {list(self.mean)}, std {list(self.std)}"

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32, channels last in memory."""
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

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        return mean, torch.tensor(self.std, device=device).view(1, 3, 1, 1)


def read_file(source: Source) -> bytes:
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


@dataclass(frozen=True)
class Batch:
    """One batch on its way to the network: the images that could be read, and those that could not."""

    items: tuple[Item, ...]
    pixels: Tensor | None  # uint8 (B, 3, H, W); None where no image could be read
    errors: tuple[tuple[Item, str], ...]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies while it works; called by the loader."""
        return self if self.pixels is None else replace(self, pixels=self.pixels.pin_memory())


class _Crops(Dataset):
    """Whole batches of decoded crops; runs in the loader's worker processes."""

    def __init__(
        self, chunks: Sequence[Sequence[Item]], preprocess: Preprocess, cache: PixelCache | None
    ) -> None:
        self.chunks = chunks
        self.preprocess = preprocess
        self.cache = cache

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Batch | CamkitError:
        try:
            return self._batch(index)
        except CamkitError as error:
            return error  # raised in a worker, it would come out with the worker's traceback

    def _batch(self, index: int) -> Batch:
        files: dict[Item, bytes] = {}
        crops: dict[Item, Tensor] = {}
        errors = []
        for item in self.chunks[index]:
            try:
                files[item] = read_file(item.source)
            except CamkitError as error:
                errors.append((item, str(error)))
        keys = {item: self.cache.key(file) for item, file in files.items()} if self.cache else {}
        if self.cache:
            cached = self.cache.get(list(keys.values()))
            crops = {item: crop for item, crop in zip(keys, cached, strict=True) if crop is not None}
        fresh = [item for item in files if item not in crops]
        for item in fresh:
            try:
                crops[item] = self.preprocess.pixels(files[item])
            except CamkitError as error:
                errors.append((item, str(error)))
        if self.cache:
            self.cache.put({keys[item]: crops[item] for item in fresh if item in crops})
        items = tuple(item for item in files if item in crops)
        return Batch(items, torch.stack([crops[item] for item in items]) if items else None, tuple(errors))


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A signal to the run's process group (Ctrl-C, a scheduler) is the run's own. To ignore it will not do:
    # by SIGTERM the run itself ends the workers of a loader that an error keeps alive.
    if hasattr(os, "setpgid"):  # Windows has no such groups
        os.setpgid(0, 0)


def batches(
    items: Sequence[Item],
    preprocess: Preprocess,
    batch_size: int,
    workers: int,
    *,
    cache: Path | None = None,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Decode `items` in order, `batch_size` at a time, in `workers` processes (0: in this one).

    The workers are ahead of the one who iterates: the next batches are decoded while this one is used.

    Args:
        cache: folder of a :class:`camkit.cache.PixelCache`.

    Raises:
        CamkitError: the cache cannot be used.
        RuntimeError: a worker process died.
    """
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    store = PixelCache(cache, preprocess.describe_pixels()) if cache else None
    if store:
        store.check()
    workers = affordable_workers(preprocess, batch_size, len(items), workers)
    loader = DataLoader(
        _Crops(chunks, preprocess, store),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        timeout=TIMEOUT if workers else 0,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )
    try:
        for batch in loader:
            if isinstance(batch, CamkitError):
                raise batch
            yield batch
    finally:
        if store:
            store.close()


def affordable_workers(
    preprocess: Preprocess,
    batch_size: int,
    images: int,
    workers: int,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Worker processes, at most one a batch, whose batches fit together into shared memory; 0: none.

    Where they do not fit, worker processes wait for room without end, or are killed.

    Args:
        say: takes the line that says why they are fewer than `workers`.
    """
    chunks = math.ceil(images / batch_size)
    workers = min(workers, chunks)
    if not workers or not SHARED_MEMORY.is_dir():
        return workers
    system = os.statvfs(SHARED_MEMORY)
    # The processes of one machine share the room.
    free = system.f_bavail * system.f_frsize // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    batch = math.prod(preprocess.shape) * min(batch_size, images)
    # On their way, and one that is in use.
    fitting = [count for count in range(1, workers + 1) if min(PREFETCH * count + 1, chunks) * batch <= free]
    fit = max(fitting, default=0)
    if fit < workers:
        say(
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB left, too little for the batches of {workers} workers "
            f"({batch / 1e6:.1f} MB each): {fit or 'none'} will decode. "
            "Give it more (docker run --shm-size=8g), or take a smaller --batch-size."
        )
    return fit


def pad(images: Tensor, size: int) -> Tensor:
    """Repeat the last image until the batch has `size`: every pass has one shape.

    Results on one machine then do not depend, to the last bit, on which images share a batch.
    """
    missing = size - len(images)
    if missing == 0:
        return images
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
