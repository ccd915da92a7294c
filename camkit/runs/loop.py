"""The scoring loop: batches of one model through its evaluation, timed, counted, halved until they fit."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, groupby, pairwise
from typing import Any, NamedTuple, TypeVar

import torch

from camkit.config import RunConfig
from camkit.data import Item
from camkit.data.batches import SHARED_MEMORY, TIMEOUT, Batch, batches
from camkit.errors import CamkitError, Say, is_out_of_memory
from camkit.network.prepare import Prepared
from camkit.results.cells import Cell, Result
from camkit.runs.evaluate import Evaluation

# Where `--batch-size auto` starts, by kind of device.
AUTO_BATCH_SIZE = {"cuda": 512, "cpu": 64}
# Without --max-errors: 1 % of a process's images, and where that is less than three, three.
DEFAULT_MAX_ERRORS, FEW_ERRORS = 0.01, 3

T = TypeVar("T")
Wanted = Mapping[Cell, Sequence[str]]  # cell -> metric groups to compute for it
Groups = Sequence[tuple[Sequence[Item], Wanted]]  # images that want the same


class OutOfMemory(CamkitError):
    """A pass did not fit into the device's memory."""


class Step(NamedTuple):
    """One batch: its images, what is wanted of them, and the results, each while the next one is made."""

    batch: Batch
    wanted: Wanted
    results: Iterator[Result]


class _Queued(NamedTuple):
    """A result of a batch that waits for the device; None of a batch without images."""

    batch: Batch
    wanted: Wanted
    result: Callable[[], Result] | None


class Loop:
    """Scores the images of one model.

    Args:
        size: images per pass.
        kept: what the user is told of finished work where something ends the loop.
        evaluation: more arguments of :class:`camkit.runs.evaluate.Evaluation`.

    Attributes:
        images: how many readable images are done; `waiting_seconds`: spent waiting for data.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: RunConfig,
        size: int,
        kept: str = "Finished rows are kept: the same command goes on from there.",
        **evaluation: Any,
    ) -> None:
        self.prepared = prepared
        self.config = config
        self.size = size
        self.kept = kept
        self.evaluation = Evaluation(prepared, config, size, **evaluation)
        self.images = 0
        self.waiting_seconds = 0.0
        network = prepared.network
        self._begun = time.perf_counter(), network.passes, network.head_passes

    def run(
        self,
        groups: Groups,
        predicted: Mapping[str, int] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Step]:
        """Each batch of images that want the same, group by group.

        A result is given once the next one is queued, of the next batch too: the device works while rows are
        written, and nothing waits for it until it has something else to do.

        Args:
            predicted: image -> class that an earlier run found, see :meth:`Evaluation.run`.
            stopped: whether no further batch is to be begun.
        """
        queued = self._queued(groups, predicted, stopped)
        given = (one for one, _ in pairwise(chain(queued, [None])) if one)
        for (batch, wanted), results in groupby(given, key=lambda one: one[:2]):
            yield Step(batch, wanted, self._given(batch, results))

    def _queued(
        self, groups: Groups, predicted: Mapping[str, int] | None, stopped: Callable[[], bool]
    ) -> Iterator[_Queued]:
        for items, wanted in groups:
            for batch in self._loaded(items):
                if batch.pixels is None:
                    yield _Queued(batch, wanted, None)
                for result in self.evaluation.run(batch, wanted, predicted):
                    yield _Queued(batch, wanted, result)
                if stopped():
                    return

    def _given(self, batch: Batch, queued: Iterable[_Queued]) -> Iterator[Result]:
        """The results of a batch; its images count once all of them are taken, whatever follows."""
        for one in queued:
            if one.result is not None:
                yield one.result()
        self.images += len(batch.items)

    def _loaded(self, items: Sequence[Item]) -> Iterator[Batch]:
        loader = load_batches(self.prepared, self.config, items, self.size)
        while True:
            started = time.perf_counter()
            batch = next(loader, None)
            self.waiting_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def took(self) -> dict[str, float]:
        """What it took so far: `images`, `seconds`, `waiting_seconds`, `passes`, `head_passes`."""
        started, passes, head_passes = self._begun
        return {
            "images": self.images,
            "seconds": time.perf_counter() - started,
            "waiting_seconds": self.waiting_seconds,
            "passes": self.prepared.network.passes - passes,
            "head_passes": self.prepared.network.head_passes - head_passes,
        }

    @contextmanager
    def failures_named(self) -> Iterator[None]:
        """What the system does to a run, in the user's words.

        Raises:
            OutOfMemory: a pass of `size` images does not fit.
            CamkitError: a worker process died or is silent, or torch.compile failed.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise OutOfMemory(
                    f"out of memory at --batch-size {self.size}: try a smaller one, or auto. {self.kept}"
                ) from error
            said = _in_users_words(error)
            if said is None:
                raise
            raise CamkitError(f"{said} {self.kept}") from error


def _in_users_words(error: Exception) -> str | None:
    reason = str(error)
    if isinstance(error, torch._dynamo.exc.TorchDynamoException):
        return (
            f"--compile: torch.compile failed ({reason.splitlines()[0]}).\n"
            "On a CPU it needs a C++ compiler, on a GPU Triton. Without --compile scores are the same but "
            "for last digits."
        )
    if "DataLoader timed out" in reason:
        return (
            f"for {TIMEOUT} seconds no batch came from the processes that decode images (does the disk "
            f"answer? is there room in {SHARED_MEMORY}?): try --workers 0."
        )
    if "DataLoader worker" in reason:
        return "a process that decodes images died (out of memory?): try fewer --workers, or 0."
    return None


def errors_allowed(config: RunConfig, images: int) -> tuple[float, float]:
    """How many of so many images may be unreadable, and the share that says so."""
    if config.max_errors is None:
        return max(FEW_ERRORS, DEFAULT_MAX_ERRORS * images), DEFAULT_MAX_ERRORS
    return config.max_errors * images, config.max_errors


def load_batches(prepared: Prepared, config: RunConfig, items: Sequence[Item], size: int) -> Iterator[Batch]:
    """Decoded batches of `items` for one model."""
    return batches(
        items,
        prepared.loaded.preprocess,
        size,
        config.workers,
        cache=config.cache,
        pin_memory=prepared.network.device.type == "cuda",
    )


def first_batch_size(config: RunConfig, device: torch.device, images: int) -> int:
    """Images per pass: never more than there are; `auto` starts high and comes down."""
    if config.batch_size == "auto":
        return min(AUTO_BATCH_SIZE["cuda" if device.type == "cuda" else "cpu"], images)
    return min(config.batch_size, images)


def at_a_size_that_fits(config: RunConfig, size: int, attempt: Callable[[int], T], say: Say) -> T:
    """Call `attempt` with a batch size, under `--batch-size auto` halved until its passes fit into memory.

    Raises:
        OutOfMemory: they do not fit, and the size is fixed or 1.
    """
    while True:
        try:
            return attempt(size)
        except OutOfMemory:
            if config.batch_size != "auto" or size == 1:
                raise
        size //= 2
        say(f"out of memory, going on with {size} images per pass")
        gc.collect()
        torch.cuda.empty_cache()
