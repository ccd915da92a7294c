"""Which images a page shows, their photos as small JPEGs and their maps as a few bytes each."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from camkit.config import MOSAIC
from camkit.data import class_name, find_images
from camkit.data.classes import CLASSES
from camkit.data.pixels import PAPER_CROP, Preprocess, crop_to, read_file
from camkit.data.sources import Source, parts_of
from camkit.errors import CamkitError, Say, UsageError
from camkit.network.loading import load_model
from camkit.network.models import ROWS
from camkit.network.view import image_size
from camkit.report.scores import title_of
from camkit.report.study import Block
from camkit.results.folder import file_name, read_classes
from camkit.results.mosaics import mosaics_in

MOST_PHOTOS = 200  # in one page, whatever the number of models: small enough to mail
PER_LIST = 12
PHOTO_SIDE, JPEG_QUALITY = 160, 70


class Photo(NamedTuple):
    """An image and what decides how a model saw it; models that saw the same share a photo.

    Attributes:
        model: whose crop it is; empty where the crop is the same for all.
        exif: `apply` where the photo was turned as its EXIF data say.
        sample: it is one of the sample photos.
    """

    image: str
    preprocess: str
    model: str
    exif: str
    sample: bool


def photo_of(block: Block, image: str) -> Photo:
    preprocess = block.protocol["preprocess"]
    model = "" if preprocess == "paper" else block.model
    name = block.unit_of(image)  # tiles share their mosaic
    return Photo(name, preprocess, model, block.protocol.get("exif", "ignore"), _is_sample(block))


def _segment(block: Block) -> Mapping[str, Any]:
    return block.segments[-1] if block.segments else {}


def _is_sample(block: Block) -> bool:
    return _segment(block).get("layout") == "sample"


@dataclass(frozen=True)
class Selection:
    """Images of one block, in named lists; indices into the block's images.

    Attributes:
        basis: what the lists go by, in words.
        maps: method -> image -> saved map (h, w) after ReLU, of images in the lists.
    """

    block: Block
    basis: str
    lists: Mapping[str, list[int]]
    maps: Mapping[str, Mapping[int, np.ndarray]] = field(repr=False)

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

    NaN for images without a map of every method.

    Args:
        maps: of each method, (images, h, w).
    """
    total, varied, methods = np.zeros(1), np.zeros(1), len(maps)
    whole = np.ones(1, dtype=bool)
    for one in maps:
        flat = one.reshape(len(one), -1).astype(np.float64)
        flat = flat - flat.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(flat, axis=1, keepdims=True)
        whole = whole & np.isfinite(norm[:, 0])
        varied = varied + (norm[:, 0] > 0)
        total = total + np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0)
    # |sum of M unit vectors|^2 is M and twice the sum over all pairs of their products.
    mean = ((total**2).sum(axis=1) - varied) / (methods * (methods - 1))
    return np.where(whole, mean, np.nan)


def select(block: Block) -> Selection:
    """The images on which the methods agree least and most, and on which each wins and loses.

    Agreement is that of the maps or, where none are saved, the closeness of the scores. A method wins where
    its ADCC (without ADCC: the first score) lies furthest above the mean of the other methods.
    """
    maps = read_maps(block)
    methods = np.flatnonzero(block.explaining).tolist() or [0]
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
            lists[f"{title_of(block.methods[row])} wins"] = _first((others - values)[:, place])
            lists[f"{title_of(block.methods[row])} loses"] = _first((values - others)[:, place])
    else:
        lists["best"] = _first(-values[:, 0])
        lists["worst"] = _first(values[:, 0])
    chosen = sorted({image for members in lists.values() for image in members})
    kept = {
        method: {image: one[image].copy() for image in chosen if np.isfinite(one[image]).all()}
        for method, one in maps.items()
    }
    return Selection(block, f"agreement: {basis}; wins and loses: {score.short}", lists, kept)


def _first(key: np.ndarray) -> list[int]:
    """The images with the lowest keys; those without one are left out."""
    order = np.argsort(key, kind="stable")[:PER_LIST]
    return [int(image) for image in order if np.isfinite(key[image])]


def within_limit(selections: Sequence[Selection]) -> list[Selection]:
    """Shorten the lists from their ends until all hold at most `MOST_PHOTOS` photos together.

    The first image of each list comes before the second of any, and each block has a list before any has
    two: many models have short lists each. A list that is left without an image is left out.
    """
    turns = sorted(
        (rank, number, place)
        for place, one in enumerate(selections)
        for number, members in enumerate(one.lists.values())
        for rank in range(len(members))
    )
    chosen: set[Photo] = set()
    kept: list[dict[str, list[int]]] = [{name: [] for name in one.lists} for one in selections]
    for rank, number, place in turns:
        block, (name, members) = selections[place].block, list(selections[place].lists.items())[number]
        photo = photo_of(block, block.images[members[rank]])
        if photo in chosen or len(chosen) < MOST_PHOTOS:
            chosen.add(photo)
            kept[place][name].append(members[rank])
    return [
        replace(one, lists={name: members for name, members in lists.items() if members})
        for one, lists in zip(selections, kept, strict=True)
    ]


