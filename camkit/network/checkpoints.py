"""Files of weights: the state dict that a checkpoint holds. No code in a file is ever run."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from camkit.errors import CamkitError, UsageError

REFUSED = "refused: it holds more than tensors, or is no PyTorch file, and loading it could run code"
# Under these keys a checkpoint keeps its state dict.
WRAPPERS = ("state_dict", "model")


State = Mapping[str, Tensor]


def read_weights(path: Path) -> State:
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
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CamkitError(f"{path.name} holds no state dict (name -> tensor)")
    return renamed(state, lambda name: name.removeprefix("module."))


def renamed(state: State, rename: Callable[[str], str]) -> State:
    """The same tensors under other names, with the versions of modules that torch keeps beside them."""
    found = OrderedDict((rename(name), tensor) for name, tensor in state.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        found._metadata = {rename(f"{path}.").removesuffix("."): one for path, one in versions.items()}  # type: ignore[attr-defined]
    return found
