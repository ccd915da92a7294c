"""Measure camkit against its floor and against other packages; write results/speed/.

    make speed
    python scripts/speed.py --only floor --repetitions 7 --data /data/imagenet/val

`--only` measures some sections and leaves the results of the others as they are.

Floor: as many bare passes `model(x)` as the scores need, in inference mode, channels last, same batch size,
threads and process. The two sides of a ratio take turns (A B A B …); a line gives the median of the ratios
pair by pair, with their range. Needs a quiet machine, about 20 minutes on two cores, and the packages of
`pip install -e '.[demo,speed]'`; no network.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import click
import pandas as pd
import torch
from speed_jobs import Job, Line, Setting, interleaved, temporary_folder, write_photos
from speed_processes import Elsewhere, allocator, memory
from speed_report import DTYPE_STEPS, Change, write_report

import camkit
from camkit.errors import CamkitError
from camkit.runs.loop import load_batches

LITE, RESNET = "tf_efficientnet_lite0", "resnet50"
# Model -> weights, batch size, images for one method and for ten.
FLOOR = {LITE: ("pretrained", 16, (192, 16)), RESNET: ("random", 8, (24, 8))}
METHODS = {"one method": ("shapleycam",), "ten methods": ("paper",)}
CURVE_STEPS, PEER_STEPS = 16, 8
# Few: without instructions for it, a CPU takes twenty times as long in another number format.
DTYPE_METHODS = ("gradcam", "shapleycam", "shapleycam-h")
PHOTOS = 200


def floor(setting: Setting) -> list[Line]:
    """ADCC and its parts, one method and ten, from the pixel cache and with decoding."""
    lines = []
    for model, (weights, size, limits) in FLOOR.items():
        for (name, methods), images in zip(METHODS.items(), limits, strict=True):
            for data, most in (("pixel cache", 1.10), ("decoding", 1.25)):
                cache = setting.folder / "cache" if data == "pixel cache" else None
                job = Job(
                    setting, model, methods, weights=weights, batch_size=size, limit=images, cache=cache
                )
                pairs = interleaved(job.run, job.floor, setting.repetitions)
                job.expect_passes()
                case = f"{model}, ADCC scores, {name}, {data}"
                lines.append(Line(case, pairs, f"≤ {most:.2f} × floor", most))
    return lines


def curves(setting: Setting) -> list[Line]:
    """Deletion and insertion; what a pass costs does not depend on the number of steps."""
    options = {"steps": CURVE_STEPS, "batch_size": 16, "limit": 16, "cache": setting.folder / "cache"}
    job = Job(setting, LITE, METHODS["one method"], metrics=("deletion", "insertion"), **options)
    pairs = interleaved(job.run, job.floor, setting.repetitions)
    job.expect_passes(CURVE_STEPS)
    case = f"{LITE}, deletion and insertion, one method, N = {CURVE_STEPS}"
    return [Line(case, pairs, "≤ 1.10 × floor", 1.10)]


def grad_cam(setting: Setting) -> list[Line]:
    """ADCC scores by a loop over the grad-cam package, from image files to scores."""
    from speed_peers import GRAD_CAM, grad_cam_scores

    lines = []
    for name, methods, images, least in (
        ("one method", ["gradcam"], 16, 4),
        ("ten methods", list(GRAD_CAM), 4, 6),
    ):
        job = Job(setting, LITE, tuple(methods), batch_size=16, limit=images)
        layer, sources = job.prepared.paths["conv"], [item.source for item in job.items]
        with Elsewhere(setting.threads) as process:
            other = partial(process.call, grad_cam_scores, LITE, layer)
            check_agreement(job, other(["gradcam"], sources))
            pairs = interleaved(job.run, partial(other, methods, sources), setting.repetitions)
        case = f"{LITE}, ADCC scores, {name}: grad-cam, image by image"
        lines.append(Line(case, pairs, f"≥ {least} × as fast", least, inverse=True))
    return lines


def check_agreement(job: Job, rows: list[dict[str, float]]) -> None:
    """Stop where the other package's GradCAM has other scores than camkit's: it would be another job."""
    ours = job.scores().loc["gradcam"].mean()
    for column in rows[0]:
        theirs = sum(row[column] for row in rows) / len(rows)
        if abs(theirs - ours[column]) > 0.01:
            raise SystemExit(f"mean {column}: {theirs:.4f} by the other package, {ours[column]:.4f} here")


def torchcam(setting: Setting) -> list[Line]:
    """torchcam's metrics, batch by batch: average drop and increase; deletion and insertion."""
    from speed_peers import torchcam_curves, torchcam_drop_and_increase

    size, images = 16, 16
    options = {"batch_size": size, "limit": images, "utility": ("logit",)}
    promise = "≥ 2 × as fast"
    scores = Job(setting, LITE, ("gradcam",), metrics=("average_drop",), **options)
    both = Job(setting, LITE, ("gradcam",), metrics=("deletion", "insertion"), steps=PEER_STEPS, **options)
    layer, sources = scores.prepared.paths["conv"], [item.source for item in scores.items]
    with Elsewhere(setting.threads) as process:
        drop = partial(process.call, torchcam_drop_and_increase, LITE, layer, sources, size)
        curve = partial(process.call, torchcam_curves, LITE, layer, sources, size, PEER_STEPS)
        pairs = interleaved(scores.run, drop, setting.repetitions)
        curve_pairs = interleaved(both.run, curve, setting.repetitions)
    case = f"{LITE}, GradCAM: torchcam's average drop and increase"
    curve_case = f"{LITE}, GradCAM: torchcam's deletion and insertion, N = {PEER_STEPS}"
    return [
        Line(case, pairs, promise, 2, inverse=True),
        Line(curve_case, curve_pairs, promise, 2, inverse=True),
    ]


