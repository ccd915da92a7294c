"""The maps of scripts/map_search.py: candidates, controls and references.

A candidate is a sum over layers of one method's signed maps. Each map is made on its layer's own grid and
resized to the image (bilinear, half-pixel centres) before it is added; ReLU and min-max come last. Its name
says all of it: `sumK-METHOD[-unit][-gated|-times][@ABSENT]`, the first K of :data:`LAYERS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from camkit.entries import METHODS
from camkit.methods.saliency import min_max, to_saliency
from camkit.metrics.shape import roughness
from camkit.network.seeding import generator
from camkit.network.trace import Trace

LAYERS = ("conv", "blocks.5", "blocks.4", "blocks.3")
PAPER = (
    *("gradcam", "gradcam++", "xgradcam", "layercam", "gradcam-e"),
    *("hirescam", "shapleycam", "shapleycam-h", "shapleycam-e", "randomcam"),
)
COARSE = "hirescam"  # at the first of the layers: what gates a sum, and what the controls are made of
NODES = (1, 2, 3, 8, 32)  # gradients on the path
EDGES, ROUGH = "hirescam-edges", "rough:"
TRIES = 24  # of the bisection for a control's roughness
QUIET, LOUD = -7.0, 5.0  # logarithms of the noise's amplitude over that of the coarse map


@dataclass(frozen=True)
class Candidate:
    """A sum of maps.

    Attributes:
        of: the method of each summand.
        layers: how many of :data:`LAYERS` are summed, the first ones.
        unit: each summand has the mean absolute value 1 over the image before it is added.
        coarse: the sum is kept where the coarse map is positive (`gated`) or multiplied by its ReLU
            (`times`); `""`: neither.
        absent: activation of an absent position, of path maps.
    """

    of: str
    layers: int = len(LAYERS)
    unit: bool = False
    coarse: str = ""
    absent: str = "zero"

    @property
    def name(self) -> str:
        marks = ["unit"] * self.unit + [self.coarse] * bool(self.coarse)
        absent = "" if self.absent == "zero" else f"@{self.absent}"
        return "-".join((f"sum{self.layers}", self.of, *marks)) + absent

    @property
    def fusion_alone(self) -> Candidate:
        """The same sum without a path: of HiResCAM."""
        return replace(self, of="hirescam", absent="zero")


def listed() -> Iterator[Candidate]:
    """The candidates among which one is chosen."""
    path, local = "aumann-2", ("hirescam", "gradcam", "layercam")
    yield from (Candidate(f"aumann-{nodes}") for nodes in NODES)  # is it the quadrature?
    yield from map(Candidate, local)  # is it the path, or the sum?
    yield from (Candidate(of, few) for few, of in product((1, 2, 3), (path, "aumann-8")))
    yield from (Candidate(of, few) for few, of in product((2, 3), local))
    yield from (Candidate(path, few, unit=True) for few in (2, 3, 4))
    yield from (Candidate(of, unit=True) for of in ("aumann-8", *local))
    for coarse in ("gated", "times"):
        yield from (Candidate(path, few, coarse=coarse) for few in (2, 3, 4))
        yield from (Candidate(of, coarse=coarse) for of in ("aumann-1", "aumann-8", "hirescam", "layercam"))
        yield from (Candidate(of, unit=True, coarse=coarse) for of in (path, "hirescam"))
    for absent in ("mean", "blur"):
        yield from (Candidate(of, absent=absent) for of in (path, "aumann-8"))
        yield Candidate(path, coarse="times", absent=absent)


def named(name: str) -> Candidate | None:
    """The candidate of a name; None where it is none."""
    found = re.fullmatch(r"sum([1-9])-(.+?)(-unit)?(?:-(gated|times))?(?:@(mean|blur))?", name)
    if found is None:
        return None
    layers, of, unit, coarse, absent = found.groups()
    return Candidate(of, int(layers), bool(unit), coarse or "", absent or "zero")


CANDIDATES = {one.name: one for one in listed()}
CONTROLS = (EDGES, "edges", f"{ROUGH}{Candidate('aumann-2').name}")


class Maps:
    """The maps of one batch; what several of them share is made once.

    Args:
        trace: of :data:`LAYERS` together, in this order.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.size = (trace.images.shape[2], trace.images.shape[3])
        self._views = {"zero": self._seen("zero")}
        self._summands: dict[tuple[str, int, str], Tensor] = {}

    def make(self, name: str) -> tuple[Tensor | None, Tensor]:
        """Signed maps (B, h, w) and saliency maps (B, H, W) in [0, 1]; a saliency map has no signed one.

        Args:
            name: of a candidate, a control, or a method at the first of the layers.
        """
        candidate = named(name.removeprefix(ROUGH))
        if candidate:
            signed = self.roughened(candidate) if name.startswith(ROUGH) else self.summed(candidate)
        elif name == EDGES:
            coarse = self.summand(COARSE, 0).relu()
            return None, min_max(coarse * METHODS["edges"].function(self.trace))
        elif METHODS[name].saliency:
            return None, METHODS[name].function(self.trace)
        else:
            signed = METHODS[name].function(self._view("zero").layers[0])
        return signed, to_saliency(signed, self.size)

    def summand(self, of: str, place: int, absent: str = "zero") -> Tensor:
        """A method's signed map at a layer, resized to the image, (B, H, W)."""
        key = (of, place, absent)
        if key not in self._summands:
            maps = METHODS[of].function(self._view(absent).layers[place])
            self._summands[key] = self._resized(maps)
        return self._summands[key]

    def summed(self, candidate: Candidate) -> Tensor:
        """The signed map (B, H, W) of a candidate."""
        total = torch.zeros(())
        for place in range(candidate.layers):
            one = self.summand(candidate.of, place, candidate.absent)
            total = total + (_unit(one) if candidate.unit else one)
        if candidate.coarse:
            coarse = self.summand(COARSE, 0).relu()
            total = total * ((coarse > 0) if candidate.coarse == "gated" else coarse)
        return total

    def roughened(self, candidate: Candidate) -> Tensor:
        """The coarse map plus normal noise, as rough as the candidate's saliency map, (B, H, W).

        The noise is drawn on the finest grid that is summed and resized as a summand is. Its amplitude is
        found by bisection; where the candidate is rougher than the noise alone, it is the largest tried.
        """
        wanted = roughness(to_saliency(self.summed(candidate), self.size))
        layers = self._view("zero").layers[: candidate.layers]
        grid = max((tuple(one.activation.shape[2:]) for one in layers), key=lambda sides: sides[0] * sides[1])
        drawn = [
            torch.randn(grid, generator=generator(self.trace.seed, image, "roughness"))
            for image in self.trace.image_ids
        ]
        noise = _unit(self._resized(torch.stack(drawn).to(self.trace.images)))
        coarse = _unit(self.summand(COARSE, 0))
        low, high = torch.full_like(wanted, QUIET), torch.full_like(wanted, LOUD)
        for _ in range(TRIES):
            middle = (low + high) / 2
            maps = coarse + middle.exp()[:, None, None] * noise
            smoother = roughness(to_saliency(maps, self.size)) < wanted
            low, high = torch.where(smoother, middle, low), torch.where(smoother, high, middle)
        return coarse + high.exp()[:, None, None] * noise

    def _view(self, absent: str) -> Trace:
        if absent not in self._views:
            self._views[absent] = self._seen(absent)
        return self._views[absent]

    def _seen(self, absent: str) -> Trace:
        return replace(self.trace, options=replace(self.trace.options, absent=absent))

    def _resized(self, maps: Tensor) -> Tensor:
        return F.interpolate(maps[:, None], self.size, mode="bilinear", align_corners=False)[:, 0]


