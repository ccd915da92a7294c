"""What methods see of a batch, and the maps that they make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from camkit.config import RunConfig
from camkit.entries import Method
from camkit.network.layers import parts_of
from camkit.network.needs import Needs
from camkit.network.passes import Change, TracedPass
from camkit.network.prepare import Prepared
from camkit.network.trace import ImageView, PixelView, Trace
from camkit.network.utilities import find_utility
from camkit.results.cells import Cell
from camkit.runs.batch import Explained


class Views:
    """What the methods of one model see.

    Args:
        config: all that methods and the game of a layer are given.
        batch_size: every pass has this many images.
        make_maps: gives a method's maps, see :func:`camkit.runs.guard.make_maps`.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: RunConfig,
        batch_size: int,
        make_maps: Callable[[Method, Any], tuple[Tensor, Tensor]],
    ) -> None:
        self.network = prepared.network
        self.preprocess = prepared.loaded.preprocess
        self.config = config
        self.batch_size = batch_size
        self.make_maps = make_maps

    def _trace(self, explained: Explained, cell: Cell) -> Trace:
        """The trace of a cell's layer and utility: what one method or metric asks of it, the next one has."""
        needs = self._needs(cell)
        if not needs.met_by(explained.traced, exactly=self.network.dtype != torch.float32):
            explained.traced = needs.trace(self.network, explained.images)
        trace, passed = explained.trace, explained.traced
        wanted = (passed, cell.path, self._utility(cell.utility))
        if trace is None or (trace.passed, trace.layer, trace.utility) != wanted:
            trace = explained.trace = self._view(explained, cell, explained.images, passed, draw=0)
            explained.others.clear()
        return trace

    def _needs(self, cell: Cell) -> Needs:
        return Needs.of(cell.method, self.network, cell.path)

    def _seen(self, explained: Explained, images: Tensor, draw: int) -> dict[str, Any]:
        """The fields of an image view."""
        return {
            "images": images,
            "image_ids": self._ids(explained),
            "pixels": partial(self.preprocess.rgb, images),
            "target": explained.target,
            "seed": self.config.seed,
            "draw": draw,
            "network": self.network,
            "regions": explained.regions,
            "options": self.config,
        }

    def _without_layer(self, explained: Explained, cell: Cell, images: Tensor, draw: int) -> ImageView | None:
        """What a method sees that sees no layer; None of all others."""
        if cell.method.of_image:
            return ImageView(**self._seen(explained, images, draw))
        if cell.method.of_pixels:
            return PixelView(**self._seen(explained, images, draw), utility=self._utility(cell.utility))
        return None

    def _ids(self, explained: Explained) -> list[str]:
        """Names (B,) of the padded batch."""
        ids = [item.id for item in explained.batch.items]
        return ids + ids[-1:] * (self.batch_size - len(ids))

    def _grid(self, explained: Explained, cell: Cell) -> tuple[int, int] | None:
        """Sides (h, w) of the layer whose map it is; None of several layers, and of none."""
        if len(parts_of(cell.path)) > 1 or (cell.method.saliency and not cell.method.of_one_layer):
            return None
        height, width = self._trace(explained, cell).activation.shape[2:]
        return height, width

    def _view(self, explained: Explained, cell: Cell, images: Tensor, traced: TracedPass, draw: int) -> Trace:
        return Trace(
            **self._seen(explained, images, draw),
            utility=self._utility(cell.utility),
            layer=cell.path,
            passed=traced,
        )

    def _explain_again(self, explained: Explained, cell: Cell, images: Tensor) -> tuple[Tensor, Tensor]:
        """p_c (B,) and saliency maps (B, H, W) of other images, in one pass."""
        view = self._without_layer(explained, cell, images, draw=1)
        if view is not None:
            return view.score(images), self.make_maps(cell.method, view)[1]
        traced = self._needs(cell).trace(self.network, images)
        view = self._view(explained, cell, images, traced, draw=1)
        probability = self.network.probability(traced.logits.detach(), explained.target)
        return probability, self.make_maps(cell.method, view)[1]

    def _explain_behind(
        self, explained: Explained, cell: Cell, name: str, change: Change, traced: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Maps and saliency maps of a network that is changed behind the layer."""
        needs, utility = self._needs(cell), self._utility(cell.utility)
        key = (cell.path, needs, name)
        with self.network.changed(cell.path, change, traced):
            view = explained.changed.get(key)
            if view is None:
                passed = needs.trace(self.network, explained.images)
                view = self._view(explained, cell, explained.images, passed, draw=0)
            elif view.utility != utility:
                view = replace(view, utility=utility)
            explained.changed[key] = view
            return self.make_maps(cell.method, view)

    def _explain_as(
        self,
        explained: Explained,
        cell: Cell,
        name: str,
        *,
        target: Tensor | None = None,
        utility: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Maps and saliency maps of other classes (B,) or of another utility, from the same pass."""
        target = explained.target if target is None else target
        if cell.method.of_image:
            seen = self._seen(explained, explained.images, draw=0) | {"target": target}
            return self.make_maps(cell.method, ImageView(**seen))
        trace = self._trace(explained, cell)
        if name not in explained.others:
            function = self._utility(utility or cell.utility)
            explained.others[name] = replace(trace, target=target, utility=function)
        return self.make_maps(cell.method, explained.others[name])

    def _utility(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        return find_utility(name, self.network.activation.name)
