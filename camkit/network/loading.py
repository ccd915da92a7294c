"""A model by its name: built, with its weights, and the preprocessing that belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torchvision
from timm.data import create_transform, resolve_data_config
from torch import nn
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from camkit.data.pixels import PAPER_CROP, Preprocess, crop_to
from camkit.entries import IMAGENET_MEAN, IMAGENET_STD, MODELS
from camkit.network.models import ModelRow, find_row
from camkit.network.weights import Weights, load


@dataclass(frozen=True)
class LoadedModel:
    row: ModelRow
    model: nn.Module
    preprocess: Preprocess
    weights: Weights


def load_model(
    name: str, weights: str = "pretrained", preprocess: str = "paper", seed: int = 0
) -> LoadedModel:
    """Build a model and load its weights.

    Args:
        name: see :func:`find_row`.
        weights: `pretrained`, `random` (seeded; batch-norm statistics are then to be taken from images, see
            :func:`camkit.network.random.calibrate`), or a `.pth`, `.pt` or `.safetensors` file.
        preprocess: `paper` or `native`, see :class:`Preprocess`.

    Raises:
        UsageError: no such model, or no such file.
        CamkitError: the weights cannot be fetched or do not fit.
    """
    row = find_row(name)
    model, found = load(row, weights, seed)
    return LoadedModel(row, model.eval(), load_preprocess(row, model, preprocess), found)


def _native_torchvision(row: ModelRow) -> tuple[Callable, tuple, tuple]:
    weights = torchvision.models.get_model_weights(row.entry)
    if row.tag is None:
        return PAPER_CROP, IMAGENET_MEAN, IMAGENET_STD
    preset = weights[row.tag].transforms()
    crop = Compose(
        [
            Resize(preset.resize_size, preset.interpolation, antialias=preset.antialias),
            CenterCrop(preset.crop_size),
            PILToTensor(),
        ]
    )
    return crop, tuple(preset.mean), tuple(preset.std)


def _native_timm(model: nn.Module) -> tuple[Callable, tuple, tuple]:
    config = resolve_data_config({}, model=model)
    # The transform for timm's prefetcher ends with uint8; normalisation is ours.
    return create_transform(**config, use_prefetcher=True), tuple(config["mean"]), tuple(config["std"])


def load_preprocess(row: ModelRow, model: nn.Module, name: str) -> Preprocess:
    """The preprocessing of a row's model by its name, `paper` or `native`."""
    if row.library == "plugin":
        added = MODELS[row.entry]
        return Preprocess(name, crop_to(added.size), added.mean, added.std)
    crop, mean, std = _native_torchvision(row) if row.library == "torchvision" else _native_timm(model)
    return Preprocess(name, PAPER_CROP if name == "paper" else crop, mean, std)
