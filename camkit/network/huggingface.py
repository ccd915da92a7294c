"""Image classifiers of Hugging Face's transformers, from a folder or the hub's cache; nothing is fetched."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_pil_image

from camkit.errors import CamkitError, UsageError
from camkit.network.checkpoints import names_in_order

BYTES = 1 / 255  # the factor by which image processors bring pixels to [0, 1]


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise CamkitError(
            '--model transformers/NAME needs transformers: pip install "camkit[transformers]"'
        ) from error
    return transformers


def _config(entry: str) -> Any:
    """The configuration of a model, whose weights may be absent.

    Raises:
        CamkitError: transformers is not installed.
        UsageError: there is no such folder or model in the cache, or it is no image classifier.
    """
    library = _library()
    try:
        config = library.AutoConfig.from_pretrained(_place(entry), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"transformers/{entry}: no folder with a config.json, and no such model in the hub's cache "
            f"({str(error).splitlines()[0]})\nFetch it first: hf download {entry}"
        ) from error
    if type(config) not in library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        kinds = ", ".join(getattr(config, "architectures", None) or [type(config).__name__])
        raise UsageError(f"transformers/{entry} is no image classifier of transformers: {kinds}")
    return config


def _place(entry: str) -> str:
    """A folder's path, or a name on the hub."""
    folder = Path(entry).expanduser()
    return str(folder) if folder.is_dir() else entry


def build_classifier(entry: str, pretrained: bool) -> nn.Module:
    """AutoModelForImageClassification of a folder or a name in the hub's cache.

    Args:
        pretrained: with its weights; else as its configuration makes it.

    Raises:
        UsageError: there is none, or it is no image classifier.
        CamkitError: its weights are not there, or lack tensors.
    """
    config, library = _config(entry), _library()
    auto = library.AutoModelForImageClassification
    if not pretrained:
        return auto.from_config(config)
    try:
        model, said = auto.from_pretrained(
            _place(entry), local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CamkitError(
            f"the weights of transformers/{entry} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    missing = sorted(said["missing_keys"])
    if missing:
        raise CamkitError(
            f"the weights of transformers/{entry} lack {len(missing)} tensors ({', '.join(missing[:3])}): "
            "its classifier was never trained, or the files are of another model"
        )
    return model


def class_names(entry: str) -> tuple[str, ...]:
    """The names in the configuration's `id2label`; empty where it has none.

    Raises:
        UsageError, CamkitError: see :func:`build_classifier`.
    """
    return names_in_order(_config(entry).id2label)


@dataclass(frozen=True)
class ProcessorCrop:
    """A photo as a model's own image processor resizes and crops it: PIL RGB -> PIL RGB.

    Attributes:
        processor: of transformers.
        described: its settings, for run.json.
    """

    processor: Any = field(repr=False, compare=False)
    described: str

    def __call__(self, photo: Image.Image) -> Image.Image:
        pixels = self.processor(photo, do_rescale=False, do_normalize=False, return_tensors="pt")[
            "pixel_values"
        ][0]
        return to_pil_image(pixels.round().clamp(0, 255).byte())

    def __repr__(self) -> str:
        return self.described


def image_processor(entry: str) -> tuple[ProcessorCrop, tuple[float, ...], tuple[float, ...]]:
    """The image processor that belongs to a model: its resize and crop, its mean and deviation.

    Raises:
        CamkitError: there is none, or it does more than resize, crop and normalise.
    """
    try:
        processor = _library().AutoImageProcessor.from_pretrained(_place(entry), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CamkitError(
            f"transformers/{entry} has no image processor (preprocessor_config.json): "
            + str(error).splitlines()[0]
        ) from error
    settings = processor.to_dict()
    if not settings.get("do_rescale", True) or abs(settings.get("rescale_factor", BYTES) - BYTES) > 1e-9:
        raise CamkitError(
            f"transformers/{entry}: its image processor scales pixels by something else than 1/255"
        )
    shown = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct", "do_pad")
    described = ", ".join(f"{name}={settings[name]}" for name in shown if settings.get(name) is not None)
    normal = settings.get("do_normalize", True)
    mean, std = (
        tuple(settings[name]) if normal else rest
        for name, rest in (("image_mean", (0, 0, 0)), ("image_std", (1, 1, 1)))
    )
    return ProcessorCrop(processor, f"{type(processor).__name__}({described})"), mean, std
