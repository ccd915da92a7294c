"""What a model does, seen on noise before anything is explained; what camkit cannot explain is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from camkit.errors import CamkitError, Say, UsageError, is_out_of_memory
from camkit.network.activation import SOFTMAX, Activation
from camkit.network.models import ModelRow
from camkit.network.numerics import full_precision
from camkit.network.passes import CHECKPOINTING, Network

# How far one image's logits may be from those that it has in a batch, over the largest.
ALONE = 1e-2
# What every refusal of another kind of model ends with.
SUPPORTED = "camkit explains image classifiers: logits (B, classes), or one output with --activation sigmoid"
# Numbers of classes in published classifiers: of ImageNet-1k, with a background class, and of its supersets.
CLASSIFIERS = {1000, 1001, 11221, 11821, 19168, 21841, 21842, 21843, 115217}


def noise_like(count: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Seeded normal noise, (count, C, H, W)."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).to(device)


def open_network(
    name: str,
    model: nn.Module,
    shape: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    advice: str,
    activation: Activation = SOFTMAX,
) -> Network:
    """A network that has passed an image of this shape (C, H, W).

    Args:
        advice: what to try where the size may be the cause of a failure; "" where it cannot be.

    Raises:
        UsageError: the model does not take such images, or what it gives are no logits (B, classes).
        CamkitError: it does not fit into the device's memory.
    """
    reason = _cannot_be_run(model)
    if reason:
        raise UsageError(f"{name} {reason}")
    probe = noise_like(1, shape, device)
    try:
        network = Network(model, device, dtype, activation)
        with torch.no_grad(), network.precision():
            given = probe.clone()
            logits = network.run(given)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    except Exception as error:  # a forward raises nearly anything on images that it does not expect
        if is_out_of_memory(error):
            raise CamkitError(f"{name} does not fit into the memory of {device}") from error
        raise UsageError(_failed(name, model, shape, advice, error)) from error
    network.copies_input = given._version != probe._version or not torch.equal(given, probe)
    expect_logits(name, logits)
    return network


@contextmanager
def as_it_came(model: nn.Module) -> Iterator[None]:
    """Give a module back as it was: modes, switches, and its parameters' `requires_grad` and memory."""
    modes = [
        (module, name, vars(module)[name])
        for module in model.modules()
        for name in ("training", *CHECKPOINTING)
        if name in vars(module)
    ]
    parameters = [(one, one.requires_grad, one.data) for one in model.parameters()]
    try:
        yield
    finally:
        for module, name, value in modes:
            setattr(module, name, value)
        for parameter, wants_gradient, data in parameters:
            parameter.data = data
            parameter.requires_grad_(wants_gradient)


