"""Which images a page shows, their photos as small JPEGs and their maps as a few bytes each."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from camkit.data import class_name, find_images
from camkit.data.sources import Source
from camkit.errors import CamkitError, UsageError
from camkit.models import ROWS, load_model
from camkit.pixels import PAPER_CROP, Preprocess, read_file
from camkit.report.study import Block
from camkit.results import PREDICTIONS, file_name
from camkit.tables import merge_rows

MOST_PHOTOS = 200  # in one page, whatever the number of models: small enough to mail
PER_LIST = 12
PHOTO_SIDE, JPEG_QUALITY = 160, 70
IMAGENET_CLASSES = 1000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Selection:
    """Images of one block, in named lists; indices into the block's images."""

    block: Block
    basis: str
    lists: Mapping[str, list[int]]

    @property
    def images(self) -> list[int]:
        return sorted({image for members in self.lists.values() for image in members})


def read_maps(block: Block) -> dict[str, np.ndarray]:
    """Saved maps by method, (images, h, w) in the block's order, after ReLU; without any: left out.

    An image without a map has NaN.
    """
    place = {image: number for number, image in enumerate(block.images)}
    found = {}
    for method in block.methods:
        path = block.folder / f"{file_name(method)}.npz"
        if not path.exists():
            continue
        try:
            with np.load(path) as saved:
                images, maps = saved["images"].tolist(), saved["maps"]
        except (OSError, ValueError, KeyError) as error:
            raise CamkitError(f"{path}: no maps ({error})") from error
        full = np.full((len(block.images), *maps.shape[1:]), np.nan, dtype=np.float32)
        known = [number for number, image in enumerate(images) if image in place]
        full[[place[images[number]] for number in known]] = np.maximum(maps[known], 0)
        found[method] = full
    return found


def agreement(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Mean Pearson correlation over all pairs of methods, (images,); constant maps correlate by 0.

    Args:
        maps: of each method, (images, h, w).
    """
    total, varied, methods = np.zeros(1), np.zeros(1), len(maps)
    for one in maps:
        flat = one.reshape(len(one), -1).astype(np.float64)
        flat = flat - flat.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(flat, axis=1, keepdims=True)
        varied = varied + (norm[:, 0] > 0)
        total = total + np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0)
    # |sum of M unit vectors|^2 is M and twice the sum over all pairs of their products.
    return ((total**2).sum(axis=1) - varied) / (methods * (methods - 1))


def select(block: Block, maps: Mapping[str, np.ndarray]) -> Selection:
    """The images on which the methods agree least and most, and on which each wins and loses.

    Agreement is that of the maps or, where none are saved, the closeness of the scores. A method wins where
    its ADCC (without ADCC: the first score) lies furthest above the mean of the other methods.
    """
    methods = [row for row, control in enumerate(block.controls) if not control] or [0]
    column = block.columns.index("adcc") if "adcc" in block.columns else 0
    score = block.scores[column]
    values = block.values[:, methods, column] * score.sign
    saved = [maps[block.methods[row]] for row in methods if block.methods[row] in maps]
    lists: dict[str, list[int]] = {}
    by_maps = len(saved) > 1 and len({one.shape for one in saved}) == 1
    basis = "correlation of their maps" if by_maps else f"spread of their {score.short}"
    if len(methods) > 1:
        alike = agreement(saved) if by_maps else -values.std(axis=1)
        lists["methods agree least"] = _first(alike)
        lists["methods agree most"] = _first(-alike)
        others = (values.sum(axis=1, keepdims=True) - values) / (len(methods) - 1)
        for place, row in enumerate(methods):
            lists[f"{block.methods[row]} wins"] = _first((others - values)[:, place])
            lists[f"{block.methods[row]} loses"] = _first((values - others)[:, place])
    else:
        lists["best"] = _first(-values[:, 0])
        lists["worst"] = _first(values[:, 0])
    return Selection(block, f"agreement: {basis}; wins and loses: {score.short}", lists)


def _first(key: np.ndarray) -> list[int]:
    """The images with the lowest keys; those without one are left out."""
    order = np.argsort(key, kind="stable")[:PER_LIST]
    return [int(image) for image in order if np.isfinite(key[image])]


def within_limit(selections: Sequence[Selection]) -> list[Selection]:
    """Shorten the lists, in turn from their ends, until all hold at most `MOST_PHOTOS` images together."""
    chosen: set[str] = set()
    kept: list[dict[str, list[int]]] = [{name: [] for name in one.lists} for one in selections]
    for rank in range(PER_LIST):
        for one, lists in zip(selections, kept, strict=True):
            for name, members in one.lists.items():
                if rank >= len(members):
                    continue
                image = one.block.images[members[rank]]
                if image in chosen or len(chosen) < MOST_PHOTOS:
                    chosen.add(image)
                    lists[name].append(members[rank])
    return [Selection(one.block, one.basis, lists) for one, lists in zip(selections, kept, strict=True)]


def find_photos(blocks: Sequence[Block], data: str | None, wanted: set[str], say: Say) -> dict[str, str]:
    """Image -> JPEG as a data URI, the crop that the model saw.

    Args:
        data: where the photos lie; None: the sample photos where the run had them, else no photos.
    """
    block = blocks[0]
    segment = block.segments[-1] if block.segments else {}
    if data is None:
        if segment.get("data") != "sample":
            say("no photos: --data PATH says where they lie (--no-photos: none are wanted)")
            return {}
        data = "sample"
    try:
        found = find_images(data, seed=0, layout=segment.get("layout") if data != "sample" else None)
    except UsageError as error:
        raise UsageError(f"--data {data}: {error}") from error
    if found.fingerprint != block.protocol["data_fingerprint"]:
        say(f"--data {data} is not what these results were made with (other files, sizes or labels)")
    preprocess = _preprocess(block)
    photos = {}
    for item in found.items:
        if item.id in wanted:
            try:
                photos[item.id] = _jpeg(preprocess, item.source)
            except CamkitError as error:
                say(f"{item.id}: {error}")
    if len(photos) < len(wanted):
        say(f"{len(wanted) - len(photos)} of {len(wanted)} photos are not in --data {data}")
    return photos


def _preprocess(block: Block) -> Preprocess:
    if block.protocol["preprocess"] == "paper":
        return Preprocess("paper", PAPER_CROP, mean=(0, 0, 0), std=(1, 1, 1))
    # The crop belongs to the architecture, not to its weights.
    return load_model(block.model, "random", block.protocol["preprocess"], seed=0).preprocess


def _jpeg(preprocess: Preprocess, source: Source) -> str:
    pixels = preprocess.pixels(read_file(source))
    photo = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def small_map(one: np.ndarray) -> str:
    """A map (h, w) after ReLU as base64 of h w bytes, min-max scaled; the page enlarges it as camkit does."""
    low, high = float(one.min()), float(one.max())
    scaled = (one - low) / (high - low + 1e-7)
    return base64.b64encode(np.round(255 * scaled).astype(np.uint8).tobytes()).decode()


def predictions(block: Block) -> dict[str, str]:
    """Image -> the explained class and its probability, in words."""
    classes = IMAGENET_CLASSES if block.model in ROWS else 0  # else it is not known how many the model has
    rows = merge_rows([block.folder.parent / PREDICTIONS])[1]
    return {
        image: f"{class_name(int(row['predicted']), classes)}, {100 * float(row['probability']):.1f} %"
        for (image,), row in rows.items()
    }
