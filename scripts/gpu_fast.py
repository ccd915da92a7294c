"""The section `fast` of scripts/gpu.py: camkit against its floor, other packages, and reading images.

Floor: bare passes `model(x)`, in inference mode, at their best batch size and memory format, in the number
format itself rather than under autocast. camkit's side is a batch's time in the middle of its loop, from
cached pixels to rows on disk; both sides take turns.
"""

from __future__ import annotations

import copy
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed_jobs import Job, Setting, temporary_folder
from torch import Tensor, nn

from camkit.data.batches import PREFETCH
from camkit.errors import is_out_of_memory
from camkit.network.models import PAPER_ROWS
from camkit.network.numerics import numerics
from camkit.runs.loop import load_batches

MODELS = ("resnet50", "efficientnet_b0", "vgg16", "swin_t", "swin_b")
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {}, "bfloat16": {"dtype": "bfloat16"}, "TF32": {"tf32": True}, "float16": {"dtype": "float16"},
}  # fmt: skip
# Photos that fill the cache: as many as scripts/gpu.py writes. Photos that are read: its names for them.
# Batches of the run whose waiting is measured.
CACHED, READ, WAITING_BATCHES = 500, 4096, 16
LITE = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class Row:
    """One line of the report: `result` with its unit."""

    case: str
    result: str
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        sizes: batch sizes that are tried.
        batches: of a timed loop, the first and the last left out.
        repeat: repetitions at most; none is begun once a comparison took `seconds`.
        few: the models of the section `cheaper`, whose compiler takes half a minute for each.
    """

    models: tuple[str, ...]
    formats: tuple[str, ...]
    sizes: tuple[int, ...]
    batches: int
    repeat: int
    seconds: float
    few: tuple[str, ...]
    twelve: tuple[str, ...]


FULL = Scale(
    MODELS, tuple(FORMATS), (64, 128, 256, 512), 2, 3, 6.0,
    few=("resnet50", "efficientnet_b0", "swin_t"), twelve=tuple(row.name for row in PAPER_ROWS),
)  # fmt: skip
QUICK = Scale(("resnet18",), ("float32",), (2,), 2, 1, 6.0, few=("resnet18",), twelve=("resnet18",))
# A batch as good as the best: of these the smallest is taken, since what follows then takes less time.
AS_GOOD = 0.98


def synchronised(device: torch.device) -> float:
    """The time when the device has done all that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], Any], device: torch.device, times: int = 3) -> float:
    """Seconds of one call, after one that does not count."""
    work()
    started = synchronised(device)
    for _ in range(times):
        work()
    return (synchronised(device) - started) / times


def bare(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)


@dataclass(frozen=True)
class Floor:
    """A bare pass of `size` images, and its images per second."""

    size: int
    layout: str
    work: Callable[[], None]
    rate: float


def best_floor(job: Job, sizes: tuple[int, ...]) -> tuple[Floor, dict[str, float]]:
    """Over batch sizes and memory formats, as far as they fit into memory: the smallest of the best.

    Also the best rate of each memory format.
    """
    network = job.prepared.network
    found: list[Floor] = []
    for layout in ("channels_last", "contiguous_format"):
        model = copy.deepcopy(network.model).to(network.dtype, memory_format=getattr(torch, layout))  # type: ignore[call-overload]
        for size in sizes:
            shape = (size, *job.prepared.loaded.preprocess.shape)
            images = torch.rand(shape, device=network.device).to(network.dtype)
            work = partial(bare, model, images.contiguous(memory_format=getattr(torch, layout)))
            try:
                found.append(Floor(size, layout, work, size / seconds_of(work, network.device)))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
    by_layout = {one.layout: one.rate for one in sorted(found, key=lambda one: one.rate)}
    good = [one for one in found if one.rate >= AS_GOOD * max(by_layout.values())]
    return min(good, key=lambda one: (one.size, -one.rate)), by_layout


def per_batch(job: Job, begin: int = 0) -> tuple[float, float, float]:
    """Seconds and passes of one batch in the middle of the loop, and the share of time waiting for data.

    A batch's rows are written once the next one has begun: the last one has none to wait for, and is left out
    like those up to number `begin`. The processes that read have some batches ready before the first pass
    ends: of a short loop all, so that it waits for none.
    """
    moments, waited = [], []
    with temporary_folder(job.folder) as out:
        for loop in job.loop(out):
            moments.append(time.perf_counter())
            waited.append(loop.waiting_seconds)
    took = moments[-2] - moments[begin]
    passes = loop.took()["passes"] / len(moments)
    return took / (len(moments) - 2 - begin), passes, (waited[-2] - waited[begin]) / took


def usual(setting: Setting) -> dict[str, Any]:
    """The number format of long runs."""
    return FORMATS["bfloat16" if setting.device != "cpu" else "float32"]


def job_of(
    setting: Setting, scale: Scale, model: str, methods: tuple[str, ...], size: int, **options: Any
) -> Job:
    # Each run forks them anew, from a process that has the device's memory in its tables.
    workers = min(4, (os.cpu_count() or 1) - 1) if setting.device != "cpu" else 0
    shared = {
        "weights": "random", "cache": setting.folder / "cache", "workers": workers,
        "batch_size": size, "limit": size * (scale.batches + 2),
    }  # fmt: skip
    return Job(setting, model, methods, **shared | options)


