"""What is scored: images, one method's maps of them, and the passes that the maps of all methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from camkit.config import ScoreOptions
from camkit.methods.controls import patch_drops
from camkit.metrics.sampled import sampled_steps
from camkit.network.seeding import generator
from camkit.network.trace import Trace
from camkit.network.transfer import sent

BLUR_SIZE, BLUR_SIGMA = 11, 5
MASKED = "masked probability"  # its name in :meth:`Subject.of_maps`
CELL = 32  # pixels a side, of cells where a method sees no layer


def blur(images: Tensor) -> Tensor:
    """RISE's blur (1806.07421): a Gaussian of sigma 5 cut to 11x11, zero padding 5; (B, 3, H, W)."""
    kernel = _blur_kernel(images.device, images.dtype)
    channels = images.shape[1]
    return F.conv2d(
        images, kernel.expand(channels, 1, BLUR_SIZE, BLUR_SIZE), padding=BLUR_SIZE // 2, groups=channels
    )


@cache
@torch.inference_mode(False)  # it outlives the caller's mode
def _blur_kernel(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(11, 11), of sum 1."""
    dirac = np.zeros((BLUR_SIZE, BLUR_SIZE))
    dirac[BLUR_SIZE // 2, BLUR_SIZE // 2] = 1
    return torch.from_numpy(gaussian_filter(dirac, BLUR_SIGMA)).to(device, dtype)


def _once(made: dict[str, Tensor], name: str, make: Callable[[], Tensor]) -> Tensor:
    if name not in made:
        made[name] = make()
    return made[name]


def pixel_ranks(saliency: Tensor, places: Tensor | None = None) -> Tensor:
    """(B, H, W): 0 for the most salient pixel; equals by their `places`, then in raster order."""
    order = torch.arange(saliency[0].numel(), device=saliency.device).expand(len(saliency), -1)
    if places is not None:
        order = places.flatten(1).argsort(dim=1, stable=True)
    sorted_ = saliency.flatten(1).gather(1, order).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, sorted_)
    raster = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, raster).view_as(saliency)


@dataclass
class Subject:
    """A batch of images and one method's maps of them.

    Attributes:
        images: normalised, (B, 3, H, W).
        target: the explained classes c, (B,).
        logits: of the images, (B, K).
        probability: p_c of the images, (B,), in [0, 1].
        score: images (B, 3, H, W) -> p_c (B,); one pass.
        logit: images (B, 3, H, W) -> y_c (B,); one pass.
        options: the run's, such as `steps`.
        saliency: (B, H, W) in [0, 1].
        maps: the signed maps (B, h, w); None from methods that give saliency maps.
        regions: where the target classes are, bool (B, H, W), empty where that is not known of an image; None
            where it is known of none.
        image_ids, seed: for what is drawn per image.
        layer_grid: sides (h, w) of the layer's map; None for methods that see no layer.
        explain_again: images (B, 3, H, W) -> p_c (B,) and saliency maps (B, H, W) by the same method.
        explain_behind: name, change, whether it is traced -> signed maps (B, h, w) or saliency maps from
            methods that give these, and saliency maps: of a network that is changed behind the layer, see
            :meth:`camkit.network.passes.Network.changed`. One pass for each name, whatever the methods.
        explain_as: name, target=(B,) or utility= -> the same for other classes or another utility. A name
            stands for the same whatever the method: one gradient for each, which methods share, beside what
            each of them does with it.
    """

    images: Tensor
    target: Tensor
    logits: Tensor
    probability: Tensor
    score: Callable[[Tensor], Tensor]
    logit: Callable[[Tensor], Tensor]
    options: ScoreOptions
    saliency: Tensor
    maps: Tensor | None
    regions: Tensor | None
    image_ids: Sequence[str]
    seed: int
    layer_grid: tuple[int, int] | None
    explain_again: Callable[[Tensor], tuple[Tensor, Tensor]]
    explain_behind: Callable[..., tuple[Tensor, Tensor]]
    explain_as: Callable[..., tuple[Tensor, Tensor]]
    _find_trace: Callable[[], Trace]
    # Of the images alone: :func:`dataclasses.replace` hands it on to the subjects of the other methods.
    _made: dict[str, Tensor] = field(default_factory=dict)
    # Of this method's maps.
    _of_maps: dict[str, Tensor] = field(default_factory=dict)

    def _once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        return _once(self._made, name, make)

    @property
    def trace(self) -> Trace:
        """The trace, for metrics that are registered with `sees_layer`."""
        return self._find_trace()

    def draw(self, purpose: str) -> list[torch.Generator]:
        """A random generator per image, of its own for each purpose."""
        return [generator(self.seed, image, purpose) for image in self.image_ids]

    @property
    def other_classes(self) -> Tensor:
        """The most likely other class, a drawn one and the least likely one, (3, B)."""

        def make() -> Tensor:
            target, classes = self.target, self.logits.shape[1]
            ranked = self.logits.scatter(1, target[:, None], -torch.inf).argsort(dim=1, descending=True)
            drawn = [torch.randint(classes - 1, (1,), generator=one) for one in self.draw("another class")]
            random = torch.cat(drawn).to(target.device)
            # The last of the ranked is the target itself.
            return torch.stack([ranked[:, 0], random + (random >= target), ranked[:, -2]])

        return self._once("other classes", make)

    @property
    def explained_masked(self) -> tuple[Tensor, Tensor]:
        """p_c (B,) and saliency maps (B, H, W) of the images times their saliency: one explained pass."""
        if not self.knows(MASKED):
            found = self.explain_again(self.images * self.saliency[:, None])
            self._of_maps[MASKED], self._of_maps["masked saliency"] = found
        return self._of_maps[MASKED], self._of_maps["masked saliency"]

    @property
    def ranks(self) -> Tensor:
        """(B, H, W): 0 for the most salient pixel; equals in raster order, or cell by cell in a drawn one."""
        return self.of_maps(
            "ranks",
            lambda: pixel_ranks(self.saliency, self._cell_places if self.options.ties == "random" else None),
        )

    @property
    def _cell_places(self) -> Tensor:
        """A drawn place for each cell of the layer, the same for its pixels, (B, H, W).

        Methods that see no layer have cells of 32 pixels, the stride of most networks.
        """
        size = (self.images.shape[2], self.images.shape[3])
        rows, columns = self.layer_grid or (math.ceil(size[0] / CELL), math.ceil(size[1] / CELL))
        places = torch.stack([torch.randperm(rows * columns, generator=one) for one in self.draw("ties")])
        cells = places.view(-1, 1, rows, columns).to(self.images)
        return F.interpolate(cells, size, mode="nearest")[:, 0]

    def sampled_steps(self, interior: int) -> Tensor:
        """Which of the steps 1 … `interior` are scored, (sample, B): drawn per image, whatever the maps."""
        sample = self.options.sample
        assert sample is not None

        def make() -> Tensor:
            drawn = [torch.randint(interior, (), generator=one) for one in self.draw("steps")]
            return sampled_steps(interior, sample, sent(torch.stack(drawn), self.images.device))

        return self._once(f"{sample} of {interior} steps", make)

    def filled(self, fill: str) -> Tensor:
        """What stands where the images do not, (B, 3, H, W).

        Args:
            fill: `zero` after normalisation; `mean`, each image's mean colour; `blur`; `noise`, standard
                normal in units of the normalised image.
        """
        make: dict[str, Callable[[], Tensor]] = {
            "zero": lambda: torch.zeros_like(self.images),
            "mean": lambda: self.images.mean(dim=(2, 3), keepdim=True).expand_as(self.images),
            "blur": lambda: blur(self.images),
            "noise": self._noise,
        }
        return self._once(f"filled {fill}", make[fill])

    def _noise(self) -> Tensor:
        shape = self.images.shape[1:]
        return torch.stack([torch.randn(shape, generator=one) for one in self.draw("fill")]).to(self.images)

    def filled_probability(self, fill: str) -> Tensor:
        """p_c where nothing is left of the images, (B,); one pass, whatever the methods."""
        return self._once(f"filled {fill} probability", lambda: self.score(self.filled(fill)))

    def knows(self, name: str) -> bool:
        """Whether :meth:`of_maps` has something of this name already."""
        return name in self._of_maps

    def of_maps(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What several metrics make of this method's maps, once."""
        return _once(self._of_maps, name, make)

    def region_certified(self, share: float) -> Tensor:
        """(B,): blanking the region lowers y_c, and blanking all else by less than this share of that."""
        return self._once(f"certified {share}", lambda: self._region_certified(share))

    def _region_certified(self, share: float) -> Tensor:
        assert self.regions is not None
        inside = self.regions[:, None]
        whole = self.logit(self.images)
        without_region = whole - self.logit(self.images * ~inside)
        without_rest = whole - self.logit(self.images * inside)
        return (without_region > 0) & (without_rest < share * without_region)

    @property
    def patch_drops(self) -> Tensor:
        """Drop of y_c when one patch is set to 0, (B, grid^2), raster order; a pass each, and one more."""
        return self._once("patch_drops", lambda: patch_drops(self.images, self.options.grid, self.logit))
