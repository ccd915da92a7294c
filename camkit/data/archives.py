"""Tar archives: listed, never unpacked. An archive is untrusted: what could reach outside it is refused."""

from __future__ import annotations

import re
import tarfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from camkit.data.kinds import LeftOut, is_image
from camkit.data.names import stem_of
from camkit.data.sources import Source, TarMember
from camkit.errors import CamkitError

DRIVE = re.compile(r"[A-Za-z]:|\\")
SIDECARS = (".cls", ".json", ".txt")
MAX_SIDECAR = 2**20
MAX_MEMBERS = 5_000_000


def safe_name(name: str) -> str:
    """The name of a member, without a leading `./`.

    Raises:
        CamkitError: it is absolute, leads outside with `..`, or is no path at all.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    absolute = name.startswith("/") or DRIVE.match(name)
    if absolute or ".." in name.replace("\\", "/").split("/") or "\0" in name or not parts:
        raise CamkitError(f"the member name {name!r} leads outside the archive")
    return "/".join(parts)


@dataclass(frozen=True)
class Listing:
    """What a tar holds.

    Attributes:
        images: (name, source) in the order of the archive.
        sidecars: name without the last ending -> ending -> member.
        left_out: what is passed over.
    """

    images: tuple[tuple[str, Source], ...]
    sidecars: Mapping[str, Mapping[str, TarMember]]
    left_out: LeftOut


def list_tar(archive: Path) -> Listing:
    """Read the headers of an uncompressed tar.

    Raises:
        CamkitError: it cannot be read, is damaged or cut off, holds a link, a name that leads outside, a
            name twice, or too many members.
    """
    try:
        return _list(archive)
    except CamkitError as error:
        raise CamkitError(f"{archive} is refused: {error}") from error
    except (tarfile.TarError, EOFError) as error:
        raise CamkitError(f"{archive} cannot be read as a tar archive: {error}") from error


def _list(archive: Path) -> Listing:
    total = archive.stat().st_size
    images: dict[str, Source] = {}
    sidecars: dict[str, dict[str, TarMember]] = defaultdict(dict)
    left_out = LeftOut()
    end = 0
    with tarfile.open(archive, "r:") as tar:
        count = 0
        while (member := tar.next()) is not None:
            name = safe_name(member.name) if not member.isdir() else ""
            if member.issparse() or not (member.isfile() or member.isdir()):
                raise CamkitError(f"the member {name!r} is a link or a device, not a file")
            if member.size < 0 or member.offset_data + member.size > total:
                raise CamkitError(f"the member {name!r} reaches beyond the archive's end: a broken download?")
            count += 1
            if count > MAX_MEMBERS:
                raise CamkitError(f"more than {MAX_MEMBERS} members")
            blocks = -(-member.size // tarfile.BLOCKSIZE) if member.isfile() else 0
            end = member.offset_data + blocks * tarfile.BLOCKSIZE
            source = TarMember(archive, member.offset_data, member.size)
            ending = PurePosixPath(name).suffix
            if name in images or ending in sidecars.get(stem_of(name), ()):
                raise CamkitError(f"two members have the name {name!r}")
            if is_image(name):
                if not left_out.passes_over(name):
                    images[name] = source
            elif ending in SIDECARS:
                sidecars[stem_of(name)][ending] = source
            elif name:
                left_out.add(name)
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep a copy of every header
    _check_end(archive, end)
    return Listing(tuple(images.items()), sidecars, left_out)


def _check_end(archive: Path, end: int) -> None:
    """tarfile takes a damaged header for the end of the archive: the real end is a block of zeros."""
    with archive.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise CamkitError(f"damaged or cut off at byte {end}: a broken download?")


def read_sidecar(source: TarMember) -> str:
    """The text of a small member.

    Raises:
        CamkitError: it is larger than 1 MiB or no UTF-8.
    """
    if source.size > MAX_SIDECAR:
        raise CamkitError(f"{source.size} bytes of label, the limit is {MAX_SIDECAR}")
    try:
        return source.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CamkitError("the label is no UTF-8 text") from error
