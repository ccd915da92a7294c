"""The sections of scripts/gpu.py that measure: camkit against its floor, and all twelve models.

Floor: bare passes `model(x)`, in inference mode, at their best batch size and memory format, in the number
format itself rather than under autocast. camkit's side is a batch's time in the middle of its loop, from
cached pixels to rows on disk; both sides take turns.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed_jobs import Job, Setting, silent, temporary_folder
from torch import Tensor, nn

from camkit.errors import is_out_of_memory
from camkit.network.models import PAPER_ROWS
from camkit.network.numerics import numerics
from camkit.runs.job import open_run
from camkit.runs.loop import Loop, load_batches
from camkit.share import Share

MODELS = ("resnet50", "efficientnet_b0", "vgg16", "swin_t", "swin_b")
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {}, "TF32": {"tf32": True}, "bfloat16": {"dtype": "bfloat16"}, "float16": {"dtype": "float16"},
}  # fmt: skip
IMAGES, CELLS = 50_000, 10
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
        batches: of a timed loop, the first left out.
        repeat: repetitions.
    """

    models: tuple[str, ...]
    formats: tuple[str, ...]
    sizes: tuple[int, ...]
    batches: int
    repeat: int
    twelve: tuple[str, ...]


FULL = Scale(MODELS, tuple(FORMATS), (64, 128, 256, 512), 4, 3, tuple(row.name for row in PAPER_ROWS))
QUICK = Scale(("resnet18",), ("float32",), (2,), 2, 1, ("resnet18",))


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
    """The best bare pass: of `size` images."""

    size: int
    layout: str
    work: Callable[[], None]
    rate: float


def best_floor(job: Job, sizes: tuple[int, ...]) -> Floor:
    """Over batch sizes and memory formats, as far as they fit into memory."""
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
    return max(found, key=lambda one: one.rate)


def per_batch(job: Job) -> tuple[float, float, float]:
    """Seconds and passes of one batch in the middle of the loop, and the share of time waiting for data."""
    with temporary_folder(job.folder) as out:
        config = replace(job.config, out=out)
        run = open_run(job.prepared, config, job.data, job.items, Share(), silent)
        with numerics(config.tf32, deterministic=False) as record:
            run.start(job.size, record, silent)
            loop = Loop(job.prepared, config, job.size)
            moments, waited = [], []
            for step in loop.run(run.todo()):
                for result in step.results:
                    run.write(result)
                moments.append(time.perf_counter())
                waited.append(loop.waiting_seconds)
    count, took = len(moments) - 1, moments[-1] - moments[0]
    return took / count, loop.took()["passes"] / len(moments), (waited[-1] - waited[0]) / took


def job_of(
    setting: Setting, scale: Scale, model: str, methods: tuple[str, ...], size: int, **options: Any
) -> Job:
    workers = min(8, (os.cpu_count() or 1) - 1) if setting.device != "cpu" else 0
    shared = {"weights": "random", "cache": setting.folder / "cache", "workers": workers}
    limit = size * (scale.batches + 1)
    return Job(setting, model, methods, batch_size=size, limit=limit, **shared | options)


def against_floor(job: Job, floor: Floor, repeat: int) -> Row:
    """camkit's batches and as many bare passes in turn."""
    device = job.prepared.network.device
    ratios, rates, waits = [], [], []
    with numerics(job.config.tf32, deterministic=False):
        for _ in range(repeat):
            took, passes, waiting = per_batch(job)
            bare_seconds = seconds_of(floor.work, device, times=5) * passes * job.size / floor.size
            ratios.append(took / bare_seconds)
            rates.append(job.size / took)
            waits.append(waiting)
    note = f"{min(ratios):.2f} to {max(ratios):.2f} ({repeat}); {median(rates):,.0f} images/s; "
    return Row("", f"{median(ratios):.2f} × floor", note + f"waiting for data {median(waits):.1%}")


