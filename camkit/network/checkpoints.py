"""Files of weights: the state dicts and class names that a checkpoint holds. No code in one is ever run."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from camkit.errors import CamkitError, UsageError

REFUSED = "refused: it holds more than tensors, or is no PyTorch file, and loading it could run code"
SAFETENSORS = ".safetensors"
ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar", SAFETENSORS)
# Under these keys a checkpoint keeps its state dict, and the moving average of it; the first one counts.
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
AVERAGES = ("state_dict_ema", "model_ema", "ema")
EMA = "ema"  # any of the averages: `--weights FILE:ema`
# What trainers and torch's wrappers put before every name.
PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.")
COUNTER = "n_averaged"  # torch's AveragedModel counts its updates beside the weights
# Under these keys a checkpoint, or its configuration, keeps the names of its classes.
CLASS_NAMES = ("label_names", "id2label", "class_names", "classes", "categories", "class_to_idx")
CONFIGURATIONS = ("config", "pretrained_cfg", "meta", "hyper_parameters", "args")
# Files of these names have a `config.json` beside them.
PUBLISHED = ("model.safetensors", "pytorch_model.bin")

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        name: of the file, with the key of the state dict where that is no file's own: `best.pth:ema`.
        state: the state dict, its names as they stand in the file.
        classes: the names of the classes in the order of their indices; empty where there are none.
        note: what else it holds, for the user; "" where it holds one state dict.
    """

    name: str
    state: State
    classes: tuple[str, ...] = ()
    note: str = ""


def split_part(weights: str) -> tuple[Path, str]:
    """The file and the key in `FILE[:KEY]`; the key is "" where none is named."""
    path = Path(weights).expanduser()
    file, colon, key = weights.rpartition(":")
    if colon and not path.exists() and Path(file).expanduser().is_file():
        return Path(file).expanduser(), key
    return path, ""


def read_checkpoint(weights: str) -> Checkpoint:
    """What a `.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar` or `.safetensors` file holds; no code in it is run.

    The state dict is the file itself or stands under one of :data:`WRAPPERS`, and where none of them is there
    under one of :data:`AVERAGES`.

    Args:
        weights: `FILE` or `FILE:KEY`; the key `ema` stands for any of the averages.

    Raises:
        UsageError: there is no such file, it has another ending, or no such key.
        CamkitError: it holds no state dict, or a pickle with more than tensors in it.
    """
    path, part = split_part(weights)
    if not path.is_file():
        raise UsageError(f"--weights {weights}: no such file (else `pretrained` or `random`)")
    if not path.name.lower().endswith(ENDINGS):
        raise UsageError(f"--weights {weights}: expected a file that ends in {', '.join(ENDINGS)}")
    found, metadata = _read(path)
    state, key, others = _state_in(path, found, part)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        there = f" under {key!r}" if key else ""
        raise CamkitError(f"{path.name} holds no state dict (name -> tensor){there}")
    note = ""
    if others or key in AVERAGES:
        note = f"the weights are those under {key!r}" + (
            f"; there are others under {', '.join(map(repr, others))} (--weights {path.name}:KEY)"
            if others
            else ""
        )
    name = f"{path.name}:{key}" if part or key in AVERAGES else path.name
    return Checkpoint(name, state, _class_names([found, *metadata, *_beside(path)]), note)


def _read(path: Path) -> tuple[object, list[object]]:
    """What a file holds, and the metadata that safetensors files have."""
    try:
        if path.suffix.lower() == SAFETENSORS:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            return load_file(path), [{name: _parsed(text) for name, text in metadata.items()}]
        return torch.load(path, map_location="cpu", weights_only=True), []
    except pickle.UnpicklingError as error:
        raise CamkitError(
            f"{path.name} is {REFUSED}.\nIf you trust it, convert it once: torch.save(torch.load(FILE, "
            "weights_only=False)['state_dict'], 'weights.pth'), or save model.state_dict() alone."
        ) from error
    except Exception as error:  # torch's unpickler raises nearly anything on a file of another kind
        reason = str(error).strip().split(". ")[0].split("\n")[0] or type(error).__name__
        raise CamkitError(
            f"{path.name} cannot be read: no {path.suffix} file of weights, or a damaged one ({reason})"
        ) from error


