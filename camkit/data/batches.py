"""Decoded batches on their way to the network, by worker processes or in this one."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from camkit.data.cache import PixelCache
from camkit.data.items import Item
from camkit.data.pixels import Preprocess, read_file
from camkit.data.sources import Photo, parts_of
from camkit.errors import CamkitError, Say

# Batches that each worker decodes ahead: torch's default, named because shared memory is computed from it.
PREFETCH = 2
# Seconds for one batch; a worker that is silent for longer will say nothing any more.
TIMEOUT = 600
# Where batches of worker processes travel on Linux.
SHARED_MEMORY = Path("/dev/shm")
# Linux's prctl(2): the signal that this process gets when its parent ends.
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch on its way to the network: the images that could be read, and those that could not.

    Attributes:
        pixels: uint8 (B, 3, H, W); None where no image could be read.
        errors: images that could not be read, and why.
        regions: bool (B, H, W), empty where an image has none; None where no image has one.
        notes: images whose region could not be had, and why.
    """

    items: tuple[Item, ...]
    pixels: Tensor | None
    errors: tuple[tuple[Item, str], ...]
    regions: Tensor | None = None
    notes: tuple[tuple[Item, str], ...] = ()

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
        chunk = self.chunks[index]
        photos = dict.fromkeys(photo for item in chunk for photo in parts_of(item.source))
        files, crops, faults = self._crops(photos)
        images: dict[Item, Tensor] = {}
        regions: dict[Item, Tensor] = {}
        errors, notes = [], []
        for item in chunk:
            parts = parts_of(item.source)
            reason = next((faults[part] for part in parts if part in faults), None)
            if reason is not None:
                errors.append((item, reason))
                continue
            images[item] = self.preprocess.assemble([crops[part] for part in parts])
            if item.region is not None:
                try:
                    regions[item] = self.preprocess.region(item.region, files[parts[0]])
                except CamkitError as error:
                    notes.append((item, str(error)))
        return Batch(tuple(images), _stacked(images), tuple(errors), _aligned(images, regions), tuple(notes))

    def _crops(
        self, photos: Iterable[Photo]
    ) -> tuple[dict[Photo, bytes], dict[Photo, Tensor], dict[Photo, str]]:
        """Files and crops of photos, and why the others have none."""
        files: dict[Photo, bytes] = {}
        crops: dict[Photo, Tensor] = {}
        faults: dict[Photo, str] = {}
        for photo in photos:
            try:
                files[photo] = read_file(photo)
            except CamkitError as error:
                faults[photo] = str(error)
        keys = {photo: self.cache.key(file) for photo, file in files.items()} if self.cache else {}
        if self.cache:
            cached = self.cache.get(list(keys.values()))
            crops = {photo: crop for photo, crop in zip(keys, cached, strict=True) if crop is not None}
        fresh = [photo for photo in files if photo not in crops]
        for photo in fresh:
            try:
                crops[photo] = self.preprocess.pixels(files[photo])
            except CamkitError as error:
                faults[photo] = str(error)
        if self.cache:
            self.cache.put({keys[photo]: crops[photo] for photo in fresh if photo in crops})
        return files, crops, faults


def _stacked(images: Mapping[Item, Tensor]) -> Tensor | None:
    return torch.stack(list(images.values())) if images else None


def _aligned(images: Mapping[Item, Tensor], regions: Mapping[Item, Tensor]) -> Tensor | None:
    """Regions (B, H, W) of the images, empty where an image has none; None where no image has one."""
    if not regions:
        return None
    none = torch.zeros_like(next(iter(regions.values())))
    return torch.stack([regions.get(item, none) for item in images])


def start_worker(_: int) -> None:
    """Called in a loader's worker process before it works: it computes on one core, and ends with its run."""
    torch.set_num_threads(1)
    # A signal to the run's process group (Ctrl-C, a scheduler) is the run's own. To ignore it will not do:
    # by SIGTERM the run itself ends the workers of a loader that an error keeps alive.
    if hasattr(os, "setpgid"):  # Windows has no such groups
        os.setpgid(0, 0)
    # torch notes who the parent is only after this call, and watches that process. Where the run is killed
    # earlier, its worker would watch another one, and live for ever. (The signal comes when the thread ends
    # that started the worker: it is the one that waits for the batches.)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    # Under "forkserver" a worker is a child of the server.
    if parent and multiprocessing.get_start_method() != "forkserver" and os.getppid() != parent.pid:
        os._exit(1)


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
        cache: folder of a :class:`camkit.data.cache.PixelCache`.

    Raises:
        CamkitError: the cache cannot be used.
        RuntimeError: a worker process died.
    """
    chunks = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    store = PixelCache(cache, preprocess.describe_crop()) if cache else None
    if store:
        store.check()
    workers = affordable_workers(preprocess, batch_size, len(items), workers)
    with warnings.catch_warnings():
        # torch counts the machine's cores, and warns of more workers: the command's default counts them
        # better.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            _Crops(chunks, preprocess, store),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            timeout=TIMEOUT if workers else 0,
            pin_memory=pin_memory,
            worker_init_fn=start_worker,
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
    say: Say = lambda line: None,
) -> int:
    """Worker processes, at most one per batch, whose batches fit together into shared memory; 0: none.

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
