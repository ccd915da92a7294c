"""From a path, and what the user says of it, to a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from camkit.config import RunConfig
from camkit.data.annotations import with_regions
from camkit.data.classes import FOLDERS, IMAGENET, WNID, ClassList, imagenet
from camkit.data.classfiles import read_class_file
from camkit.data.contents import Contents, look
from camkit.data.devkit import expect_other_numbers
from camkit.data.items import DataSet, fingerprint, in_order, make_items, sample_items
from camkit.data.labelfile import from_file
from camkit.data.labels import Labels, Reading, describe
from camkit.data.layouts import LAYOUTS, Layout
from camkit.data.names import file_of, folder_of, printable, stem_of
from camkit.data.splits import TRAINING, split_folder, split_of, validation_only
from camkit.errors import UsageError
from camkit.registry import unknown_name

# Class folders that are named where the list is said.
SHOWN = 20


def data_of(config: RunConfig, own: ClassList | None = None) -> DataSet:
    """The photos of a run with their regions, see :func:`find_images` and :func:`with_regions`.

    Args:
        own: the class list that the run's models carry with them; it counts where the user names none.
    """
    data = find_images(
        config.photos,
        config.seed,
        config.layout,
        config.labels,
        classes=config.classes,
        own=own,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    return data if config.regions is None else with_regions(data, config.regions)


def find_images(
    data: str,
    seed: int,
    layout: str | None = None,
    labels: Path | None = None,
    *,
    classes: str | None = None,
    own: ClassList | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataSet:
    """The images of a folder or an archive, in whatever layout they are, or, for `sample`, the sample photos.

    Args:
        seed: of the order.
        layout: a name of :data:`LAYOUTS`; None: found by looking.
        labels: a CSV file `image,label` that stands above all other labels.
        classes: `imagenet`, `folders` or a file (:func:`camkit.data.classfiles.read_class_file`); None:
            `own`, which bare numbers mean only where all of its indices occur.
        own: the list where none is named; None: ImageNet's.
        image_column: of parquet files; the ending of the photos in WebDataset's shards.
        label_column: of parquet files; a field of the .json members of WebDataset's shards, or `cls`, `txt`.

    Raises:
        UsageError: there are no images, it is not in the layout named, labels contradict each other or the
            class list, or it is not clear what is an image.
        CamkitError: an archive is damaged or refused, or the sample photos are not installed.
    """
    if data == "sample":
        if any((layout, labels, image_column, label_column)) or classes == FOLDERS:
            raise UsageError("the sample photos take --classes FILE and no other option on how to read data")
        items = sample_items()
        return DataSet("sample", in_order(items, seed), fingerprint(items), classes=class_list(classes, own))
    root = Path(data).expanduser()
    contents = look(root)
    if layout != "photos":  # any folder of photos may have a subfolder `train`
        contents = validation_only(contents)
    listed = _folder_classes(contents) if classes == FOLDERS else class_list(classes, own)
    reading = Reading(listed, classes is not None, layout, image_column, label_column)
    return _read(contents, reading, labels, seed)


def _read(contents: Contents, reading: Reading, labels: Path | None, seed: int) -> DataSet:
    layout = _choose(contents, reading)
    entries, found = layout.read(contents, reading)
    names = [name for name, _ in entries]
    if labels is not None:
        found = from_file(labels, names, reading)
    expect_other_numbers(contents.root, found)
    items = make_items(entries, found.by_id)
    return DataSet(
        contents.root.resolve().name,
        in_order(items, seed),
        fingerprint(items),
        layout=layout.name,
        labels=found.origin,
        classes=reading.classes,
        notes=tuple(map(printable, (*contents.notes, *_what_was_found(layout, reading, names, found)))),
        unlabelled=found.missing,
        faults=contents.faults,
    )


def class_list(classes: str | None, own: ClassList | None = None) -> ClassList:
    """ImageNet's list, or that of a file; where none is named, `own` if there is one.

    Raises:
        UsageError: there is no such file, or it is no class list.
    """
    if classes is None:
        return own or imagenet()
    return imagenet() if classes == IMAGENET else read_class_file(Path(classes).expanduser())


def _folder_classes(contents: Contents) -> ClassList:
    """The class folders in sorted order, as torchvision's ImageFolder numbers them.

    Raises:
        UsageError: there are not two of them.
    """
    names = [name for name, _ in contents.images]
    names += [name for tar in contents.tars for name, _ in contents.listings[tar].images]
    inside = split_folder(names)
    folders = {f"{folder}/" for folder in contents.folders} | {f"{folder_of(name)}/" for name in names}
    found = _folders_in(inside, folders)
    for training in (name for name in folders if name.count("/") == 1 and split_of(name) == TRAINING):
        # What a network learnt are the training split's folders.
        others = _folders_in(training, folders) ^ found
        if inside and others:
            raise UsageError(
                f"--classes folders: {training} and {inside} in {contents.root} differ in their folders "
                f"({', '.join(sorted(others)[:3])}), and so in their numbers; name the list: --classes FILE"
            )
    if len(found) < 2:
        there = f"one folder, {found.pop()!r}" if found else "no folders"
        raise UsageError(
            f"--classes folders: {contents.root} holds {there}; name the folder whose folders are the classes"
        )
    classes = tuple(sorted(found))
    return ClassList(FOLDERS, classes, classes if all(map(WNID.fullmatch, classes)) else ())


def _folders_in(folder: str, folders: Iterable[str]) -> set[str]:
    """The names of the folders in one, with those that hold no image; all paths end in `/`."""
    inner = (name[len(folder) :] for name in folders if name.startswith(folder))
    return {name.partition("/")[0] for name in inner} - {""}


def _choose(contents: Contents, reading: Reading) -> Layout:
    layout = _named(contents, reading.layout) if reading.layout else _looked_for(contents, reading)
    if reading.columns and not layout.columns:
        options = " and ".join(reading.columns)
        with_columns = " or ".join(one.name for one in LAYOUTS.values() if one.columns)
        raise UsageError(f"{options}: for the layouts {with_columns}; this is {layout.name} ({layout.looks})")
    if reading.classes.name == FOLDERS and layout.numbers_classes:
        raise UsageError(
            f"--classes folders: {layout.name} numbers its classes itself; leave out one of them"
        )
    return layout


def _named(contents: Contents, name: str) -> Layout:
    if name not in LAYOUTS:
        raise unknown_name("layout", name, LAYOUTS)
    if not LAYOUTS[name].fits(contents):
        there = ", ".join(f"{number} {kind}" for kind, number in contents.kinds().items())
        raise UsageError(f"--layout {name} is {LAYOUTS[name].looks}; {contents.root} holds {there}")
    return LAYOUTS[name]


def _looked_for(contents: Contents, reading: Reading) -> Layout:
    kinds = contents.kinds()
    if len(kinds) > 1:
        there = " and ".join(f"{number} {kind}" for kind, number in kinds.items())
        raise UsageError(
            f"--data {contents.root} holds {there}: name what you mean (--data PATH, or --layout "
            f"{'|'.join(layout.name for layout in LAYOUTS.values() if layout.fits(contents))})"
        )
    return next(layout for layout in LAYOUTS.values() if layout.found(contents, reading))


def _what_was_found(layout: Layout, reading: Reading, names: Sequence[str], labels: Labels) -> list[str]:
    """Lines for the user."""
    lines = [f"{len(names)} images, layout {layout.name} ({layout.looks})"]
    if reading.classes.name == FOLDERS:
        lines.append(_said(reading.classes, names))
    elif reading.named or reading.classes.name != IMAGENET:
        lines.append(f"classes: {reading.classes.title}, {len(reading.classes)}")
    further = _further_endings(names)
    if further and not layout.columns:
        count, first = len(further), further[0]
        lines.append(
            f"images named as another one, with a further ending: {count} ({first}); are they masks?"
        )
    return [*lines, *describe(labels, len(names))]


def _said(classes: ClassList, names: Sequence[str]) -> str:
    """The class folders, with their indices."""
    listed = ", ".join(f"{index} {name}" for index, name in enumerate(classes.names[:SHOWN]))
    more = f", … {len(classes) - 1} {classes.names[-1]}" if len(classes) > SHOWN else ""
    there = Counter(folder for name in names for folder in name.split("/")[:-1])
    empty = [name for name in classes.names if not there[name]]
    without = f"; without images: {', '.join(empty)}" if empty else ""
    return f"classes: the {len(classes)} class folders in sorted order: {listed}{more}{without}"


def _further_endings(names: Sequence[str]) -> list[str]:
    """Images that are named as another one is, with a further ending: `1.seg.png` beside `1.jpg`."""
    stems = {stem_of(name) for name in names}
    shorter = {name: stem_of(stem_of(name)) for name in names if "." in file_of(stem_of(name))}
    # `photo.1.jpg` is a second photo.
    return [
        name
        for name, stem in shorter.items()
        if stem in stems and not stem_of(name)[len(stem) + 1 :].isdigit()
    ]
