"""Bare numbers as labels: whether they are a class list's indices, or a data set's own numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from camkit.data.classes import ClassList


def why_not_indices(numbers: Iterable[int], classes: ClassList, named: bool) -> str | None:
    """Why labels that are numbers from 0 up are not taken as indices of a class list; None where they are.

    They are where all classes occur, or where the user named the list and nothing speaks against it.

    Args:
        named: the user named the list.
    """
    found = set(numbers)
    if not found or found == set(range(len(classes))):
        return None
    low, high = min(found), max(found)
    reason = _another_numbering(found, classes)
    if reason:
        return f"its numbers go from {low} to {high}: {reason}"
    if named:
        return None
    there = f"its {len(found)} numbers go from {low} to {high}"
    if low == high:
        there = f"its only number is {low}"
    return (
        f"{there}, and nothing says that they are ImageNet's indices; --classes imagenet says so, and "
        "--classes FILE names a list of your own"
    )


def _another_numbering(found: set[int], classes: ClassList) -> str | None:
    """What numbers look like that cannot be a list's indices."""
    size, low, high = len(classes), min(found), max(found)
    if high > size:
        return f"{classes.title} has {size} classes, so they are another list's"
    if high == size and low == 0:
        return (
            f"{classes.title} has {size} classes, with indices to {size - 1}; they look like those of a list "
            "with a class more, as one for the background"
        )
    if high == size or (len(found) > 1 and found == set(range(1, len(found) + 1))):
        devkit = ", as those of ImageNet's devkit are," if (size, high) == (1000, 1000) else ""
        return (
            f"they look{devkit} counted from 1, and indices begin at 0; give names or wnids, or subtract 1 "
            "where that is right (--labels FILE)"
        )
    return None


def unlike_wnids(
    numbers: Mapping[str, int], wnids: Mapping[str, str | None], classes: ClassList
) -> str | None:
    """Why numbers are not indices: most images' names hold the wnid of another class.

    Args:
        numbers: image -> its label.
        wnids: image -> the wnid in its name, if there is one.
    """
    of_wnid = classes.index_of_wnid
    known = {name: of_wnid[wnid] for name in numbers if (wnid := wnids.get(name)) and wnid in of_wnid}
    wrong = [name for name, index in known.items() if numbers[name] != index]
    if 2 * len(wrong) <= len(known):
        return None
    name = wrong[0]
    return (
        f"{len(wrong)} of {len(known)} differ from the wnids in the images' names ({name} has "
        f"{numbers[name]}; {wnids[name]} is class {known[name]}): it is another numbering"
    )
