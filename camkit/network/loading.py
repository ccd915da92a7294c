"""A model by its name: built, with its weights, and the preprocessing that belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torchvision
from timm.data import create_transform, resolve_data_config
from torch import nn
from torchvision.transforms import CenterCrop, Compose, Grayscale, PILToTensor, Resize

from camkit.data import ClassList, imagenet
from camkit.data.pixels import PAPER_CROP, Preprocess, crop_to
from camkit.entries import IMAGENET_MEAN, IMAGENET_STD, MODELS
from camkit.errors import UsageError
from camkit.network.checkpoints import read_checkpoint
from camkit.network.huggingface import class_names, image_processor
from camkit.network.models import ModelRow, find_row
from camkit.network.view import View
from camkit.network.weights import Weights, load

Crop = Callable  # PIL RGB image -> uint8 (C, H, W)
Numbers = tuple[float, ...]  # per channel, in units of [0, 1]


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on the CPU, with its weights and the preprocessing that belongs to them."""

    row: ModelRow
    model: nn.Module
    preprocess: Preprocess
    weights: Weights


ITS_OWN = View()


def load_model(
    name: str, weights: str = "pretrained", preprocess: str = "paper", seed: int = 0, view: View = ITS_OWN
) -> LoadedModel:
    """Build a model and load its weights.

    Args:
        name: see :func:`find_row`.
        weights: `pretrained`, `random` (seeded; batch-norm statistics are then to be taken from images, see
            :func:`camkit.network.random.calibrate`), or a file, see
            :func:`camkit.network.checkpoints.read_checkpoint`.
        preprocess: `paper` or `native`, see :func:`load_preprocess`.

    Raises:
        UsageError: no such model or file, or a mean or deviation of other channels than the model's.
        CamkitError: the weights cannot be fetched or do not fit.
    """
    row = find_row(name)
    model, found = load(row, weights, seed)
    resample: Any = getattr(model, "set_input_size", None)
    if view.size is not None and resample is not None:
        resample(img_size=view.size)  # the positions of timm's transformers
    return LoadedModel(row, model.eval(), load_preprocess(row, model, preprocess, view), found)


def own_classes(name: str, weights: str) -> ClassList | None:
    """The class list that a model, or its file of weights, carries; None where there is none.

    One whose names are ImageNet's is ImageNet's, with its wnids.

    Raises:
        UsageError: no such model or file.
        CamkitError: the file cannot be read.
    """
    row = find_row(name)
    if weights not in ("pretrained", "random"):
        found = read_checkpoint(weights)
        title, names = found.name, found.classes
    elif row.library == "transformers":
        title, names = name, class_names(row.entry)
    else:
        return None
    if not names:
        return None
    try:
        if imagenet().indices_of(names) == list(range(len(imagenet()))):
            return imagenet()
    except UsageError:  # names of other classes
        pass
    return ClassList(title, names)


def _native_torchvision(row: ModelRow) -> tuple[Crop, Numbers, Numbers]:
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


def _native_timm(model: nn.Module) -> tuple[Crop, Numbers, Numbers]:
    config = resolve_data_config({}, model=model)
    # The transform for timm's prefetcher ends with uint8; normalisation is ours.
    return create_transform(**config, use_prefetcher=True), tuple(config["mean"]), tuple(config["std"])


def _of_library(row: ModelRow, model: nn.Module, name: str) -> tuple[Crop, Numbers, Numbers]:
    """The crop, mean and deviation that belong to a model by the name of the preprocessing."""
    if row.library == "plugin":
        added = MODELS[row.entry]
        return added.crop or crop_to(added.size), added.mean, added.std
    if row.library == "transformers":
        processor, mean, std = image_processor(row.entry)
        return Compose([processor, PILToTensor()]), mean, std
    crop, mean, std = _native_torchvision(row) if row.library == "torchvision" else _native_timm(model)
    if takes_grey(model):
        mean, std = ((sum(one) / len(one),) for one in (mean, std))
    return PAPER_CROP if name == "paper" else crop, mean, std


def takes_grey(model: nn.Module) -> bool:
    """Whether a model's first convolution sees one channel."""
    first = next((one for one in model.modules() if isinstance(one, nn.Conv2d)), None)
    return first is not None and first.in_channels == 1


def load_preprocess(row: ModelRow, model: nn.Module, name: str, view: View = ITS_OWN) -> Preprocess:
    """The preprocessing of a row's model.

    Args:
        name: `paper` or `native`; a plugin's model, and one of transformers, has its own under both names.
        view: what the user says of it: a size stands in place of the crop, see :func:`crop_to`.

    Raises:
        UsageError: the mean or deviation has another number of channels than the model.
        CamkitError: a model of transformers has no image processor.
    """
    crop, mean, std = _of_library(row, model, name)
    for option, given in (("mean", view.mean), ("std", view.std)):
        if given is not None and len(given) != len(mean):
            images = f"images of {len(mean)} channel{'s' * (len(mean) > 1)}"
            raise UsageError(
                f"--{option} has {len(given)} number{'s' * (len(given) > 1)}; {row.name} takes {images}"
            )
    if view.size is not None:
        crop = crop_to(view.size)
    if len(mean) == 1 and not (row.library == "plugin" and crop is MODELS[row.entry].crop):
        crop = Compose([Grayscale(), *getattr(crop, "transforms", [crop])])
    return Preprocess(name, crop, view.mean or mean, view.std or std)