def _unit(maps: Tensor) -> Tensor:
    """Maps (B, H, W) over their mean absolute values; one that is 0 everywhere stays so."""
    mean = maps.abs().mean(dim=(1, 2), keepdim=True)
    return maps / mean.where(mean > 0, 1)


def price(trace: Trace, name: str) -> float:
    """Floating-point operations of a map beyond the pass that all share, over those of a pass.

    The gradients at A of all layers count once, at the price of the dearest: one backward pass can give
    them all.
    """
    candidate = named(name.removeprefix(ROUGH))
    layers = replace(trace).layers[: candidate.layers] if candidate else ()
    for layer in layers:
        layer.gradient_at(layer.activation)  # what passes a layer by is found once per network, at a price
    gradients = [operations(partial(getattr, one, "gradient")) for one in layers]
    whole = operations(lambda: Maps(trace).make(name)) - sum(gradients) + max(gradients, default=0)
    return whole / operations(lambda: trace.score(trace.images))


def price_of_backward(trace: Trace) -> float:
    """The same of a backward pass through the whole network, to the images."""
    images = trace.images.clone().requires_grad_()
    with torch.enable_grad():
        utility = trace.utility(trace.network.model(images), trace.target).sum()
    backward = operations(lambda: torch.autograd.grad(utility, images))
    return backward / operations(lambda: trace.score(trace.images))


def operations(make: Callable[[], object]) -> int:
    """Floating-point operations of convolutions and matrix products."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        make()
    return int(counted.get_total_flops())
