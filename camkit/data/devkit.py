"""The devkit's ground truth for the validation set: a number per line, in a numbering of its own."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from camkit.data.beside import folders_up, is_file
from camkit.data.classes import ClassList, wnid_to_index
from camkit.data.labels import Labels, by_wnid, validation_number
from camkit.data.names import file_of
from camkit.errors import CamkitError, UsageError

TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
MAX_FILE = 2**26


def from_devkit(root: Path, names: Sequence[str], classes: ClassList) -> Labels | None:
    """By the devkit's ground truth, one class per line in the devkit's own numbers, which meta.mat explains.

    Looked for in the folder, the four above it, and there in `data/` and `ILSVRC2012_devkit_t12/data/`, or in
    `ILSVRC2012_devkit_t12.tar.gz` as it was downloaded.

    Raises:
        CamkitError: meta.mat is not there, a file is damaged, or they do not fit each other or the images.
    """
    found = _find_devkit(root)
    if found is None:
        return None
    origin, numbers, wnids = _read(*found)
    pairs: list[tuple[str, str | None]] = []
    for name in names:
        place = validation_number(name)
        if place is None:
            pairs.append((name, None))
            continue
        if not 1 <= place <= len(numbers):
            raise UsageError(f"{origin} has {len(numbers)} lines, and {name} is number {place}")
        pairs.append((name, wnids[numbers[place - 1]]))
    return by_wnid(pairs, origin, "its name is not ILSVRC2012_val_ and a number", classes)


def expect_other_numbers(root: Path, labels: Labels) -> None:
    """Labels are not the devkit's own numbers, where the devkit lies near.

    Raises:
        UsageError: they are, for all official names among the images.
    """
    places = {name: place for name in labels.by_id if (place := validation_number(name))}
    found = _find_devkit(root) if places else None
    if found is None:
        return
    try:
        origin, numbers, wnids = _read(*found)
    except CamkitError:
        return  # a devkit that does not fit itself is no witness
    own = {name: numbers[place - 1] for name, place in places.items() if place <= len(numbers)}
    devkits = {name: wnid_to_index()[wnids[number]] for name, number in own.items()}
    if any(str(labels.by_id[name]) != number for name, number in own.items()):
        return
    wrong = [name for name, index in devkits.items() if labels.by_id[name] != index]
    if wrong:
        raise UsageError(
            f"{labels.origin}: its labels are the devkit's own numbers, as in {origin}, and no indices "
            f"({wrong[0]}: {own[wrong[0]]} is class {devkits[wrong[0]]}); leave them out, and the devkit "
            "gives the labels, or give wnids (--labels FILE)"
        )


def _read(origin: str, truth: bytes, meta: bytes | None) -> tuple[str, list[str], dict[str, str]]:
    """The ground truth's numbers, one per line, and the wnid of each number.

    Raises:
        UsageError: meta.mat is not there or damaged, or a line, whosever it is, holds no class of it.
    """
    if meta is None:
        raise UsageError(f"{origin}: its numbers are explained by {META}, which is not there")
    wnids = _devkit_wnids(origin, meta)
    classes = {number: wnid for number, wnid in wnids.items() if wnid in wnid_to_index()}
    numbers = truth.decode("ascii", "replace").split()
    for line, number in enumerate(numbers, start=1):
        if number not in classes:
            hint = "; has the file been rewritten with numbers from 0?" if number == "0" else ""
            raise UsageError(f"{origin}, line {line}: {META} has no class {number!r}{hint}")
    return origin, numbers, classes


def _find_devkit(root: Path) -> tuple[str, bytes, bytes | None] | None:
    """The ground truth and meta.mat, with the name of where they come from."""
    for folder in folders_up(root):
        for place in (folder, folder / "data", folder / "ILSVRC2012_devkit_t12" / "data"):
            if is_file(place / TRUTH):
                meta = place / META
                return TRUTH, (place / TRUTH).read_bytes(), meta.read_bytes() if is_file(meta) else None
        packed = folder / "ILSVRC2012_devkit_t12.tar.gz"
        if is_file(packed):
            members = _unpacked(packed, (TRUTH, META))
            if TRUTH in members:
                return f"{packed.name}/{TRUTH}", members[TRUTH], members.get(META)
    return None


def _unpacked(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The named regular members of a small compressed tar, read into memory."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = file_of(member.name)
                if name in names and member.isreg():
                    if member.size > MAX_FILE:
                        raise CamkitError(f"{archive.name}: {name} has {member.size} bytes: refused")
                    file = tar.extractfile(member)
                    found[name] = file.read() if file else b""
                if len(found) == len(names):
                    break
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CamkitError(f"{archive} cannot be read: {error}") from error
    return found


def _devkit_wnids(origin: str, meta: bytes) -> dict[str, str]:
    """The devkit's class number, as written in the ground truth -> wnid."""
    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        numbers, wnids = synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist()
    except Exception as error:  # scipy raises nearly anything on a damaged file
        raise UsageError(f"{META} beside {origin} cannot be read: {error}") from error
    return {str(int(number)): str(wnid) for number, wnid in zip(numbers, wnids, strict=True)}