def find_photos(
    selections: Sequence[Selection], data: str | None, reading: Mapping[str, Any], say: Say
) -> dict[Photo, str]:
    """The photos as JPEG data URIs, each the crop that the model saw.

    Args:
        data: where the photos lie; None: not known. The sample photos are found without it.
        reading: options of :func:`find_images`, as the run had them; without a layout it is the run's.

    Raises:
        UsageError: `data` holds no images, or not in that layout.
    """
    photos: dict[Photo, str] = {}
    for sample in (True, False):
        members = [one for one in selections if _is_sample(one.block) == sample]
        if not members:
            continue
        if sample:
            try:
                photos |= _read_photos(members, "sample", {}, say)
            except CamkitError as error:  # nobody asked for them: the page does without
                say(f"no photos: {error}")
        elif data is None:
            say("no photos: --data PATH says where they lie (--no-photos: none are wanted)")
        else:
            known = None if data == "sample" else _segment(members[0].block).get("layout")
            layout = reading.get("layout") or known
            photos |= _read_photos(members, data, {**reading, "layout": layout}, say)
    return photos


def _read_photos(
    selections: Sequence[Selection], data: str, reading: Mapping[str, Any], say: Say
) -> dict[Photo, str]:
    own = read_classes(selections[0].block.folder.parent)
    try:
        found = find_images(data.removeprefix(MOSAIC), seed=0, own=own, **reading)
    except UsageError as error:
        raise UsageError(f"--data {data}: {error}") from error
    blocks = [one.block for one in selections]
    others = [block.name for block in blocks if block.protocol["data_fingerprint"] != found.fingerprint]
    if others:
        say(
            f"--data {data} is not what these results were made with (other files, sizes or labels): "
            f"{', '.join(others)}"
        )
    sources = {item.id: item.source for item in found.items}
    for block in (one for one in blocks if one.of_mosaics):
        sources |= mosaics_in(block.folder.parent, sources, block.protocol["mosaic"])
    wanted = {
        photo_of(one.block, one.block.images[place]): one.block for one in selections for place in one.images
    }
    crops: dict[Photo, Preprocess] = {}
    photos: dict[Photo, str] = {}
    for photo, block in wanted.items():
        if photo.image in sources:
            view = photo._replace(image="")
            crops[view] = crops.get(view) or _preprocess(block)
            try:
                photos[photo] = _jpeg(crops[view], sources[photo.image])
            except CamkitError as error:
                say(f"{photo.image}: {error}")
    if len(photos) < len(wanted):
        say(f"{len(wanted) - len(photos)} of {len(wanted)} photos are not in --data {data}")
    return photos


def _preprocess(block: Block) -> Preprocess:
    size = image_size(block.protocol.get("size"))
    if size is not None or (
        block.protocol["preprocess"] == "paper" and not block.model.startswith("transformers/")
    ):
        crop = PAPER_CROP if size is None else crop_to(size)
        found = Preprocess("paper", crop, mean=(0, 0, 0), std=(1, 1, 1))
    else:
        # The crop belongs to the architecture, not to its weights.
        found = load_model(block.model, "random", block.protocol["preprocess"], seed=0).preprocess
    orient = block.protocol.get("exif") == "apply"
    return replace(found, orient=orient, side=block.protocol.get("mosaic", 1))


def _jpeg(preprocess: Preprocess, source: Source) -> str:
    crops = [preprocess.pixels(read_file(photo)) for photo in parts_of(source)]
    pixels = preprocess.assemble(crops)
    photo = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())
    photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def small_map(one: np.ndarray) -> str:
    """A map (h, w) after ReLU as base64 of h w bytes, min-max scaled; the page enlarges it as camkit does."""
    low, high = float(one.min()), float(one.max())
    scaled = (one - low) / (high - low + 1e-7)
    return base64.b64encode(np.round(255 * scaled).astype(np.uint8).tobytes()).decode()


def explained(block: Block, place: int) -> str:
    """The class that an image's maps explain and its probability, in words; empty where not known."""
    listed = read_classes(block.folder.parent)
    # Without a list it is not known how many classes another model has.
    outputs = len(listed) if listed else CLASSES if block.model in ROWS else 0
    target, probability = block.explained[place]
    if np.isnan([target, probability]).any():
        return ""
    return f"{class_name(int(target), outputs, listed)}, {100 * probability:.1f} %"
