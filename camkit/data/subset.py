"""`camkit data sample`: some images of each class, as a folder of its own."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path, PurePosixPath

from PIL import Image

from camkit.console import Bar
from camkit.data.classes import ClassList
from camkit.data.items import DataSet, Item, in_storage_order, spread
from camkit.data.kinds import EXTENSIONS
from camkit.data.sources import parts_of, read_bytes
from camkit.errors import CamkitError, Say, UsageError


def take(
    data: DataSet, per_class: int, out: Path, seed: int, *, copy: bool, say: Say
) -> list[tuple[str, str, int | None]]:
    """Link or copy `per_class` images of each class (or folder, where there are no labels) below `out`.

    Args:
        copy: copy files instead of linking to them; images in archives are always copied.
        say: takes a line for each image that cannot be read and is left out.

    Returns:
        (image, file below `out`, label) of what was taken.

    Raises:
        UsageError: `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"-o {out}: it is there and not empty; name a new folder")
    chosen = [item for turn, item in spread(data.items, seed) if turn < per_class]
    names = _targets(chosen, data.classes)
    taken = []
    with Bar(len(chosen), "taking") as bar:
        for item in in_storage_order(chosen):
            bar.update()
            try:
                name = _put(item, names[item.id], out, link=not copy)
            except (CamkitError, OSError) as error:
                say(f"{item.id} is left out: {error}")
                continue
            taken.append((item.id, name, item.label))
    return taken


def _targets(items: list[Item], classes: ClassList) -> dict[str, str]:
    """Image -> path below the new folder: by class, with the file's own name where no two share it."""
    named = classes.wnids or [_as_folder(name) for name in classes.names]
    folders = {item.id: item.group if item.label is None else named[item.label] for item in items}
    short = {item.id: f"{folders[item.id]}/{PurePosixPath(item.id).name}" for item in items}
    count = Counter(short.values())
    return {
        name: path if count[path] == 1 else f"{folders[name]}/{name.replace('/', '__')}"
        for name, path in short.items()
    }


def _as_folder(name: str) -> str:
    """A class's name as a folder's: no way out of the folder above, and not hidden."""
    return name.replace("/", "_").replace("\0", "_").replace(".", "_", name.startswith("."))


def _put(item: Item, name: str, out: Path, link: bool) -> str:
    """Write one image; gives its path below `out`."""
    (photo,) = parts_of(item.source)
    content = read_bytes(photo)
    if not name.lower().endswith(EXTENSIONS):
        with Image.open(io.BytesIO(content)) as image:
            name += f".{(image.format or 'jpg').lower()}"
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if link and isinstance(item.source, Path):
        path.symlink_to(item.source.resolve())
    else:
        with path.open("xb") as file:
            file.write(content)
    return PurePosixPath(path.relative_to(out)).as_posix()
