"""`camkit data check`: every image of a data set is read once; what was found, and what is wrong."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from camkit.config import RunConfig
from camkit.console import Bar
from camkit.data import ClassList, DataSet, Item
from camkit.data.batches import start_worker
from camkit.data.classes import CLASSES, IMAGENET
from camkit.data.items import in_storage_order
from camkit.data.pixels import decode, read_file
from camkit.data.sources import parts_of
from camkit.errors import CamkitError, Say
from camkit.plugins import load_plugins
from camkit.runs.accuracy import measure_top1
from camkit.runs.cells import find_models
from camkit.runs.selection import data_of_run

COMPLETE = 50  # images of each class in ImageNet's validation set


@dataclass(frozen=True)
class Fault:
    """Something wrong with an image or a folder.

    Attributes:
        kind: `unreadable`, `duplicate`, `contradiction` (a duplicate with another label), `no label`,
            `wrong ending` or `folder`.
    """

    image: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `camkit data check` found.

    Attributes:
        facts: in the order in which they are shown.
        classes: class index -> number of images, for classes that have any.
        faults: sorted by image.
        class_list: what the indices stand for.
    """

    facts: Mapping[str, Any]
    classes: Mapping[int, int]
    faults: Sequence[Fault]
    class_list: ClassList

    def as_dict(self) -> dict[str, Any]:
        listed = self.class_list
        classes = [
            {
                "class": index,
                "wnid": listed.wnids[index] if listed.wnids else None,
                "name": listed.short_name(index),
                "images": number,
            }
            for index, number in self.classes.items()
        ]
        return {"facts": self.facts, "classes": classes, "faults": [asdict(fault) for fault in self.faults]}

    def rows(self) -> list[tuple[str, str, Any]]:
        """(section, name, value) for a CSV file."""
        names = self.class_list.wnids or self.class_list.names
        return [
            *(("fact", name, value) for name, value in self.facts.items()),
            *(("class", f"{index} {names[index]}", number) for index, number in self.classes.items()),
            *((fault.kind, fault.image, fault.reason) for fault in self.faults),
        ]


@dataclass(frozen=True)
class Content:
    """What reading an image gave: why it cannot be read, or the hash of its bytes and PIL's format."""

    reason: str | None = None
    sha256: str = ""
    format: str = ""


def inspect(item: Item) -> Content:
    """Read and decode one image."""
    try:
        (photo,) = parts_of(item.source)
        content = read_file(photo)
        decode(content)
    except CamkitError as error:
        return Content(reason=str(error))
    with Image.open(io.BytesIO(content)) as image:
        return Content(sha256=hashlib.sha256(content).hexdigest(), format=image.format or "")


class _Contents(Dataset):
    """Inspects in the loader's worker processes."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Content:
        return inspect(self.items[index])


def check_data(
    path: str,
    layout: str | None = None,
    labels: Path | None = None,
    *,
    model: str | None = None,
    batch_size: int = 32,
    say: Say = print,
    **options: Any,
) -> Report:
    """Check a data set, and measure a model's top-1 on it where one is named.

    Args:
        say: takes each line that the user should see before the report.
        options: further ones of :class:`RunConfig`, as `classes`, `weights`, `device` and `workers`.

    Raises:
        UsageError: there are no images, or no labels to measure top-1 by.
        CamkitError: an archive is refused, or weights cannot be had.
    """
    config = RunConfig(
        model=() if model is None else (model,), data=path, layout=layout, labels=labels, **options
    )
    load_plugins(config.plugin)
    find_models(config.model)
    data = data_of_run(config)
    for note in data.notes:
        say(note)
    items = in_storage_order(data.items)
    loader = DataLoader(
        _Contents(items),
        batch_size=None,
        num_workers=min(config.workers, len(items)),
        worker_init_fn=start_worker,
    )
    contents = []
    with Bar(len(items), "reading") as bar:
        for content in loader:
            contents.append(content)
            bar.update()
    found = dict(zip((item.id for item in items), contents, strict=True))
    faults = sorted(
        [*_unreadable(found), *_duplicates(items, found), *_wrong_endings(items, found), *_unlabelled(data)],
        key=lambda fault: (fault.image, fault.kind),
    )
    classes = dict(sorted(Counter(item.label for item in items if item.label is not None).items()))
    facts = _facts(data, classes, faults)
    if model is not None:
        facts |= asdict(measure_top1(model, data, config, batch_size, say))
    return Report(facts, classes, faults, data.classes)


def _unreadable(found: Mapping[str, Content]) -> Iterator[Fault]:
    for name, content in found.items():
        if content.reason is not None:
            yield Fault(name, "unreadable", content.reason)


def _duplicates(items: Sequence[Item], found: Mapping[str, Content]) -> Iterator[Fault]:
    """Images whose bytes another one has: all but the first of them by name.

    One with a label is compared with the first that has one: a copy without a label contradicts nothing.
    """
    same: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.id):
        if found[item.id].reason is None:
            same[found[item.id].sha256].append(item)
    for copies in same.values():
        first, *others = copies
        labelled = next((item for item in copies if item.label is not None), first)
        for item in others:
            if item.label in (None, labelled.label):
                yield Fault(item.id, "duplicate", f"the same bytes as {first.id}")
            else:
                labels = f"with another label: {item.label}, not {labelled.label}"
                yield Fault(item.id, "contradiction", f"the same bytes as {labelled.id}, {labels}")


def _wrong_endings(items: Sequence[Item], found: Mapping[str, Content]) -> Iterator[Fault]:
    endings = Image.registered_extensions()
    for item in items:
        ending = PurePosixPath(item.id).suffix.lower()
        expected, actual = endings.get(ending), found[item.id].format
        # A JPEG with more than one picture in it is a JPEG.
        if expected and actual and expected != actual and {expected, actual} != {"JPEG", "MPO"}:
            yield Fault(item.id, "wrong ending", f"it is a {actual} file")


def _unlabelled(data: DataSet) -> Iterator[Fault]:
    for name, reason in data.unlabelled.items():
        yield Fault(name, "no label", reason)
    for name, reason in data.faults.items():
        yield Fault(name or ".", "folder", reason)


def _facts(data: DataSet, classes: Mapping[int, int], faults: Sequence[Fault]) -> dict[str, Any]:
    kinds = Counter(fault.kind for fault in faults)
    numbers = set(classes.values())
    full = len(classes) == CLASSES and numbers == {COMPLETE} and len(data.items) == CLASSES * COMPLETE
    complete = full and data.classes.name == IMAGENET
    return {
        "data": data.name,
        "layout": data.layout,
        "images": len(data.items),
        "labels": data.labels or "none",
        "classes": len(classes),
        "images_per_class": " to ".join(str(n) for n in sorted({min(numbers), max(numbers)}))
        if numbers
        else "",
        "unreadable": kinds["unreadable"],
        "duplicates": kinds["duplicate"] + kinds["contradiction"],
        "without_label": len(data.items) - sum(classes.values()),
        "complete_validation_set": complete and not kinds["unreadable"],
        "fingerprint": data.fingerprint,
    }