def against_floor(job: Job, floor: Floor, scale: Scale) -> Row:
    """camkit's batches and as many bare passes in turn."""
    device = job.prepared.network.device
    ratios: list[float] = []
    rates: list[float] = []
    started = time.perf_counter()
    with numerics(job.config.tf32, deterministic=False):
        while len(ratios) < scale.repeat and (not ratios or time.perf_counter() - started < scale.seconds):
            took, passes, _ = per_batch(job)
            bare_seconds = seconds_of(floor.work, device, times=5) * passes
            ratios.append(took / bare_seconds)
            rates.append(job.size / took)
    note = f"{min(ratios):.2f} to {max(ratios):.2f} ({len(ratios)}); {median(rates):,.0f} images/s"
    note += "; batch norm folded" if job.prepared.is_folded else ""
    return Row("", f"{median(ratios):.2f} × floor", note)


def fast(setting: Setting, scale: Scale) -> Iterator[Row]:
    """Reading images, other packages, and camkit's passes beside bare ones."""
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "reading": partial(reading, setting, scale),
        "grad-cam, torchcam": partial(peers, setting, scale),
    }
    for name, model in product(scale.formats, scale.models):
        parts[f"{model}, {name}"] = partial(one_model, setting, scale, model, name)
    yield from going_on(parts)


def going_on(parts: Mapping[str, Callable[[], Iterator[Row]]]) -> Iterator[Row]:
    """The lines of all parts; one that fails is a line too."""
    for case, part in parts.items():
        try:
            yield from part()
        except Exception as error:
            traceback.print_exc()
            yield Row(case, "failed", f"{type(error).__name__}: {error}".splitlines()[0])


def one_model(setting: Setting, scale: Scale, model: str, name: str) -> Iterator[Row]:
    """ADCC scores, one method and ten, and curves of 14 steps."""
    options = FORMATS[name]
    first = job_of(setting, scale, model, ("shapleycam",), min(scale.sizes), limit=CACHED, **options)
    first.warm()
    with numerics(first.config.tf32, deterministic=False):
        floor, by_layout = best_floor(first, scale.sizes)
    case = f"{model}, {name}"
    note = ", ".join(f"{layout} at best {rate:,.0f}" for layout, rate in by_layout.items())
    yield Row(f"{case}: floor", f"{floor.rate:,.0f} images/s", f"batch {floor.size}, {floor.layout}; {note}")
    curves: dict[str, Any] = {"metrics": ("deletion", "insertion"), "steps": 14}
    limit = floor.size * (scale.batches + 2)
    for words, more in (
        ("ADCC, one method", {}),
        ("ADCC, ten methods", {"method": ("paper",)}),
        ("curves, N = 14, one method", curves),
    ):
        job = first.again(batch_size=floor.size, limit=limit, **more)
        yield replace(against_floor(job, floor, scale), case=f"{case}: {words}")


def peers(setting: Setting, scale: Scale) -> Iterator[Row]:
    """grad-cam and torchcam on the same photos, as their users run them, from files to scores."""
    try:
        from speed_peers import grad_cam_scores, torchcam_drop_and_increase
    except ImportError as error:
        yield Row("grad-cam, torchcam", "not measured", str(error))
        return
    count = 2 if scale is QUICK else 32
    job = Job(setting, LITE, ("gradcam",), limit=count, batch_size=count)
    layer, photos = job.prepared.paths["conv"], [Path(str(item.source)) for item in job.items]
    drop = job.again(metrics=("average_drop",))
    device = setting.device
    for words, ours, theirs in (
        ("grad-cam, ADCC scores, image by image", job,
         lambda: grad_cam_scores(LITE, layer, ["gradcam"], photos, device)),
        ("torchcam, average drop, batch by batch", drop,
         lambda: torchcam_drop_and_increase(LITE, layer, photos, count, device)),
    ):  # fmt: skip
        where = ours.prepared.network.device
        with numerics(tf32=False, deterministic=False):
            seconds = [seconds_of(work, where, times=1) for work in (ours.run, theirs)]
        yield Row(
            f"{LITE}, GradCAM: {words}", f"{seconds[1] / seconds[0]:.1f} × camkit's time", f"{count} photos"
        )


def reading(setting: Setting, scale: Scale) -> Iterator[Row]:
    """Photos per second, by processes, decoded and from a filled cache; how long a run waits for them."""
    model, cores = scale.models[0], os.cpu_count() or 1
    job = job_of(setting, scale, model, ("gradcam",), max(scale.sizes), limit=READ, **usual(setting))
    job.warm()
    for cache, workers in product((None, job.config.cache), (0, 4, 8, 16)):
        if workers <= (0 if scale is QUICK else cores):
            config = replace(job.config, cache=cache, workers=workers)
            size, begin = min(scale.sizes), PREFETCH * workers
            moments = [time.perf_counter() for _ in load_batches(job.prepared, config, job.items, size)]
            rate = size * (len(moments) - 1 - begin) / (moments[-1] - moments[begin])
            yield Row(
                f"reading, {'cache' if cache else 'decoding'}, {workers} workers", f"{rate:,.0f} photos/s"
            )
    size = sorted(scale.sizes)[len(scale.sizes) // 2]
    for cache in (None, job.config.cache):
        long = job.again(cache=cache, batch_size=size, limit=WAITING_BATCHES * size)
        took, _, waiting = per_batch(long, begin=PREFETCH * long.config.workers)
        yield Row(
            f"{model}, {long.config.dtype}: ADCC, one method, {'cache' if cache else 'decoding'}",
            f"{waiting:.1%} of the time waiting for data",
            f"{size / took:,.0f} images/s, {WAITING_BATCHES} × {size} photos, {long.config.workers} workers",
        )
