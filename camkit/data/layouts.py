"""The ways in which images lie on disk, one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from camkit.data.beside import find_annotations, from_annotations, from_kaggle
from camkit.data.classes import FOLDERS, IMAGENET
from camkit.data.contents import Contents, Entries
from camkit.data.devkit import from_devkit
from camkit.data.labels import (
    Labels,
    Reading,
    first_found,
    folder_number,
    folder_wnid,
    from_class_folders,
    from_folders,
    from_names,
    from_number_folders,
    name_wnid,
    validation_number,
)
from camkit.data.names import folder_of, folders_of
from camkit.data.numbers import why_not_indices
from camkit.data.parquet import list_parquet
from camkit.data.webdataset import has_sidecars, left_out, members, read_webdataset
from camkit.errors import UsageError


@dataclass(frozen=True)
class Layout:
    """A way in which a data set lies on disk.

    Attributes:
        looks: how it looks, for the user.
        fits: whether it can be read so when the user names it.
        found: whether it is taken so by looking.
        read: the images and their labels.
        columns: whether the user can name columns of it.
        numbers_classes: whether the data say themselves which class has which number.
    """

    name: str
    looks: str
    fits: Callable[[Contents], bool]
    found: Callable[[Contents, Reading], bool]
    read: Callable[[Contents, Reading], tuple[Entries, Labels]]
    columns: bool = False
    numbers_classes: bool = False


def _names(contents: Contents) -> list[str]:
    return [name for name, _ in contents.images]


def _has_images(contents: Contents) -> bool:
    return bool(contents.images)


def _any_image(test: Callable[[str], object]) -> Callable[[Contents], bool]:
    return lambda contents: any(test(name) is not None for name in _names(contents))


def _wnid_folders(contents: Contents, reading: Reading) -> bool:
    return reading.classes.name != FOLDERS and any(map(folder_wnid, _names(contents)))


def _read_folders(contents: Contents, reading: Reading) -> tuple[Entries, Labels]:
    return contents.images, from_folders(_names(contents), reading.classes)


def _class_folders(contents: Contents, reading: Reading) -> bool:
    """Whether a list of the user's own names a folder."""
    if reading.classes.name == IMAGENET:
        return False
    folders = {folder for name in _names(contents) for folder in folders_of(name)}
    return any(map(reading.classes.indices_named, folders))


def _read_class_folders(contents: Contents, reading: Reading) -> tuple[Entries, Labels]:
    return contents.images, from_class_folders(_names(contents), reading.classes)


def _number_folders(contents: Contents, reading: Reading) -> bool:
    """Whether folders are named by all indices of the class list, or by some, and the user named the list."""
    if reading.classes.name == FOLDERS:
        return False
    numbers = {folder_number(name) for name in _names(contents)} - {None}
    return bool(numbers) if reading.named else numbers >= set(range(len(reading.classes)))


def _read_number_folders(contents: Contents, reading: Reading) -> tuple[Entries, Labels]:
    # ImageNet-V2 has ImageNet's indices: whoever names the layout names the list.
    named = reading.named or reading.layout == "imagenet-v2"
    return contents.images, from_number_folders(_names(contents), reading.classes, named)


def _is_flat(contents: Contents, _: Reading) -> bool:
    if any(validation_number(name) or name_wnid(name) for name in _names(contents)):
        return True
    return bool(contents.images) and find_annotations(contents.root) is not None


def _read_flat(contents: Contents, reading: Reading) -> tuple[Entries, Labels]:
    root, names, classes = contents.root, _names(contents), reading.classes
    labels = first_found(
        [
            lambda: from_devkit(root, names, classes),
            lambda: from_kaggle(root, names, classes),
            lambda: from_annotations(root, names, classes),
            lambda: from_names(names, classes),
        ]
    )
    return contents.images, labels


def _read_photos(contents: Contents, reading: Reading) -> tuple[Entries, Labels]:
    if reading.layout == "photos":
        return contents.images, Labels()
    numbers = {number for name in _names(contents) if (number := folder_number(name)) is not None}
    # Folders of years are nobody's classes.
    near = bool(numbers) and min(numbers) <= len(reading.classes)
    reason = why_not_indices(numbers, reading.classes, reading.named) if near else None
    if reason:
        return contents.images, Labels(refused=f"the folders named by numbers: {reason}")
    folders = {folder_of(name) for name in _names(contents)}
    hint = "if each folder is a class, --classes folders takes them so"
    return contents.images, Labels(notes=(hint,) if len(folders) > 1 else ())


def _read_tar(contents: Contents, reading: Reading) -> tuple[Entries, Labels]:
    """As a folder with the members in it would be read."""
    inner = Contents(contents.root, images=members(contents))
    if not inner.images:
        raise UsageError(f"--data {contents.root}: no images in {len(contents.tars)} tar archive(s)")
    inside = replace(reading, layout=None)
    layout = next(layout for layout in LAYOUTS.values() if layout.found(inner, inside))
    entries, labels = layout.read(inner, inside)
    return entries, replace(labels, notes=(*left_out(contents), *labels.notes))


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "wnid",
            "folders named by wnids, as val/n01440764/*.JPEG",
            fits=_any_image(folder_wnid),
            found=_wnid_folders,
            read=_read_folders,
        ),
        Layout(
            "folders",
            "folders named by classes of --classes, as cat/*.jpg",
            fits=_any_image(lambda name: folders_of(name) or None),
            found=_class_folders,
            read=_read_class_folders,
        ),
        Layout(
            "imagenet-v2",
            "folders named by class indices, as 0/*.jpeg to 999/*.jpeg",
            fits=_any_image(folder_number),
            found=_number_folders,
            read=_read_number_folders,
            numbers_classes=True,
        ),
        Layout(
            "flat",
            "one folder of ILSVRC2012_val_*.JPEG or *_n01751748.JPEG, or Tiny ImageNet's val",
            fits=_has_images,
            found=_is_flat,
            read=_read_flat,
        ),
        Layout(
            "photos",
            "any photos, without labels",
            fits=_has_images,
            found=lambda contents, _: _has_images(contents),
            read=_read_photos,
        ),
        Layout(
            "parquet",
            "Hugging Face's parquet files",
            fits=lambda contents: bool(contents.parquets),
            found=lambda contents, _: bool(contents.parquets),
            read=lambda contents, reading: list_parquet(contents.root, contents.parquets, reading),
            columns=True,
        ),
        Layout(
            "webdataset",
            "tar shards with a .cls, .json or .txt member beside every image",
            fits=lambda contents: bool(contents.tars),
            found=lambda contents, reading: has_sidecars(contents) or bool(contents.tars and reading.columns),
            read=read_webdataset,
            columns=True,
            numbers_classes=True,
        ),
        Layout(
            "tar",
            "a tar archive of images, as ILSVRC2012_img_val.tar",
            fits=lambda contents: bool(contents.tars),
            found=lambda contents, _: bool(contents.tars),
            read=_read_tar,
        ),
    )
}
