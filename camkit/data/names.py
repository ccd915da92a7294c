"""Parts of an image's id. Plain string operations: pathlib would take seconds for fifty thousand of them."""

from __future__ import annotations


def file_of(name: str) -> str:
    """`c.jpg` of `a/b/c.jpg`."""
    return name.rpartition("/")[2]


def folder_of(name: str) -> str:
    """`a/b` of `a/b/c.jpg`; empty where there is none."""
    return name.rpartition("/")[0]
