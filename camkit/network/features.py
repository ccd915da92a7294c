"""Which layers a model has: the last one before pooling, and the ends of its stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from camkit.network.attention import attention_seen
from camkit.network.layers import hooked, logits_of
from camkit.network.reshape import Positions

HAND_ON = (nn.Identity, nn.Dropout)  # give what they are given


@dataclass(eq=False)
class Feature:
    """A module whose output has positions.

    Attributes:
        path: of the module.
        kind: its class.
        output: what it gives, in its own layout.
        shape: of its map, (C, h, w).
    """

    path: str
    kind: type[nn.Module]
    output: Tensor
    shape: tuple[int, int, int]

    @property
    def grid(self) -> tuple[int, int]:
        return self.shape[1:]


class Features:
    """The modules of a model whose outputs have positions, as one pass shows them.

    Args:
        images: (B, 3, H, W); noise will do.

    Attributes:
        found: in the order in which they end; a module that runs twice is there twice.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self._model = model
        self._positions = Positions.of(model, images)
        self.found: list[Feature] = []
        self._without: set[str] = set()  # modules whose output has no positions
        self._ended: list[str] = []  # every module, in the order of the pass
        inner = ((module, partial(self._keep, path)) for path, module in model.named_modules() if path)
        with torch.enable_grad(), hooked(inner), attention_seen(model, len(images)) as attention:
            logits = logits_of(model(images.detach().clone().requires_grad_()))
            logits = logits.reshape(len(images), -1)  # one output may lack the classes' axis
        self._top = logits.max(dim=1).values.sum()
        # The only attention of a model has no block: around it lies the backbone.
        alone = len(attention) == 1
        pooling = {one.module if alone else one.block for one in attention if one.pools}
        self._behind = self._behind_pooling(pooling)
        self._heads = {
            name
            for name, one in model.named_children()
            if isinstance(one, nn.Linear) and one.out_features == logits.shape[1]
        }

    def _behind_pooling(self, blocks: Set[str]) -> set[str]:
        """Modules that end after the first of `blocks` has begun, where a single query reads the tokens."""
        first = next((n for n, path in enumerate(self._ended) if {path, *_parents(path)} & blocks), None)
        return set() if first is None else set(self._ended[first:])

    def _keep(self, path: str, module: nn.Module, _: tuple, output: object) -> None:
        self._ended.append(path)
        reshape = self._positions.reshape(output, path)
        if reshape is not None:
            assert isinstance(output, Tensor)  # it has positions
            channels, height, width = reshape.to_map(output).shape[1:]
            self.found.append(Feature(path, type(module), output, (channels, height, width)))
        elif isinstance(output, Tensor):
            self._without.add(path)

    def last(self) -> str | None:
        """Path of the last module before pooling: its output has positions, and the logits depend on them.

        A ViT's last blocks are passed over: after the last attention nothing but the class token counts. So
        are the inner projections of an attention (they have another number of channels), a pooling by
        attention (the module around it gives no positions, or a single query reads them) and all that follows
        it, class logits per position, and modules that hand on what they are given.
        """
        pooling = {path for path in self._without if self._pools(path)}
        outputs = [
            one
            for one in self.found
            if one.path not in self._heads
            and not _parents(one.path) & pooling
            and one.path not in self._behind
            and not issubclass(one.kind, HAND_ON)
        ]
        for one in reversed(outputs):
            if one.shape[0] == outputs[-1].shape[0] and self.matters(one):
                return one.path
        return None

    def _pools(self, path: str) -> bool:
        """Whether a module whose output has no positions begins with those of the module before it.

        A backbone within a module, as of a model that wraps another one, has grids of its own.
        """
        inner = [place for place, one in enumerate(self.found) if path in _parents(one.path)]
        if not inner or not inner[0]:
            return False
        return all(self.found[place].grid == self.found[inner[0] - 1].grid for place in inner)

    def matters(self, feature: Feature) -> bool:
        """Whether the logits depend on the output at any of its positions."""
        if not feature.output.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(self._top, feature.output, retain_graph=True, allow_unused=True)
        return self._reached(gradient)

    def _reached(self, gradient: Tensor | None) -> bool:
        """Whether a gradient is there at any position."""
        if gradient is None:
            return False
        reshape = self._positions.reshape(gradient)
        assert reshape is not None  # it has the shape of the output
        return bool((reshape.to_map(gradient) != 0).any())

    def usable(self) -> list[Feature]:
        """Those that can be explained: they run once, and the logits depend on them at some position."""
        runs = Counter(one.path for one in self.found)
        known = [one for one in self.found if runs[one.path] == 1 and one.output.requires_grad]
        outputs = [one.output for one in known]
        gradients = torch.autograd.grad(self._top, outputs, retain_graph=True, allow_unused=True)
        return [one for one, gradient in zip(known, gradients, strict=True) if self._reached(gradient)]

    def stages(self) -> tuple[str, ...]:
        """Paths of the ends of the stages, the first stage first.

        Those that timm names; else the last module of each resolution on the way; of a model with one
        resolution, as a ViT, its blocks. Where the logits do not depend on the last one, as on a ViT's last
        block, :meth:`last` stands in its place.
        """
        runs = Counter(one.path for one in self.found)
        known = {one.path: one for one in self.found if runs[one.path] == 1}
        listed = [path for path in _named_by_timm(self._model) if path in known] or self._ends(known)
        ends = [path for path in listed if self.matters(known[path])]
        last = self.last()
        if last and (not ends or listed[-1] != ends[-1]):
            ends.append(last)
        return tuple(dict.fromkeys(ends))

    def _ends(self, known: dict[str, Feature]) -> list[str]:
        inner: dict[str, list[Feature]] = {}  # by the nearest module around them that has positions too
        for one in known.values():
            if one.path not in self._heads:
                around = [path for path in _parents(one.path) if path in known]
                inner.setdefault(max(around, key=len, default=""), []).append(one)
        ends = {one.grid: one.path for one in _steps("", inner)}
        return list(ends.values()) if len(ends) > 1 else _blocks(known.values())


def _parents(path: str) -> set[str]:
    """`{"a", "a.b"}` of `a.b.c`."""
    steps = path.split(".")
    return {".".join(steps[:count]) for count in range(1, len(steps))}


def _named_by_timm(model: nn.Module) -> list[str]:
    """The ends of stages that timm names, in its order."""
    information = getattr(model, "feature_info", None)
    listed = getattr(information, "info", information)
    return [str(one.get("module")) for one in listed] if isinstance(listed, list | tuple) else []


def _steps(path: str, inner: Mapping[str, Sequence[Feature]]) -> Iterator[Feature]:
    """The modules that a model goes through, those in turn of a container of several stages.

    What goes from one resolution to the next, a block or a transition, is one step: inside it no stage ends.
    """
    before: Feature | None = None
    for one in inner.get(path, ()):
        parts = inner.get(one.path, ())
        grids = {part.grid for part in parts}
        goes_on = before is not None and parts and parts[0].grid == before.grid
        if len(grids) > 2 or (len(grids) == 2 and issubclass(one.kind, nn.Sequential) and not goes_on):
            yield from _steps(one.path, inner)
        else:
            yield one
        before = one


def _blocks(features: Iterable[Feature]) -> list[str]:
    """The most modules of one class and shape that stand side by side; of equally many the outermost."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for one in features:
        groups.setdefault((one.path.rpartition(".")[0], one.kind, one.shape), []).append(one.path)
    blocks = max(groups.values(), key=lambda paths: (len(paths), -paths[0].count(".")), default=[])
    return blocks if len(blocks) > 1 else []
