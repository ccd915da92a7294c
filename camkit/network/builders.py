"""A library's own builder of a model, and the model's size: classes and input channels.

A model is always built by its library for one published entry, whose tag decides the number of classes, the
size and switches such as Inception's `transform_input`. A file of weights may have another head and another
first layer.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import timm
import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from camkit.entries import MODELS
from camkit.errors import CamkitError, PluginError
from camkit.network.checkpoints import State, renamed
from camkit.network.huggingface import build_classifier
from camkit.network.layers import replaced
from camkit.network.models import ModelRow


@dataclass(frozen=True)
class Size:
    """What a file of weights says of a model where it differs from the published one; None: as published.

    Attributes:
        classes: outputs of the classifier.
        channels: of the images.
    """

    classes: int | None = None
    channels: int | None = None


AS_PUBLISHED = Size()


def build(row: ModelRow, published: bool = False, size: Size = AS_PUBLISHED) -> nn.Module:
    """The model without weights.

    Args:
        published: as its library makes it around published weights, which may differ in more than these.
    """
    if row.library == "plugin":
        return from_plugin(row, pretrained=False)
    if row.library == "transformers":
        return build_classifier(row.entry, pretrained=False)
    if row.library == "timm":
        named = {"num_classes": size.classes, "in_chans": size.channels}
        given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        return timm.create_model(row.tagged, pretrained=False, **given)
    entry = entry_of(row) if published else None
    if entry is None:
        model = from_torchvision(row, None)
    else:
        with answered(entry, {}), replaced(nn.Module, "load_state_dict", lambda *_, **__: None):
            model = from_torchvision(row, entry)
    return _resized(model, size)


def entry_of(row: ModelRow) -> WeightsEnum | None:
    """torchvision's entry of published weights."""
    if row.library != "torchvision" or row.tag is None:
        return None
    return torchvision.models.get_model_weights(row.entry)[row.tag]


def from_torchvision(row: ModelRow, entry: WeightsEnum | None) -> nn.Module:
    """torchvision's own builder; None: without weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet and Inception: initialisation will change
        return torchvision.models.get_model(row.entry, weights=entry)


def from_plugin(row: ModelRow, pretrained: bool) -> nn.Module:
    """What a plugin's builder gives.

    Raises:
        PluginError: it fails, or gives no module.
    """
    added = MODELS[row.entry]
    try:
        model = added.build(pretrained=pretrained)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"plugin {added.origin}: model {row.name!r}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        given = type(model).__name__
        raise PluginError(
            f"plugin {added.origin}: model {row.name!r} gives {given}, expected torch.nn.Module"
        )
    return model


def answered(entry: WeightsEnum, state: State) -> AbstractContextManager:
    """Let torchvision's builders have `state` where they would fetch the weights."""
    return replaced(entry, "get_state_dict", lambda **_: renamed(state, str))


def size_in(model: nn.Module, state: State) -> Size:
    """The size that a state dict has where it is not a model's: of its heads, and of its first convolution.

    Heads are the linear layers and convolutions that give one output per class.

    Args:
        state: under the model's own names.

    Raises:
        CamkitError: heads of different sizes, or images of neither 1 nor 3 channels.
    """
    own = model.state_dict()
    classes: set[int] = set()
    for path in _heads(model):
        name = f"{path}.weight"
        if name in state and state[name].ndim and state[name].shape[1:] == own[name].shape[1:]:
            classes.add(state[name].shape[0])
    if len(classes) > 1:
        counts = " and ".join(map(str, sorted(classes)))
        raise CamkitError(f"the weights have heads of {counts} classes")
    channels = None
    first = _first(model)
    if first is not None and f"{first}.weight" in state:
        shape, published = state[f"{first}.weight"].shape, own[f"{first}.weight"].shape
        if (
            len(shape) == 4
            and shape[1] != published[1]
            and (shape[0], *shape[2:]) == (published[0], *published[2:])
        ):
            channels = shape[1]
    if channels not in (None, 1, 3):
        raise CamkitError(
            f"the weights are for images of {channels} channels; camkit takes 1 (grey) and 3 (RGB)"
        )
    found = classes.pop() if classes else None
    return Size(None if found == _outputs(model) else found, channels)


def _outputs(model: nn.Module) -> int:
    """Classes of a model as it is published."""
    return getattr(model, "num_classes", None) or 1000


def _heads(model: nn.Module) -> list[str]:
    """Paths of the modules with an output per class."""
    outputs = _outputs(model)
    return [
        path
        for path, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == outputs)
        or (isinstance(module, nn.Conv2d) and module.out_channels == outputs and module.groups == 1)
    ]


def _first(model: nn.Module) -> str | None:
    """Path of the convolution that sees the images; None where there is none."""
    return next(
        (path for path, one in model.named_modules() if isinstance(one, nn.Conv2d) and one.in_channels == 3),
        None,
    )


def _resized(model: nn.Module, size: Size) -> nn.Module:
    """A torchvision model with other heads, and another first convolution."""
    if size.classes is not None:
        for path in _heads(model):
            old = model.get_submodule(path)
            new: nn.Module
            if isinstance(old, nn.Linear):
                new = nn.Linear(old.in_features, size.classes, bias=old.bias is not None)
            else:
                assert isinstance(old, nn.Conv2d)  # see _heads
                new = _convolution(old, old.in_channels, size.classes)
            model.set_submodule(path, new)
        if hasattr(model, "num_classes"):
            model.num_classes = size.classes  # type: ignore[assignment]
    first = _first(model)
    if size.channels is not None and first is not None:
        old = model.get_submodule(first)
        assert isinstance(old, nn.Conv2d)  # see _first
        model.set_submodule(first, _convolution(old, size.channels, old.out_channels))
    return model


def _convolution(like: nn.Conv2d, channels: int, outputs: int) -> nn.Conv2d:
    """A convolution that differs from another one in its channels alone."""
    return nn.Conv2d(
        channels,
        outputs,
        like.kernel_size,  # type: ignore[arg-type]
        like.stride,  # type: ignore[arg-type]
        like.padding,  # type: ignore[arg-type]
        like.dilation,  # type: ignore[arg-type]
        bias=like.bias is not None,
    )
