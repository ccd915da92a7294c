"""The same scores by other packages, as their users write them: grad-cam image by image, torchcam's metrics.

Both get the network as its library gives it: contiguous memory, parameters that want gradients. They run in
processes of their own, where camkit has set nothing (see :class:`speed_processes.Elsewhere`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial

import numpy as np
import pytorch_grad_cam
import torch
from pytorch_grad_cam import ShapleyCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST
from torch import Tensor, nn
from torchcam.methods import GradCAM as TorchcamGradCAM
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from camkit.data.pixels import read_file
from camkit.data.sources import Photo
from camkit.metrics.subject import blur
from camkit.network.layers import find_module
from camkit.network.loading import LoadedModel, load_model


class ShapleyCAMHiRes(ShapleyCAM):
    """ShapleyCAM without the mean over positions, which the package does not have."""

    positive = False

    def get_cam_image(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: list,
        activations: Tensor,
        grads: Tensor,
        eigen_smooth: bool = False,
    ) -> np.ndarray:
        (hvp,) = torch.autograd.grad(grads, activations, grad_outputs=activations)
        product = ((grads - 0.5 * hvp) * activations).detach().cpu().numpy()
        return (np.maximum(product, 0) if self.positive else product).sum(axis=1)


class ShapleyCAMElementWise(ShapleyCAMHiRes):
    positive = True


GRAD_CAM = {
    "gradcam": pytorch_grad_cam.GradCAM,
    "gradcam++": pytorch_grad_cam.GradCAMPlusPlus,
    "xgradcam": pytorch_grad_cam.XGradCAM,
    "layercam": pytorch_grad_cam.LayerCAM,
    "gradcam-e": pytorch_grad_cam.GradCAMElementWise,
    "hirescam": pytorch_grad_cam.HiResCAM,
    "shapleycam": ShapleyCAM,
    "shapleycam-h": ShapleyCAMHiRes,
    "shapleycam-e": ShapleyCAMElementWise,
    "randomcam": pytorch_grad_cam.RandomCAM,
}


@cache
def _load(name: str, device: str) -> LoadedModel:
    loaded = load_model(name)
    loaded.model.to(device)
    return loaded


def _photo(loaded: LoadedModel, photo: Photo) -> Tensor:
    pixels = loaded.preprocess.pixels(read_file(photo))[None]
    image = loaded.preprocess.normalise(pixels).contiguous()
    return image.to(next(loaded.model.parameters()).device)


def grad_cam_scores(
    name: str, layer: str, methods: Sequence[str], photos: Sequence[Photo], device: str = "cpu"
) -> list[dict[str, float]]:
    """The ADCC scores, a row per method and image: explain, mask, explain again, score."""
    loaded = _load(name, device)
    rows = []
    for method in methods:
        with GRAD_CAM[method](model=loaded.model, target_layers=[find_module(loaded.model, layer)]) as cam:
            for photo in photos:
                rows.append(_scores_of_image(loaded.model, cam, _photo(loaded, photo)))
    return rows


def _scores_of_image(model: nn.Module, cam: pytorch_grad_cam.GradCAM, image: Tensor) -> dict[str, float]:
    with torch.no_grad():
        before = model(image).softmax(dim=1)[0]
    target = int(before.argmax())
    explain = partial(cam, targets=[ClassifierOutputReST(target)])
    saliency = explain(input_tensor=image)[0]
    mask = torch.from_numpy(saliency).to(image.device)
    masked, deleted = image * mask, image * (1 - mask)
    again = explain(input_tensor=masked)[0]
    with torch.no_grad():
        p0 = float(before[target])
        p1 = float(model(masked).softmax(dim=1)[0, target])
        p2 = float(model(deleted).softmax(dim=1)[0, target])
    with np.errstate(invalid="ignore"):  # a constant map
        correlation = np.corrcoef(saliency.ravel(), again.ravel())[0, 1]
    drop, coherency = max(0.0, p0 - p1) / p0, (1 + correlation) / 2
    complexity = float(saliency.mean())
    return {
        "average_drop": drop,
        "increase": float(p1 > p0),
        "drop_in_deletion": max(0.0, p0 - p2) / p0,
        "coherency": float(coherency),
        "complexity": complexity,
        "adcc": 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop)),
    }


def _batches(loaded: LoadedModel, photos: Sequence[Photo], size: int) -> Iterator[Tensor]:
    for start in range(0, len(photos), size):
        yield torch.cat([_photo(loaded, photo) for photo in photos[start : start + size]])


def torchcam_drop_and_increase(
    name: str, layer: str, photos: Sequence[Photo], size: int, device: str = "cpu"
) -> dict[str, float]:
    """Average drop and increase of GradCAM by torchcam, `size` images at a time."""
    loaded = _load(name, device)
    with TorchcamGradCAM(loaded.model, find_module(loaded.model, layer)) as extractor:
        metric = ClassificationMetric(extractor, partial(torch.softmax, dim=-1))
        for images in _batches(loaded, photos, size):
            metric.update(images)
        return metric.summary()


def torchcam_curves(
    name: str, layer: str, photos: Sequence[Photo], size: int, steps: int, device: str = "cpu"
) -> dict[str, float]:
    """Deletion and insertion of GradCAM by torchcam, from and to a blurred image."""
    loaded = _load(name, device)
    with TorchcamGradCAM(loaded.model, find_module(loaded.model, layer)) as extractor:
        metric = DeletionInsertionMetric(
            extractor, partial(torch.softmax, dim=-1), steps=steps, baseline=blur, batch_size=size
        )
        for images in _batches(loaded, photos, size):
            metric.update(images)
        return metric.summary()