def _state_in(path: Path, found: object, part: str) -> tuple[object, str, list[str]]:
    """The state dict of a checkpoint, its key there, and the keys of others."""
    if not isinstance(found, Mapping):
        return found, "", []
    there = [key for key in (*WRAPPERS, *AVERAGES) if isinstance(found.get(key), Mapping)]
    wanted = [key for key in (AVERAGES if part == EMA else (part,)) if isinstance(found.get(key), Mapping)]
    if part and not wanted:
        listed = ", ".join(there) or "no state dict under a key"
        raise UsageError(f"--weights {path.name}:{part}: the file has no {part!r}, but {listed}")
    if not there and not wanted:
        return found, "", []
    key = (wanted or there)[0]
    inner = _state_in(path, found[key], "")[0]  # wrapped twice
    return inner, key, [other for other in there if other != key]


def _parsed(text: str) -> object:
    with suppress(ValueError):
        return json.loads(text)
    return text


def _beside(path: Path) -> Iterator[object]:
    """The configuration of a published file, from the folder that it lies in."""
    config = path.with_name("config.json")
    if path.name in PUBLISHED and config.is_file():
        with suppress(ValueError, OSError):
            yield json.loads(config.read_text(encoding="utf-8"))


def _class_names(places: Iterable[object]) -> tuple[str, ...]:
    """The names of classes that stand somewhere in these mappings, or in a configuration within them."""
    mappings = [place for place in places if isinstance(place, Mapping)]
    inner = [
        place[key] for place in mappings for key in CONFIGURATIONS if isinstance(place.get(key), Mapping)
    ]
    for place in (*mappings, *inner):
        for key in CLASS_NAMES:
            names = names_in_order(place.get(key))
            if names:
                return names
    return ()


def names_in_order(found: Any) -> tuple[str, ...]:
    """Class names in the order of their indices: of a list, `{index: name}` or `{name: index}`.

    Empty where it is none of these, leaves an index out, or has nothing but placeholders (`LABEL_0`).
    """
    if isinstance(found, list | tuple):
        names = list(found)
    elif isinstance(found, Mapping):
        pairs = dict(found.items())
        if all(isinstance(value, int) for value in pairs.values()):
            pairs = {index: name for name, index in pairs.items()}
            if len(pairs) < len(found):  # one index twice
                return ()
        if sorted(map(str, pairs)) != sorted(map(str, range(len(pairs)))):
            return ()
        names = [name for _, name in sorted(pairs.items(), key=lambda pair: int(pair[0]))]
    else:
        return ()
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        return ()
    placeholders = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return () if placeholders else tuple(name.strip() for name in names)


def without_prefix(state: State, own: Iterable[str]) -> State:
    """The same tensors without what stands before every name, see :data:`PREFIXES`.

    Args:
        own: the names in the model; a prefix that they have too belongs to them.
    """
    own = list(own)
    if COUNTER in state and COUNTER not in own:
        state = renamed({name: tensor for name, tensor in state.items() if name != COUNTER}, str)
    while True:
        prefix = next((one for one in PREFIXES if all(name.startswith(one) for name in state)), None)
        if prefix is None or any(name.startswith(prefix) for name in own):
            return state
        state = renamed(state, partial(_removed, prefix))


def _removed(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def renamed(state: State, rename: Callable[[str], str]) -> State:
    """The same tensors under other names, with the versions of modules that torch keeps beside them."""
    found = OrderedDict((rename(name), tensor) for name, tensor in state.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        found._metadata = {rename(f"{path}.").removesuffix("."): one for path, one in versions.items()}  # type: ignore[attr-defined]
    return found
