"""Tar archives of images, and WebDataset's shards: tars with a label beside every image."""

from __future__ import annotations

import json
from collections.abc import Mapping

from camkit.data.archives import SIDECARS, key_of, read_sidecar
from camkit.data.classes import own_numbering
from camkit.data.contents import Contents, Entries
from camkit.data.labels import Labels, from_texts, renumbered
from camkit.data.sources import TarMember
from camkit.errors import CamkitError

# In this order; a wnid says more than a number.
JSON_KEYS = ("wnid", "synset", "label", "cls", "class_name")


def members(contents: Contents) -> Entries:
    """The images in all tars: by member name in one archive, else by archive and member name."""
    if contents.tars == (contents.root,):
        return contents.listings[contents.root].images
    return tuple(
        (f"{tar.relative_to(contents.root).as_posix()}/{name}", source)
        for tar, listing in contents.listings.items()
        for name, source in listing.images
    )


def sidecars(contents: Contents) -> dict[TarMember, Mapping[str, TarMember]]:
    """Image -> its sidecars by ending."""
    return {
        source: listing.sidecars[key_of(name)]
        for listing in contents.listings.values()
        if listing.sidecars
        for name, source in listing.images
        if isinstance(source, TarMember) and key_of(name) in listing.sidecars
    }


def _label(beside: Mapping[str, TarMember]) -> str | None:
    """What the sidecars of an image say of its class; None where they say nothing."""
    ending = next(ending for ending in SIDECARS if ending in beside)
    try:
        text = read_sidecar(beside[ending])
        found = json.loads(text) if ending == ".json" else {"label": text}
    except (CamkitError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    return next((str(found[key]) for key in JSON_KEYS if found.get(key) is not None), None)


def read_webdataset(contents: Contents, named: bool) -> tuple[Entries, Labels]:
    """Labels from each image's .cls, .json or .txt: an index, a wnid or a class name."""
    entries = members(contents)
    beside = sidecars(contents)
    texts = {
        name: _label(beside[source]) if source in beside else None
        for name, source in entries
        if isinstance(source, TarMember)
    }
    origin = "the shards' .cls, .json or .txt members"
    labels = from_texts(texts.items(), origin)
    numbers = all(text is None or text.strip().isdigit() for text in texts.values())
    if numbers and not named and own_numbering(labels.by_id.values()):
        labels = Labels(notes=(renumbered(origin, "webdataset"),))
    return entries, labels
