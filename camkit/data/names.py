"""Parts of an image's id. Plain string operations: pathlib would take seconds for fifty thousand of them."""

from __future__ import annotations


def file_of(name: str) -> str:
    """`c.jpg` of `a/b/c.jpg`."""
    return name.rpartition("/")[2]


def folder_of(name: str) -> str:
    """`a/b` of `a/b/c.jpg`; empty where there is none."""
    return name.rpartition("/")[0]


def folders_of(name: str) -> list[str]:
    """[`a`, `b`] of `a/b/c.jpg`."""
    return name.split("/")[:-1]


def stem_of(name: str) -> str:
    """`a/b.c` of `a/b.c.jpg`: the name without its last ending."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)


def printable(text: str) -> str:
    """With line breaks and other control characters, which names may have, written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
