"""Native methods beside the same method of grad-cam and torchcam, from image files to average drop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import pytorch_grad_cam
import torch
import torchcam.methods
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from speed_jobs import Job, Line, Setting, interleaved
from speed_processes import Elsewhere
from torchcam.metrics import ClassificationMetric

from camkit.data.pixels import read_file
from camkit.data.sources import Photo
from camkit.network.layers import find_module
from camkit.network.loading import LoadedModel, load_model

MODEL, SIZE = "tf_efficientnet_lite0", 16
GRAD_CAM = {
    "gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "xgradcam": "XGradCAM", "layercam": "LayerCAM",
    "hirescam": "HiResCAM", "eigencam": "EigenCAM", "eigengradcam": "EigenGradCAM",
}  # fmt: skip
TORCHCAM = {"gradcam": "GradCAM", "gradcam++": "GradCAMpp", "xgradcam": "XGradCAM", "layercam": "LayerCAM"}
CHANNELS = 64  # of ScoreCAM


def methods(setting: Setting) -> list[Line]:
    """Gradient methods and AblationCAM against the packages; ScoreCAM against its bare passes."""
    lines = []
    for package, score, names, images, least in (
        ("grad-cam, image by image", grad_cam_drops, GRAD_CAM, 16, 5),
        ("torchcam, batch by batch", torchcam_drops, TORCHCAM, 16, 5),
        ("grad-cam, image by image", grad_cam_drops, {"ablationcam": "AblationCAM"}, 2, 10),
    ):
        job = _job(setting, tuple(names), images)
        sources = [item.source for item in job.items]
        with Elsewhere(setting.threads) as process:
            other = partial(process.call, score, job.prepared.paths["conv"], list(names.values()), sources)
            pairs = interleaved(job.run, other, setting.repetitions)
        case = f"{MODEL}, average drop of {', '.join(names)}: {package}"
        lines.append(Line(case, pairs, f"≥ {least} × as fast", least, inverse=True))
    job = _job(setting, ("scorecam",), SIZE, channels=CHANNELS)
    pairs = interleaved(job.run, job.floor, setting.repetitions)
    case = f"{MODEL}, average drop of ScoreCAM, --channels {CHANNELS}: as many bare passes"
    return [*lines, Line(case, pairs, "≤ 1.10 × floor", 1.10)]


def _job(setting: Setting, names: tuple[str, ...], images: int, **options: int) -> Job:
    shared = {"metrics": ("average_drop",), "utility": ("logit",), "batch_size": min(SIZE, images)}
    return Job(setting, MODEL, names, **shared, limit=images, **options)


@cache
def _loaded() -> LoadedModel:
    return load_model(MODEL)


def _images(photos: Sequence[Photo]) -> torch.Tensor:
    preprocess = _loaded().preprocess
    pixels = torch.stack([preprocess.pixels(read_file(photo)) for photo in photos])
    return preprocess.normalise(pixels).contiguous()


def grad_cam_drops(layer: str, names: Sequence[str], photos: Sequence[Photo]) -> list[float]:
    """Average drop of each photo and method."""
    model = _loaded().model
    drops = []
    for name in names:
        with getattr(pytorch_grad_cam, name)(model=model, target_layers=[find_module(model, layer)]) as cam:
            for photo in photos:
                image = _images([photo])
                with torch.no_grad():
                    before = model(image).softmax(dim=1)[0]
                target = int(before.argmax())
                mask = torch.from_numpy(cam(image, [ClassifierOutputTarget(target)])[0])
                with torch.no_grad():
                    after = model(image * mask).softmax(dim=1)[0, target]
                drops.append(max(0.0, float(1 - after / before[target])))
    return drops


def torchcam_drops(layer: str, names: Sequence[str], photos: Sequence[Photo]) -> list[float]:
    """Average drop of each method, `SIZE` photos at a time."""
    model = _loaded().model
    drops = []
    for name in names:
        with getattr(torchcam.methods, name)(model, find_module(model, layer)) as extractor:
            metric = ClassificationMetric(extractor, partial(torch.softmax, dim=-1))
            for start in range(0, len(photos), SIZE):
                metric.update(_images(photos[start : start + SIZE]))
            drops.append(metric.summary()["avg_drop"])
    return drops
