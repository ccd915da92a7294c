"""Tar archives of images, and WebDataset's shards: tars with a label beside every image.

WebDataset gives the members of one sample one key, which goes to the first dot of the file name. Names with
further dots (`v1.0_0001.jpg`) do not fit that, and are common.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from camkit.data.archives import SIDECARS, Listing, read_sidecar
from camkit.data.contents import Contents, Entries
from camkit.data.kinds import together
from camkit.data.labels import Labels, Reading, from_texts
from camkit.data.names import stem_of
from camkit.data.sources import Source, TarMember
from camkit.errors import CamkitError, UsageError

# In this order; a wnid says more than a number.
JSON_KEYS = ("wnid", "synset", "label", "cls", "class_name")
MOST_FIELDS = 6

Sidecars = Mapping[str, TarMember]  # ending -> member


def members(contents: Contents) -> Entries:
    """The images in all tars: by member name in one archive, else by archive and member name."""
    return tuple(
        (_id(contents, tar, name), source)
        for tar, listing in contents.listings.items()
        for name, source in listing.images
    )


def _id(contents: Contents, tar: Path, name: str) -> str:
    return name if tar == contents.root else f"{tar.relative_to(contents.root).as_posix()}/{name}"


def left_out(contents: Contents) -> tuple[str, ...]:
    """Lines on what is passed over in the tars."""
    return tuple(together(listing.left_out for listing in contents.listings.values()).notes())


def key_of(name: str) -> str:
    """WebDataset's key: the path, and the file name up to its first dot."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def has_sidecars(contents: Contents) -> bool:
    """Whether an image has a label beside it."""
    for listing in contents.listings.values():
        keys = {key_of(stem) for stem in listing.sidecars}
        if any(key_of(name) in keys for name, _ in listing.images):
            return True
    return False


class _Shard:
    """One archive: which members belong together.

    Args:
        column: the ending of the images that are wanted.
    """

    def __init__(self, archive: Path, listing: Listing, column: str | None) -> None:
        self.archive = archive
        self.sidecars = listing.sidecars
        self.stems = Counter(stem_of(name) for name, _ in listing.images)
        self.fields = Counter(self._field(name) for name, _ in listing.images)
        self.images = [image for image in listing.images if column is None or self._has(image[0], column)]
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        self.by_key: dict[str, list[str]] = defaultdict(list)
        for name, _ in self.images:
            self.by_stem[stem_of(name)].append(name)
            self.by_key[key_of(name)].append(name)
        # Sidecars that no image has the name of.
        self.free: dict[str, list[str]] = defaultdict(list)
        for stem in listing.sidecars:
            if stem not in self.stems:
                self.free[key_of(stem)].append(stem)

    def _first(self, name: str) -> str | None:
        """The name of another image, without its ending, that this one goes on from: `1` for `1.seg.png`."""
        stem, key = stem_of(name), key_of(name)
        dots = (place for place in range(len(key), len(stem)) if stem[place] == ".")
        return next((stem[:place] for place in dots if stem[:place] in self.stems), None)

    def _field(self, name: str) -> str:
        """What an image is of its sample: `jpg`, `seg.png`."""
        return name[len(self._first(name) or stem_of(name)) + 1 :].lower()

    def _has(self, name: str, column: str) -> bool:
        """Whether an image is of a column; one with sidecars of its own is a sample of its own."""
        if not name.lower().endswith(f".{column}"):
            return False
        return "." in column or self._field(name) == column or stem_of(name) in self.sidecars

    def samples(self) -> Iterator[tuple[str, Source, Sidecars]]:
        """Every image with its sidecars.

        They are named as the image is without its last ending, else by its key, if it is one image's only.

        Raises:
            UsageError: images are of one sample, or sidecars could be of several; the message names them.
        """
        for name, source in self.images:
            stem, key = stem_of(name), key_of(name)
            if len(self.by_stem[stem]) > 1:
                raise self._one_sample(self.by_stem[stem])
            if stem in self.sidecars:
                yield name, source, self.sidecars[stem]
                continue
            first = self._first(name)
            if first and first in self.by_stem:
                raise self._one_sample([*self.by_stem[first], name])
            if self.free[key] and len(self.by_key[key]) > 1:
                member = self.free[key][0] + next(iter(self.sidecars[self.free[key][0]]))
                images = " and of ".join(self.by_key[key][:2])
                raise self._unclear(f"{member} could be the label of {images}")
            yield name, source, self.sidecars.get(key) or self._of_key(name, key)

    def _of_key(self, name: str, key: str) -> Sidecars:
        """The sidecars of the only image with this key."""
        found: dict[str, TarMember] = {}
        for stem in self.free[key]:
            twice = sorted(found.keys() & self.sidecars[stem].keys())
            if twice:
                raise self._unclear(f"{name} has several {twice[0]} members, as {stem}{twice[0]}")
            found |= self.sidecars[stem]
        return found

    def _one_sample(self, names: Sequence[str]) -> UsageError:
        fields = "|".join(name for name, _ in self.fields.most_common(MOST_FIELDS))
        return UsageError(
            f"{self.archive}: {' and '.join(names)} are images of one sample: which is the photo?\n"
            f"--image-column {fields} says so; --layout tar takes all images, without the labels beside them"
        )

    def _unclear(self, reason: str) -> UsageError:
        return UsageError(
            f"{self.archive}: {reason}.\n--layout tar takes the images without the labels beside them, and "
            "--labels FILE gives others"
        )