def native(setting: Setting) -> list[Line]:
    """Native methods beside the same method of other packages; ScoreCAM beside its bare passes."""
    from speed_methods import methods

    return methods(setting)


def shapley(setting: Setting) -> list[Line]:
    """The Shapley value where logits are affine, beside GradCAM: from images to maps, without scores."""
    model, lines = camkit.load_model(LITE), []
    for layer, images in product(("conv", "prepool"), (1, 16)):
        job = Job(setting, LITE, ("gradcam",), batch_size=images, limit=images)
        (batch,) = load_batches(job.prepared, job.config, job.items, images)
        assert batch.pixels is not None  # these photos can be read
        photos = model.loaded.preprocess.normalise(batch.pixels)
        ours, other = (
            partial(camkit.explain, model, photos, method=name, layer=layer)
            for name in ("shapley", "gradcam")
        )
        case = f"{LITE}, {layer}, explaining {images} at a time: `shapley`, `gradcam`"
        lines.append(Line(case, interleaved(ours, other, 3 * setting.repetitions), "≤ 2 × gradcam", 2))
    return lines


def dtype(setting: Setting) -> tuple[list[Line], list[Change]]:
    """Number formats: speed, and the change in every score on the sample photos."""
    lines, changes = [], []
    speed = {"batch_size": 16, "limit": 48, "cache": setting.folder / "cache"}
    scores = {"data": "sample", "metrics": ("adcc", "deletion", "insertion"), "steps": DTYPE_STEPS}
    full = Job(setting, LITE, METHODS["one method"], **speed)
    reference = Job(setting, LITE, DTYPE_METHODS, **scores).scores()
    for name in ("bfloat16", "float16"):
        job = Job(setting, LITE, METHODS["one method"], dtype=name, **speed)
        pairs = interleaved(job.run, full.run, setting.repetitions)
        case = f"{LITE}, ADCC scores, one method: {name} against float32"
        lines.append(Line(case, pairs, inverse=True))
        changes += score_changes(
            name, reference, Job(setting, LITE, DTYPE_METHODS, dtype=name, **scores).scores()
        )
    return lines, changes


def score_changes(name: str, reference: pd.DataFrame, found: pd.DataFrame) -> list[Change]:
    """Changes of each score, where the class that is explained is the same; and of the class itself."""
    other = found["target"] != reference["target"]
    gap = (found - reference)[~other].drop(columns=["label", "target"]).abs()
    changed = Change(name, "another class is explained", float(other.max()), float(other.mean()))
    return [changed, *(Change(name, column, float(v.max()), float(v.mean())) for column, v in gap.items())]


def compiled(setting: Setting) -> list[Line]:
    """Scoring passes as torch.compile's code, which is made in the run that does not count."""
    shared = {"batch_size": 16, "cache": setting.folder / "cache"}
    curve = {"metrics": ("deletion", "insertion"), "steps": CURVE_STEPS, "limit": 16}
    lines = []
    for name, options in (
        ("ADCC scores, one method", {"limit": 48}),
        (f"deletion and insertion, one method, N = {CURVE_STEPS}", curve),
    ):
        plain = Job(setting, LITE, METHODS["one method"], **shared, **options)
        job = Job(setting, LITE, METHODS["one method"], **shared, **options, compile=True)
        pairs = interleaved(job.run, plain.run, setting.repetitions)
        lines.append(Line(f"{LITE}, {name}: with --compile against without", pairs, inverse=True))
    return lines


def decoding(setting: Setting) -> list[Line]:
    """A small network's first run: decoding without a cache, and while one is filled, beside a filled one."""
    job = Job(setting, LITE, METHODS["one method"], batch_size=16, limit=48)

    def filling() -> None:
        with temporary_folder(setting.folder) as cache:
            job.run(cache=cache)

    def filled() -> None:
        job.run(cache=setting.folder / "cache")

    case = f"{LITE}, ADCC scores, one method"
    return [
        Line(
            f"{case}: no cache against a filled one",
            interleaved(job.run, filled, setting.repetitions),
        ),
        Line(
            f"{case}: filling the cache against a filled one",
            interleaved(filling, filled, setting.repetitions),
        ),
    ]


SECTIONS: dict[str, Callable] = {
    "floor": floor,
    "curves": curves,
    "grad-cam": grad_cam,
    "torchcam": torchcam,
    "methods": native,
    "shapley": shapley,
    "memory": memory,
    "dtype": dtype,
    "compile": compiled,
    "decoding": decoding,
    "allocator": allocator,
}


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Photos.  [default: the samples']")
@click.option("--repetitions", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=os.cpu_count(), show_default="cores", type=click.IntRange(min=1))
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Sections.  [default: all]")
@click.option("--out", default=Path("results/speed"), show_default=True, type=click.Path(path_type=Path))
def main(data: Path | None, repetitions: int, threads: int, only: tuple[str, ...], out: Path) -> None:
    """Measure camkit against its floor and against other packages."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        setting = Setting(data or write_photos(folder / "photos", PHOTOS), folder, repetitions, threads)
        for section in only or SECTIONS:
            click.echo(section, err=True)
            load = os.getloadavg()[0]
            try:
                found = SECTIONS[section](setting)
            except CamkitError as error:
                sys.exit(f"error: {error}")
            lines, changes = found if isinstance(found, tuple) else (found, [])
            write_report(out, section, lines, changes, setting, load)
    click.echo((out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
