"""Batch norm folded into the convolution before it, for passes that only score."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from itertools import chain

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from camkit.network.layers import hooked, logits_of
from camkit.network.numerics import full_precision
from camkit.network.passes import Network

# How far the logits of the folded model may be from the model's own, over the largest.
ROUNDING = 1e-5
Pairs = list[tuple[nn.Conv2d, nn.BatchNorm2d]]


def fold(network: Network, images: Tensor) -> bool:
    """Let a network score with a copy of its model whose convolutions have taken in their batch norms.

    With fixed statistics γ (x - μ) / σ + β is a product and a sum, so it can be part of the weights. The copy
    shares all other parameters with the model, which everything but scoring passes goes on to use.

    Args:
        images: noise (B, C, H, W) on which the copy has to give the same logits but for rounding; else the
            network scores with its model as before.

    Returns:
        Whether it scores with such a copy.
    """
    found = network.once("folded", lambda: _same_but_folded(network, images))
    if found is not None:
        network.scored = found
    return found is not None


def _same_but_folded(network: Network, images: Tensor) -> nn.Module | None:
    with full_precision():
        expected = network.run(images)
        try:
            model = folded(network.model, images)
            found = None if model is None else logits_of(model(images.clone()))
        except Exception:  # some models cannot be copied, others look at their batch norms
            return None
        if found is None or found.shape != expected.shape:
            return None
        found = network.activation.logits(found, len(images))
        gap = (found - expected).abs().amax()
    return model if gap <= ROUNDING * expected.abs().amax() else None


def folded(model: nn.Module, images: Tensor) -> nn.Module | None:
    """A copy of a model whose convolutions have taken in the batch norm that follows; None if none does.

    Args:
        images: (B, C, H, W), of one pass that shows what follows what.
    """
    shared = {id(one): one for one in chain(model.parameters(), model.buffers())}
    model = copy.deepcopy(model, shared)
    names = {module: name for name, module in model.named_modules()}
    pairs = _pairs(model, images)
    for convolution, norm in pairs:
        made = fuse_conv_bn_eval(convolution, norm)
        made.weight.data = made.weight.data.contiguous(memory_format=torch.channels_last)
        _put(model, names[convolution], made)
        _put(model, names[norm], _behind(norm))
    return model if pairs else None


def _behind(norm: nn.BatchNorm2d) -> nn.Module:
    """What a batch norm does besides: timm's has an activation in it."""
    if isinstance(norm, BatchNormAct2d):
        return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
    return nn.Identity()


def _pairs(model: nn.Module, images: Tensor) -> Pairs:
    """Convolutions and the batch norms that get what they gave, where each runs once in a pass."""
    made: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    ran: Counter[nn.Module] = Counter()
    pairs: Pairs = []

    def convolved(module: nn.Conv2d, _: tuple, output: Tensor) -> None:
        ran[module] += 1
        # The tensor is kept, so that no other gets its id; its version tells whether it was changed in place.
        made[id(output)] = module, output, output._version

    def normalised(module: nn.BatchNorm2d, given: tuple[Tensor], _: Tensor) -> None:
        ran[module] += 1
        if id(given[0]) in made and module.running_mean is not None:
            convolution, output, version = made[id(given[0])]
            if output._version == version:
                pairs.append((convolution, module))

    modules = list(model.modules())
    after: list[tuple[nn.Module, Callable]] = [
        (one, convolved) for one in modules if isinstance(one, nn.Conv2d)
    ]
    after += [(one, normalised) for one in modules if isinstance(one, nn.BatchNorm2d)]
    with torch.inference_mode(False), torch.no_grad(), hooked(after):
        model(images.clone())
    return [pair for pair in pairs if ran[pair[0]] == ran[pair[1]] == 1]


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
