"""The two sides that scripts/speed.py sets side by side: camkit's own loop, and its floor.

A job is prepared once (the model is loaded, the pixel cache is warm) and can be run again and again.
"""

from __future__ import annotations

import copy
import gc
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from camkit.config import RunConfig
from camkit.data.items import sample_items
from camkit.data.pixels import decode
from camkit.network.numerics import numerics
from camkit.network.prepare import prepare
from camkit.runs.cells import find_methods
from camkit.runs.job import open_run
from camkit.runs.loop import Loop, first_batch_size, load_batches
from camkit.runs.selection import select
from camkit.share import Share

# The sample photos as photos of ImageNet lie on a disk: most of these have a short side of 375 pixels.
SHORT_SIDE, JPEG_QUALITY = 375, 90


@dataclass
class Line:
    """One comparison: `pairs` are (camkit's, the other's) seconds or megabytes, a pair a repetition.

    Attributes:
        promise: in words; empty where nothing was promised.
        limit: what the median ratio is held to; None where nothing was promised.
        inverse: the ratio is other / camkit (a speed-up, at least `limit`) instead of camkit / other.
    """

    case: str
    pairs: list[tuple[float, float]]
    promise: str = ""
    limit: float | None = None
    inverse: bool = False

    @property
    def ratios(self) -> list[float]:
        return [other / ours if self.inverse else ours / other for ours, other in self.pairs]


@dataclass(frozen=True)
class Setting:
    """What all sections share."""

    photos: Path
    folder: Path
    repetitions: int
    threads: int
    device: str = "cpu"


def silent(line: str) -> None:
    """Nobody reads what a job that is being timed says."""


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def write_photos(folder: Path, images: int) -> Path:
    """`images` JPEG files made of the sample photos in turn, each another crop: no two are equal.

    The pixel cache keeps equal files once.
    """
    folder.mkdir()
    samples = [decode(Path(str(item.source)).read_bytes()) for item in sample_items()]
    for number in range(images):
        turn, which = divmod(number, len(samples))
        photo = samples[which]
        scale = SHORT_SIDE / min(photo.size)
        size = (round(photo.width * scale), round(photo.height * scale))
        box = (0, 0, photo.width - turn, photo.height - turn)
        photo.resize(size, box=box).save(folder / f"{number:04}.jpg", quality=JPEG_QUALITY)
    return folder


def linked(photos: Path, folder: Path, count: int) -> Path:
    """`count` names for the photos: their content is read and cached as often as it is needed."""
    folder.mkdir()
    files = sorted(photos.iterdir())
    for number in range(count):
        (folder / f"{number:05}.jpg").hardlink_to(files[number % len(files)])
    return folder


def seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(
    ours: Callable[[], Any], other: Callable[[], Any], repetitions: int
) -> list[tuple[float, float]]:
    """Seconds of both sides in turn, A B A B …, after one of each that does not count."""
    ours(), other()
    return [(seconds(ours), seconds(other)) for _ in range(repetitions)]


class Job:
    """camkit's loop over a folder of photos: everything of `camkit bench` but loading the model.

    Args:
        options: of :class:`camkit.config.RunConfig`.
    """

    def __init__(self, setting: Setting, model: str, method: tuple[str, ...], **options: Any) -> None:
        self.folder = setting.folder
        # No worker processes: to fork one here, where passes have filled the memory, costs a copy of it all.
        # `camkit bench` forks before the first pass.
        settings: dict[str, Any] = {"metrics": ("adcc",), "data": str(setting.photos), "workers": 0}
        self._take(RunConfig(model=(model,), method=method, device=setting.device, **settings | options))
        self.prepared = prepare(model, self.config.layer, self.data.items, self.config, silent)
        self.passes = 0

    def _take(self, config: RunConfig) -> None:
        selected = select(config, silent)
        self.config, self.data, self.items = config, selected.data, selected.items

    @property
    def size(self) -> int:
        return first_batch_size(self.config, self.prepared.network.device, len(self.items))

    @property
    def batches(self) -> int:
        return math.ceil(len(self.items) / self.size)

    def again(self, **options: Any) -> Job:
        """The same prepared model in another run, of other methods, scores, images or batches."""
        other = copy.copy(self)
        other.passes = 0
        other._take(replace(self.config, **options))
        return other

    def run(self, out: Path | None = None, cache: Path | None = None) -> None:
        """Rows of all images in a new folder, which is thrown away unless given; counts the passes.

        Args:
            cache: another pixel cache than the job's.
        """
        with temporary_folder(self.folder) as temporary:
            for loop in self.loop(out or temporary, cache):
                self.passes = int(loop.took()["passes"])

    def loop(self, out: Path, cache: Path | None = None) -> Iterator[Loop]:
        """The loop over all images, each time that the rows of a batch are in `out`."""
        config = replace(self.config, out=out, cache=cache or self.config.cache)
        run = open_run(self.prepared, config, self.data, self.items, Share(), silent)
        with numerics(config.tf32, deterministic=False) as record:
            run.start(self.size, record, silent)
            loop = Loop(self.prepared, config, self.size)
            for batch, _, results in loop.run(run.todo(), run.predicted):
                run.write_errors(batch.errors)
                for result in results:
                    run.write(result)
                yield loop
            run.end(loop.took())
        run.finish()

    def floor(self) -> None:
        """As many bare passes as the last run took."""
        shape = (self.size, *self.prepared.loaded.preprocess.shape)
        images = torch.rand(shape).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            for _ in range(self.passes):
                self.prepared.network.model(images)

    def expect_passes(self, steps: int | None = None) -> None:
        """Stop where the last run took another number of passes than the cost model says."""
        cells = len(find_methods(self.config.method))
        expected = 1 + 2 * cells if steps is None else 1 + 2 + 2 * (steps - 1) * cells
        if self.passes != self.batches * expected:
            raise SystemExit(f"{self.passes} passes, {self.batches} x {expected} expected")

    def warm(self) -> None:
        """Fill the pixel cache."""
        for _ in load_batches(self.prepared, self.config, self.items, self.size):
            pass

    def scores(self) -> pd.DataFrame:
        """The rows of a run: one per method and image."""
        with temporary_folder(self.folder) as out:
            self.run(out)
            paths = sorted(path for path in out.glob("*/*/*.csv"))
            tables = [pd.read_csv(path).assign(method=path.stem) for path in paths]
        return pd.concat(tables).set_index(["method", "image"]).sort_index()
