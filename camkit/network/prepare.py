"""From names to things: the device, and a loaded model with its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from camkit.config import RunConfig
from camkit.data import Item
from camkit.data.batches import batches
from camkit.data.pixels import Preprocess, shrunk
from camkit.errors import CamkitError, Say, UsageError
from camkit.network.activation import ACTIVATIONS
from camkit.network.features import HAND_ON, Features
from camkit.network.folding import fold
from camkit.network.glibc import keep_freed_memory
from camkit.network.inspect import expect_classes, inspect, noise_like, open_network, takes
from camkit.network.layers import SEVERAL, find_module, parts_of
from camkit.network.loading import LoadedModel, load_model, load_preprocess
from camkit.network.models import ModelRow
from camkit.network.numerics import full_precision
from camkit.network.passes import Network
from camkit.network.random import calibrate, fill_classifier
from camkit.network.targets import find_target
from camkit.network.view import View
from camkit.registry import ALL
from camkit.share import Share

# Random weights take their batch-norm statistics from this many images, whatever the batch size or limit.
CALIBRATION_IMAGES = 16


def find_device(name: str) -> torch.device:
    """The device by its name; `auto`: CUDA, else MPS, else CPU. Of several processes each takes its own GPU.

    Raises:
        UsageError: this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = Share.from_environment().device(name)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from error
    return device


@dataclass(frozen=True)
class Prepared:
    """A loaded model, ready to be explained.

    Attributes:
        paths: layer name -> module path, of several layers joined as their names are.
        classes: how many it tells apart.
        is_folded: whether it scores with batch norm folded into convolutions.
    """

    loaded: LoadedModel
    network: Network
    paths: Mapping[str, str]
    classes: int
    is_folded: bool = False

    def layers(self, names: Iterable[str]) -> list[str]:
        """Layer names, `all` being the ends of the model's stages."""
        listed = [layer for name in names for layer in (self.network.stages if name == ALL else [name])]
        return list(dict.fromkeys(listed))


def prepare(name: str, layers: Sequence[str], data: Sequence[Item], config: RunConfig, say: Say) -> Prepared:
    """Load a model and find its layers.

    Args:
        layers: names of layers; `all` stands for the ends of its stages.
        data: images from which random weights take their batch-norm statistics.

    Raises:
        UsageError: a layer or a class to explain does not exist, or the model does not take the images' size.
        CamkitError: the weights cannot be had or do not fit.
    """
    device = find_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    loaded = _load(name, config, device, say)
    shape = loaded.preprocess.shape
    _expect_fitting(config, shape)
    network = _open(loaded, config, device)
    if config.weights == "random":
        images = _first_images(data, loaded.preprocess)
        with full_precision():  # the weights are the same under --tf32
            calibrate(loaded.model, loaded.preprocess.normalise(images.to(device)))
    probe = noise_like(1, shape, device)
    classes = network.logits(probe).shape[1]
    expect_classes(name, loaded.row, loaded.model, classes)
    find_target(config.target).expect(classes)
    inspect(name, network, shape, say)
    paths = _paths(loaded.row, network, layers, say)
    network.trace(probe, list({part for path in paths.values() for part in parts_of(path)}))
    # Below float32, weights that were folded round otherwise: by more than last bits.
    is_folded = config.dtype == "float32" and not config.tf32 and fold(network, noise_like(2, shape, device))
    if config.compile:
        network.compile()
    return Prepared(loaded, network, paths, classes, is_folded)


def _load(name: str, config: RunConfig, device: torch.device, say: Say) -> LoadedModel:
    """A run's model with its weights and the preprocessing of its images, mosaics among them."""
    loaded = load_model(name, config.weights, config.preprocess, config.seed, View.of(config))
    if loaded.weights.note:
        say(f"{name}: {loaded.weights.note}")
    loaded = replace(loaded, preprocess=replace(loaded.preprocess, orient=config.exif == "apply"))
    if config.of_mosaics:
        loaded = replace(loaded, preprocess=replace(loaded.preprocess, side=config.mosaic))
        if not takes(loaded.model, loaded.preprocess.shape, device):
            loaded = replace(loaded, preprocess=shrunk(loaded.preprocess))
            height, width = loaded.preprocess.shape[1:]
            say(f"{name}: takes no larger images: the mosaics are shrunk to {height}x{width}")
    return loaded


def _expect_fitting(config: RunConfig, shape: tuple[int, int, int]) -> None:
    """Steps and patches fit into images (C, H, W).

    Raises:
        UsageError: they do not.
    """
    if not 1 <= config.steps <= shape[1] * shape[2]:
        raise UsageError(f"--steps {config.steps}: expected 1 to {shape[1] * shape[2]}, the number of pixels")
    if config.grid > min(shape[1:]):
        raise UsageError(
            f"--grid {config.grid}: expected 2 to {min(shape[1:])}, the number of pixels along a side"
        )