def _label(beside: Sidecars, column: str | None) -> str | None:
    """What the sidecars of an image say of its class; None where there are none.

    Raises:
        CamkitError: what they say cannot be read.
    """
    ending = next((one for one in SIDECARS if one in beside), None)
    if column is not None:
        ending = f".{column}" if f".{column}" in beside and column != "json" else ".json"
    if ending is None or ending not in beside:
        return None
    text = read_sidecar(beside[ending])
    if ending != ".json":
        return text
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CamkitError("the .json member is no JSON") from error
    keys = JSON_KEYS if column is None else (column,)
    label = next((found[key] for key in keys if isinstance(found, dict) and found.get(key) is not None), None)
    if label is None:
        there = ", ".join(list(found)[:MOST_FIELDS]) if isinstance(found, dict) else type(found).__name__
        raise CamkitError(f"in .json there is no {' or '.join(keys)}, but {there or 'nothing'}")
    return str(label)


def read_webdataset(contents: Contents, reading: Reading) -> tuple[Entries, Labels]:
    """Labels from each image's .cls, .json or .txt: an index, a wnid or a class name.

    Raises:
        UsageError: it is not clear which members belong together, or a column that was named is not there.
    """
    column = reading.image_column.lower().removeprefix(".") if reading.image_column else None
    entries: list[tuple[str, Source]] = []
    texts: dict[str, str | None] = {}
    unread: dict[str, str] = {}
    fields: Counter[str] = Counter()
    for tar, listing in contents.listings.items():
        shard = _Shard(tar, listing, column)
        fields += shard.fields
        for member, source, beside in shard.samples():
            name = _id(contents, tar, member)
            entries.append((name, source))
            try:
                texts[name] = _label(beside, reading.label_column)
            except CamkitError as error:
                texts[name], unread[name] = None, str(error)
    if not entries:
        there = ", ".join(fields) or "there are no images"
        raise UsageError(f"--image-column {column}: no image ends so; they end in: {there}")
    if reading.label_column and not any(texts.values()):
        reason = next(iter(unread.values()), "images have no .json member")
        raise UsageError(f"--label-column {reading.label_column}: {reason}")
    labels = from_texts(texts.items(), "the shards' .cls, .json or .txt members", reading, unread)
    notes = left_out(contents)
    others = fields.total() - len(entries)
    if others:
        notes = (*notes, f"--image-column {column}: other images, left out: {others}")
    return tuple(entries), replace(labels, notes=(*notes, *labels.notes))