def takes(model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> bool:
    """Whether a model takes images of a shape (C, H, W)."""
    try:
        with torch.no_grad():
            model.eval().to(device)(noise_like(1, shape, device))
    except (RuntimeError, AssertionError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def expect_logits(name: str, logits: Tensor) -> None:
    """They are logits (B, K) of two classes or more.

    Raises:
        UsageError: they are not.
    """
    if logits.ndim == 2 and logits.shape[1] > 1:
        return
    if logits.shape in ((1,), (1, 1)) or (logits.ndim == 2 and logits.shape[1] == 1):
        raise UsageError(
            f"{name} has one output, and the softmax of one class is 1 for every image. If it tells two "
            "classes apart: --activation sigmoid (class 1 where the output is positive, else 0). If it is a "
            f"number that was learnt by regression: {SUPPORTED}"
        )
    kind = " (segmentation?)" if logits.ndim == 4 else ""
    raise UsageError(f"{name} gives {tuple(logits.shape)}: not a classifier{kind}; {SUPPORTED}")


def _cannot_be_run(model: nn.Module) -> str:
    """Why a model cannot be explained whatever it is given, or ""."""
    modules = list(model.modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        return "is TorchScript, whose layers can be neither seen nor replaced: load the Python model"
    if any(isinstance(one, LazyModuleMixin) and one.has_uninitialized_params() for one in modules):
        return "has lazy modules without weights: pass an image through it first"
    if any("quantized" in type(module).__module__ for module in modules):
        return "is quantised, and whole numbers have no derivatives: load the model before quantisation"
    formats = {one.dtype for one in model.parameters() if one.is_floating_point()}
    if formats - {torch.float32}:
        found = ", ".join(sorted(str(one).removeprefix("torch.") for one in formats))
        return (
            f"has weights in {found}, expected float32: call model.float() (--dtype chooses the format of "
            "the passes)"
        )
    return ""


def _failed(name: str, model: nn.Module, shape: tuple[int, int, int], advice: str, error: Exception) -> str:
    """The message of a forward that failed on one image."""
    first = next((one for one in model.modules() if isinstance(one, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(first, nn.Conv2d) and first.in_channels != shape[0]:
        return f"{name} takes images of {first.in_channels} channels, and these have {shape[0]}"
    if isinstance(first, nn.Conv1d | nn.Conv3d):
        kind = type(first).__name__
        return f"{name} begins with a {kind}, and images (B, C, H, W) are no input of it: {said}"
    size = f"{shape[1]}x{shape[2]}"
    return f"{name} cannot take {size} images: {said}" + (f"\n{advice}" if advice else "")


def expect_classes(name: str, row: ModelRow, model: nn.Module, outputs: int) -> None:
    """The outputs are classes.

    Raises:
        UsageError: they are features, or the coordinates of an embedding.
    """
    if getattr(model, "num_classes", outputs) == 0:
        raise UsageError(
            f"{name} has no classifier: its {outputs} outputs are features, not classes. Name a model with "
            "a head, or add one in a plugin (docs/extend.md)"
        )
    published = getattr(model, "pretrained_cfg", None) or {}
    projects = row.library == "timm" and "clip" in row.tagged and outputs == published.get("num_classes")
    if projects and outputs not in CLASSIFIERS:
        raise UsageError(
            f"{name} is the image tower of a CLIP model: its {outputs} outputs are its projection, the "
            "coordinates of an embedding, not classes. With the embeddings of some prompts it is a "
            "classifier: see docs/extend.md"
        )


def inspect(name: str, network: Network, shape: tuple[int, int, int], say: Say) -> None:
    """Pass two images of noise together and one of them alone, in full precision whatever the run's.

    Args:
        shape: of an image, (C, H, W).
        say: takes a line about outputs that look like probabilities.

    Raises:
        UsageError: the images of a batch see each other, or all images have the same logits.
    """
    noise = noise_like(2, shape, network.device)
    with torch.inference_mode(), full_precision():
        together, alone = network.run(noise), network.run(noise[:1])
    if (together[:1] - alone).abs().amax() > ALONE * together.abs().amax():
        raise UsageError(
            f"{name}: an image has other logits in a batch than alone, so its scores would depend on its "
            "neighbours. A batch norm on batch statistics (track_running_stats=False, or in training mode)?"
        )
    if torch.equal(together[0], together[1]):
        raise UsageError(
            f"{name} gives the same logits for every image: there is nothing to explain. Is its classifier "
            "zero?"
        )
    if _look_like_probabilities(network, noise, together):
        name_of = network.activation.name
        said = "none is negative, they sum to 1" if name_of == "softmax" else "all are between 0 and 1"
        say(
            f"{name}: its outputs look like probabilities ({said}), and camkit takes outputs as logits: a "
            f"{name_of} of a {name_of}. Take the {name_of} out of the model, or return "
            + ("its logarithm" if name_of == "softmax" else "ln(p / (1 - p))")
        )


def _look_like_probabilities(network: Network, noise: Tensor, logits: Tensor) -> bool:
    if not network.activation.independent:
        return bool(logits.amin() >= 0 and ((logits.sum(dim=1) - 1).abs() < 1e-3).all())
    # A few logits may lie there by chance; louder images drive them out, but no probability.
    found = [network.logits(loudness * noise) for loudness in (1, 3, 10, 30)]
    outputs = torch.cat(found)
    if outputs.shape[1] == 2 and torch.equal(outputs[:, 0], -outputs[:, 1]):
        outputs = outputs[:, 1:]  # what the model itself gives
    return bool(outputs.amin() >= 0 and outputs.amax() <= 1)
