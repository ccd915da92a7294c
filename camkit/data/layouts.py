"""The ways in which ImageNet lies on disk, one row each, and the way from a path to a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from camkit.data.classes import CLASSES
from camkit.data.contents import Contents, Entries, look, validation_only
from camkit.data.devkit import from_devkit
from camkit.data.items import DataSet, fingerprint, in_order, make_items, sample_items
from camkit.data.labels import (
    Labels,
    describe,
    first_found,
    folder_index,
    folder_wnid,
    from_file,
    from_folders,
    from_index_folders,
    from_kaggle,
    from_names,
    name_wnid,
    validation_number,
)
from camkit.data.parquet import list_parquet
from camkit.data.webdataset import members, read_webdataset, sidecars
from camkit.errors import UsageError
from camkit.registry import unknown_name


@dataclass(frozen=True)
class Layout:
    """A way in which a data set lies on disk.

    Attributes:
        looks: how it looks, for the user.
        fits: whether it can be read so when the user names it.
        found: whether it is taken so by looking.
        read: the images and their labels; the flag says whether the user named the layout.
    """

    name: str
    looks: str
    fits: Callable[[Contents], bool]
    found: Callable[[Contents], bool]
    read: Callable[[Contents, bool], tuple[Entries, Labels]]


def _any_image(test: Callable[[str], object]) -> Callable[[Contents], bool]:
    return lambda contents: any(test(name) is not None for name, _ in contents.images)


def _names(contents: Contents) -> list[str]:
    return [name for name, _ in contents.images]


def _read_flat(contents: Contents, _: bool) -> tuple[Entries, Labels]:
    names = _names(contents)
    labels = first_found(
        [
            lambda: from_devkit(contents.root, names),
            lambda: from_kaggle(contents.root, names),
            lambda: from_names(names),
        ]
    )
    return contents.images, labels


def _all_thousand(contents: Contents) -> bool:
    return len({folder_index(name) for name in _names(contents)} - {None}) == CLASSES


def _read_photos(contents: Contents, _: bool) -> tuple[Entries, Labels]:
    numbered = any(folder_index(name) is not None for name in _names(contents))
    note = (
        f"folders named by numbers are taken as class indices only where all {CLASSES} are there, or with "
        "--layout imagenet-v2"
    )
    return contents.images, Labels(notes=(note,) if numbered else ())


def _read_tar(contents: Contents, _: bool) -> tuple[Entries, Labels]:
    """As a folder with the members in it would be read."""
    inner = Contents(contents.root, images=members(contents))
    if not inner.images:
        raise UsageError(f"--data {contents.root}: no images in {len(contents.tars)} tar archive(s)")
    layout = next(layout for layout in LAYOUTS.values() if layout.found(inner))
    return layout.read(inner, False)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "wnid",
            "folders named by wnids, as val/n01440764/*.JPEG",
            _any_image(folder_wnid),
            _any_image(folder_wnid),
            lambda contents, _: (contents.images, from_folders(_names(contents))),
        ),
        Layout(
            "imagenet-v2",
            "folders named by class indices, 0 to 999",
            _any_image(folder_index),
            _all_thousand,
            lambda contents, _: (contents.images, from_index_folders(_names(contents))),
        ),
        Layout(
            "flat",
            "one folder of ILSVRC2012_val_*.JPEG or *_n01751748.JPEG",
            lambda contents: bool(contents.images),
            _any_image(lambda name: validation_number(name) or name_wnid(name)),
            _read_flat,
        ),
        Layout(
            "photos",
            "any photos, without labels",
            lambda contents: bool(contents.images),
            lambda contents: bool(contents.images),
            _read_photos,
        ),
        Layout(
            "parquet",
            "Hugging Face's parquet files",
            lambda contents: bool(contents.parquets),
            lambda contents: bool(contents.parquets),
            lambda contents, named: list_parquet(contents.root, contents.parquets, named),
        ),
        Layout(
            "webdataset",
            "tar shards with a .cls, .json or .txt member beside every image",
            lambda contents: bool(contents.tars),
            lambda contents: bool(sidecars(contents)),
            read_webdataset,
        ),
        Layout(
            "tar",
            "a tar archive of images, as ILSVRC2012_img_val.tar",
            lambda contents: bool(contents.tars),
            lambda contents: bool(contents.tars),
            _read_tar,
        ),
    )
}


def _choose(contents: Contents, name: str | None) -> Layout:
    if name is not None:
        if name not in LAYOUTS:
            raise unknown_name("layout", name, LAYOUTS)
        if not LAYOUTS[name].fits(contents):
            there = ", ".join(f"{number} {kind}" for kind, number in contents.kinds().items())
            raise UsageError(f"--layout {name} is {LAYOUTS[name].looks}; {contents.root} holds {there}")
        return LAYOUTS[name]
    kinds = contents.kinds()
    if len(kinds) > 1:
        there = " and ".join(f"{number} {kind}" for kind, number in kinds.items())
        raise UsageError(
            f"--data {contents.root} holds {there}: name what you mean (--data PATH, or --layout "
            f"{'|'.join(layout.name for layout in LAYOUTS.values() if layout.fits(contents))})"
        )
    return next(layout for layout in LAYOUTS.values() if layout.found(contents))


def find_images(data: str, seed: int, layout: str | None = None, labels: Path | None = None) -> DataSet:
    """The images of a folder or an archive, in whatever layout they are, or, for `sample`, the sample photos.

    Args:
        seed: of the order.
        layout: a name of :data:`LAYOUTS`; None: found by looking.
        labels: a CSV file `image,label` that stands above all other labels.

    Raises:
        UsageError: there are no images, it is not in the layout named, or labels contradict each other.
        CamkitError: an archive is damaged or refused, or the sample photos are not installed.
    """
    if data == "sample":
        if layout is not None or labels is not None:
            raise UsageError("--layout and --labels are for --data PATH, not for the sample photos")
        items = sample_items()
        return DataSet("sample", in_order(items, seed), fingerprint(items))
    root = Path(data).expanduser()
    contents = look(root)
    if layout != "photos":  # any folder of photos may have a subfolder `train`
        contents = validation_only(contents)
    chosen = _choose(contents, layout)
    entries, found = chosen.read(contents, layout is not None)
    if labels is not None:
        found = from_file(labels, [name for name, _ in entries])
    items = make_items(entries, found.by_id)
    notes = (
        *contents.notes,
        f"{len(items)} images, layout {chosen.name} ({chosen.looks})",
        *describe(found, len(items)),
    )
    return DataSet(
        root.resolve().name,
        in_order(items, seed),
        fingerprint(items),
        layout=chosen.name,
        labels=found.origin,
        notes=notes,
        unlabelled=found.missing,
        faults=contents.faults,
    )
