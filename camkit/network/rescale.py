"""DeepLIFT's rescale rule (arXiv 1704.02685) through the rest of a network, from the zero activation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from camkit.errors import CamkitError
from camkit.network.head import Head, head_after
from camkit.network.layers import replaced
from camkit.network.passes import Network
from camkit.network.precision import precise

Pair = tuple[Tensor, Tensor]  # what a module is given, and what it gives
# Below so small a difference of inputs the multiplier is the derivative.
NO_DIFFERENCE = 1e-7
# How far the contributions may be from what they have to sum to, over the largest logit.
INCOMPLETE = 1e-3
# Noise images whose activation, so much enlarged that nothing that bends is taken for straight, is the probe.
PROBE_IMAGES, PROBE_FACTOR = 2, 8
# Modules that are linear, and none of which is elementwise.
LINEAR = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)


def contributions(head: Head, activation: Tensor, target: Tensor, modules: Iterable[nn.Module]) -> Tensor:
    """What each unit of A (B, C, h, w) contributes to y_c, against an activation of zeros.

    An elementwise module passes a difference of its inputs on by the multiplier (difference of outputs) /
    (difference of inputs); what is linear, by its weights; max pooling, to the largest unit. So the
    contributions sum to y_c(A) - y_c(0). One head pass with zeros, and one with A and back.

    Args:
        target: classes c, (B,).
        modules: the elementwise modules of the network.
    """
    references: dict[nn.Module, list[Pair]] = {module: [] for module in modules}
    with torch.no_grad(), ExitStack() as until:
        for module, kept in references.items():
            until.enter_context(replaced(module, "forward", partial(_reference, module.forward, kept)))
        head(torch.zeros_like(activation))
    with torch.enable_grad(), ExitStack() as until:
        for module, kept in references.items():
            until.enter_context(replaced(module, "forward", partial(_rescaled, module.forward, iter(kept))))
        leaf = activation.detach().clone().requires_grad_()
        logits = head(leaf)
        (multipliers,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
    return multipliers * activation


def _reference(forward: Callable[[Tensor], Tensor], kept: list[Pair], given: Tensor) -> Tensor:
    output = forward(given.clone())  # which it may change in place
    kept.append((given.clone(), output.clone()))
    return output


def _rescaled(forward: Callable[[Tensor], Tensor], kept: Iterator[Pair], given: Tensor) -> Tensor:
    """What the module gives, as a function whose derivative is the multiplier."""
    reference, reference_output = next(kept)
    output = forward(given.clone())
    difference = given - reference
    apart = difference.abs() > NO_DIFFERENCE
    slope = ((output - reference_output) / difference.where(apart, 1)).detach()
    return torch.where(apart, reference_output + slope * difference, output)


def elementwise_modules(network: Network, layer: str) -> frozenset[nn.Module] | str:
    """The modules behind `layer` (a module path) that treat each element alone; why the rule has no form.

    Found once, from noise: such a module gives the same for an element whatever the others are. The rule has
    a form where the contributions then sum to y(A) - y(0).
    """
    return network.once(("elementwise modules", layer), lambda: _find(network, layer))


def _find(network: Network, layer: str) -> frozenset[nn.Module] | str:
    try:
        head = head_after(network, network.noise(PROBE_IMAGES), layer)
    except CamkitError as error:
        return str(error)
    activation = PROBE_FACTOR * precise(head.reshape.to_map(head.output))
    leaves = [module for module in network.model.modules() if not list(module.children())]
    ran: dict[nn.Module, bool] = {}
    with ExitStack() as until:
        for module in leaves:
            until.enter_context(replaced(module, "forward", partial(_watched, module, module.forward, ran)))
        logits = head(activation)
    found = frozenset(module for module, elementwise in ran.items() if elementwise)
    target = logits.argmax(dim=1)
    parts = contributions(head, activation, target, found)
    difference = (logits - head(torch.zeros_like(activation))).gather(1, target[:, None])[:, 0]
    if (parts.sum(dim=(1, 2, 3)) - difference).abs().amax() <= INCOMPLETE * logits.abs().amax():
        return found
    others = {type(one).__name__ for one in ran if one not in found and not isinstance(one, LINEAR)}
    named = ", ".join(sorted(others)) or "a function that the model itself calls"
    return f"behind the layer something is not linear, and no elementwise module: {named}"


def _watched(
    module: nn.Module,
    forward: Callable[..., Tensor],
    ran: dict[nn.Module, bool],
    *given: Tensor,
    **named: Tensor,
) -> Tensor:
    """What a module gives; notes whether an element's output depends on that element alone."""
    (first, *others), copies = given, [one.clone() if isinstance(one, Tensor) else one for one in given]
    output = forward(*given, **named)
    alone = not others and not named and isinstance(output, Tensor) and output.shape == copies[0].shape
    if alone:
        every_other = torch.arange(copies[0].numel(), device=first.device).view(copies[0].shape) % 2 == 0
        changed = forward(torch.where(every_other, copies[0], 1 - 2 * copies[0]))
        alone = torch.equal(changed[every_other], output[every_other])
    ran[module] = ran.get(module, True) and alone
    return output