def fast(setting: Setting, scale: Scale) -> Iterator[Row]:
    """ADCC scores, one method and ten, and curves of 14 steps; other packages; reading images."""
    for model, name in product(scale.models, scale.formats):
        options = FORMATS[name]
        first = job_of(setting, scale, model, ("shapleycam",), min(scale.sizes), **options)
        with numerics(first.config.tf32, deterministic=False):
            floor = best_floor(first, scale.sizes)
        case = f"{model}, {name}"
        yield Row(f"{case}: floor", f"{floor.rate:,.0f} images/s", f"batch {floor.size}, {floor.layout}")
        curves = {"metrics": ("deletion", "insertion"), "steps": 14}
        for words, methods, more in (
            ("ADCC, one method", ("shapleycam",), {}),
            ("ADCC, ten methods", ("paper",), {}),
            ("curves, N = 14, one method", ("shapleycam",), curves),
        ):
            job = job_of(setting, scale, model, methods, floor.size, **options, **more)
            yield replace(against_floor(job, floor, scale.repeat), case=f"{case}: {words}")
    yield from peers(setting, scale)
    yield from reading(setting, scale)


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
    drop = Job(setting, LITE, ("gradcam",), limit=count, batch_size=count, metrics=("average_drop",))
    device = setting.device
    for words, ours, theirs in (
        ("grad-cam, ADCC scores, image by image", job,
         lambda: grad_cam_scores(LITE, layer, ["gradcam"], photos, device)),
        ("torchcam, average drop, batch by batch", drop,
         lambda: torchcam_drop_and_increase(LITE, layer, photos, count, device)),
    ):  # fmt: skip
        where = ours.prepared.network.device
        seconds = [seconds_of(work, where, times=1) for work in (ours.run, theirs)]
        yield Row(
            f"{LITE}, GradCAM: {words}", f"{seconds[1] / seconds[0]:.1f} × camkit's time", f"{count} photos"
        )


def reading(setting: Setting, scale: Scale) -> Iterator[Row]:
    """Photos per second, by processes, decoded and from a filled cache."""
    job = job_of(setting, scale, scale.models[0], ("gradcam",), max(scale.sizes))
    cores = os.cpu_count() or 1
    for cache, workers in product((None, job.config.cache), (0, 4, 8, 16)):
        if workers <= (0 if scale is QUICK else cores):
            config = replace(job.config, cache=cache, workers=workers)
            started = time.perf_counter()
            for _ in load_batches(job.prepared, config, job.items, min(scale.sizes)):
                pass
            rate = len(job.items) / (time.perf_counter() - started)
            yield Row(
                f"reading, {'cache' if cache else 'decoding'}, {workers} workers", f"{rate:,.0f} photos/s"
            )


def table(setting: Setting, scale: Scale) -> Iterator[Row]:
    """All twelve: ten methods, ADCC scores, in bfloat16 on a GPU; hours for 10 cells of each × 50,000."""
    hours = 0.0
    options = FORMATS["bfloat16" if setting.device != "cpu" else "float32"]
    for model in scale.twelve:
        for size in sorted(scale.sizes, reverse=True):
            job = job_of(setting, replace(scale, batches=1), model, ("paper",), size, **options)
            try:
                took, passes, waiting = per_batch(job)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                del job
                torch.cuda.empty_cache()
                continue
            hours += IMAGES * took / size / 3600
            note = f"{passes:.0f} passes, batch {size}, waiting for data {waiting:.1%}"
            yield Row(model, f"{size / took:,.1f} images/s", f"{note}; {IMAGES * took / size / 3600:.2f} h")
            break
        else:
            yield Row(model, "does not fit into memory")
    words = f"{len(scale.twelve)} models, {CELLS * len(scale.twelve)} cells × {IMAGES:,} images"
    yield Row(words, f"{hours:.2f} h", job.config.dtype)


def linked(photos: Path, folder: Path, count: int) -> Path:
    """`count` names for the photos: their content is read and cached as often as it is needed."""
    folder.mkdir()
    files = sorted(photos.iterdir())
    for number in range(count):
        (folder / f"{number:05}.jpg").hardlink_to(files[number % len(files)])
    return folder
