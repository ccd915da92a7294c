"""What a pass has to keep for a method, and a pass that keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from camkit.entries import Method
from camkit.network.layers import parts_of
from camkit.network.passes import Network, TracedPass


@dataclass(frozen=True)
class Needs:
    """What a pass has to keep for a method.

    Attributes:
        layers: module paths.
        attention: also the attention of every block.
    """

    layers: frozenset[str]
    attention: bool

    @classmethod
    def of(cls, method: Method, network: Network, path: str) -> Needs:
        """Those of a method at a layer, or at several (`layer3+layer4`)."""
        parts = parts_of(path)
        stages = network.stages if "stages" in method.uses and len(parts) == 1 else ()
        return cls(frozenset((*parts, *stages)), "attention" in method.uses)

    def together(self, others: Iterable[Needs]) -> Needs:
        """What one pass keeps for all."""
        every = [self, *others]
        layers = frozenset(layer for one in every for layer in one.layers)
        return Needs(layers, any(one.attention for one in every))

    def met_by(self, passed: TracedPass, exactly: bool) -> bool:
        """Whether a pass has kept this; `exactly`: and nothing else."""
        kept = Needs(frozenset(passed.leaves), passed.attention is not None)
        return self == kept if exactly else kept == kept.together([self])

    def trace(self, network: Network, images: Tensor) -> TracedPass:
        """A pass that keeps this."""
        return network.trace(images, sorted(self.layers), attention=self.attention)