def _open(loaded: LoadedModel, config: RunConfig, device: torch.device) -> Network:
    """The network; a classifier without weights, which random ones may lack, is filled."""
    dtype, activation = getattr(torch, config.dtype), ACTIVATIONS[config.activation]
    shape, advice = loaded.preprocess.shape, _advice(config, loaded)
    network = open_network(loaded.row.name, loaded.model, shape, device, dtype, advice, activation)
    if config.weights == "random":
        fill_classifier(loaded.model, config.seed)
    return network


def list_layers(name: str, config: RunConfig, say: Say) -> list[dict[str, object]]:
    """The layers of a model that can be explained, in the order in which they end; one row each.

    A row has the `layer` (a module path), its `kind` (class), `channels`, `height` and `width` of its map,
    and its `names`: `conv`, `prepool`, and `stage N` at the end of a stage. Modules that hand on what they
    get (Identity, Dropout) are left out.

    Args:
        config: weights and preprocessing, which decides the size of the images.

    Raises:
        UsageError: the model does not exist, or takes no such images.
        CamkitError: the weights cannot be had.
    """
    device = find_device(config.device)
    loaded = _load(name, config, device, say)
    network = _open(loaded, config, device)
    features = network.features()
    names = _names_of_layers(loaded.row, network, features)
    return [
        {
            "layer": one.path,
            "kind": one.kind.__name__,
            **dict(zip(("channels", "height", "width"), one.shape, strict=True)),
            "names": ", ".join(names.get(one.path, ())),
        }
        for one in features.usable()
        if one.path in names or not issubclass(one.kind, HAND_ON)
    ]


def _names_of_layers(row: ModelRow, network: Network, features: Features) -> dict[str, list[str]]:
    """Module path -> what else the layer is called."""
    known = {module: path for path, module in network.model.named_modules()}
    names: dict[str, list[str]] = {}
    for name, path in (("conv", row.conv), ("prepool", row.prepool)):
        found = known[find_module(network.model, path)] if path else features.last()
        if found:
            names.setdefault(found, []).append(name)
    for number, path in enumerate(features.stages(), start=1):
        names.setdefault(path, []).append(f"stage {number}")
    return names


def _paths(row: ModelRow, network: Network, layers: Sequence[str], say: Say) -> dict[str, str]:
    """Layer name -> module path.

    Raises:
        UsageError: there is no feature layer, or a name is empty.
    """
    named: Mapping[str, str | None] = {"conv": row.conv, "prepool": row.prepool}
    parts = {name: parts_of(name) for name in layers if name != ALL}
    if any(part in named and named[part] is None for name in parts for part in parts[name]):
        named = dict.fromkeys(named, _last_layer(network, row.name, say))
    paths: dict[str, str] = {}
    for name in layers:
        if name == ALL:
            paths |= {stage: stage for stage in _stages(network, row.name, say)}
            continue
        if not all(parts[name]):
            raise UsageError(
                f"--layer {name}: a layer has no name. Several are written layer3{SEVERAL}layer4"
            )
        paths[name] = SEVERAL.join(dict.fromkeys(named.get(part) or part for part in parts[name]))
    return paths


def _advice(config: RunConfig, loaded: LoadedModel) -> str:
    """What to try where a model does not take images of this size."""
    native = load_preprocess(loaded.row, loaded.model, "native")
    if config.preprocess == "native" or config.size or native.shape == loaded.preprocess.shape:
        return ""
    height, width = native.shape[1:]
    return f"Use --preprocess native, the transform that belongs to the weights ({height}x{width})."


def _last_layer(network: Network, name: str, say: Say) -> str:
    path = network.last_layer
    if path is None:
        raise UsageError(
            f"no feature layer before pooling was found in {name}: name one with --layer MODULE.PATH"
        )
    say(f"{name}: layer conv and prepool both stand for {path!r}, the last feature layer before pooling")
    return path


def _stages(network: Network, name: str, say: Say) -> tuple[str, ...]:
    if not network.stages:
        raise UsageError(f"no stage was found in {name}: name layers with --layer MODULE.PATH")
    say(f"{name}: layer {ALL} stands for the ends of its stages, {', '.join(network.stages)}")
    return network.stages


def _first_images(data: Sequence[Item], preprocess: Preprocess) -> torch.Tensor:
    """uint8 (B, 3, H, W): the first readable images."""
    found: list[torch.Tensor] = []
    for batch in batches(data, preprocess, batch_size=1, workers=0):
        if batch.pixels is not None:
            found.append(batch.pixels)
        if len(found) == CALIBRATION_IMAGES:
            break
    if not found:
        raise CamkitError("no image could be read, and random weights take their statistics from images")
    return torch.cat(found)
