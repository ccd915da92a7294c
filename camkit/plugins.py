"""Methods, metrics and models from outside: files named with --plugin, and installed packages."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from camkit.entries import METHODS, METRICS, MODELS, UTILITIES, Method, Metric
from camkit.errors import CamkitError, PluginError, UsageError, is_out_of_memory
from camkit.registry import source_of

REGISTRIES = (METHODS, METRICS, UTILITIES, MODELS)
GROUPS = ("camkit.methods", "camkit.metrics", "camkit.models", "camkit.adapters")

# Takes the name of an explainer, gives what explains: takes a trace, gives maps.
Finder = Callable[[str], Callable[..., Any]]


def adapter(
    prefix: str,
    *,
    package: str = "",
    saliency: bool = False,
    of_pixels: bool = False,
    lacks: Callable[[Any, str], str] | None = None,
) -> Callable[[Finder], Finder]:
    """Register a function that finds another package's explainers: methods `prefix:NAME`.

    The function takes NAME and gives what explains, as a method's function (see :class:`Method` for what it
    takes and returns); for a NAME that there is not it raises :class:`camkit.errors.UsageError`. Its
    docstring's first line is printed beside `prefix:NAME`.

    Args:
        prefix: letters, digits and `_`.
        package: the package, for people; "": where the function is registered.
        saliency, of_pixels, lacks: of all its methods, see :class:`Method`.

    Raises:
        ValueError: the prefix is none, or taken.
    """
    form = f"{prefix}:NAME"
    if not re.fullmatch(r"\w+", prefix):
        raise ValueError(f"adapter {prefix!r}: a prefix is letters, digits and _")
    if form in METHODS.forms:
        raise ValueError(f"adapter {prefix!r} exists already")

    def register(find: Finder) -> Finder:
        @wraps(find)
        def find_method(name: str, explainer: str) -> Method:
            return Method(
                name, find(explainer), name, ("outside",), package, saliency=saliency, of_pixels=of_pixels,
                lacks=lacks, package=package, source_file=source_of(find),
            )  # fmt: skip

        METHODS.add_family(form, rf"{prefix}:(\w+)", find_method)
        return find

    return register


def load_plugins(files: Iterable[Path | str] = ()) -> None:
    """Load the installed packages' entry points, then plugin files: all register what they hold.

    Raises:
        UsageError: a file does not exist.
        CamkitError: a plugin fails while it is loaded; the message names it.
    """
    load_entry_points()
    for file in files:
        load_file(Path(file))


@cache
def load_entry_points() -> None:
    """Import what packages name under `camkit.methods`, `.metrics`, `.models` and `.adapters`.

    An entry point names a module (or something in one); importing it registers what is in it.

    Raises:
        CamkitError: one fails; the message names it.
    """
    for group in GROUPS:
        for point in entry_points(group=group):
            try:
                point.load()
            except (Exception, SystemExit) as error:
                source = point.dist.name if point.dist else point.value
                raise CamkitError(
                    f"plugin {point.name!r} of the package {source}: {_reason(error)}"
                ) from error


def load_file(path: Path) -> None:
    """Run a plugin file, as a module of its own; warn where it registers nothing.

    A file that is loaded again registers its things anew.

    Raises:
        UsageError: there is no such file, or it is no Python file.
        CamkitError: it fails; the message gives the line.
    """
    if not path.is_file():
        raise UsageError(f"--plugin {path}: no such file")
    file = str(path.resolve())
    name = f"camkit_plugin_{path.stem}_{zlib.crc32(os.fsencode(file)):08x}"  # another folder has its own
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--plugin {path}: not a Python file")
    again = name in sys.modules  # then what it imports has registered its things already
    for registry in REGISTRIES:
        registry.forget(file)
    before = _registered()
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise CamkitError(f"plugin {path.name}{_line(error, path)}: {_reason(error)}") from error
    if not again and _registered() == before:
        # Not an error: it may add models to timm.
        warnings.warn(f"plugin {path.name} registers no method, metric or model of camkit", stacklevel=2)


def _registered() -> list[object]:
    return [(dict(registry), registry.forms) for registry in REGISTRIES]


def _line(error: BaseException, path: Path) -> str:
    """`, line N` of the innermost call in the plugin's own file."""
    lines = [error.lineno] if isinstance(error, SyntaxError) else []
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == str(path):
            lines.append(step.tb_lineno)
        step = step.tb_next
    return f", line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def without_folders(text: str) -> str:
    """A message with only the last part of each absolute path: results say nothing of a user's machine."""
    return re.sub(r"""(?<![\w./\\])(?:[A-Za-z]:|~)?(?:[/\\][^/\\\s'":,]+)+[/\\](?=[^/\\\s])""", "", text)


@contextmanager
def blamed(kind: str, entry: Method | Metric) -> Iterator[None]:
    """What a plugin raises becomes a PluginError that names it; camkit's own faults stay as they are."""
    try:
        yield
    except (Exception, SystemExit) as error:
        # A pass that does not fit into memory may fit with a smaller batch: that is no fault of the plugin.
        if not entry.origin or is_out_of_memory(error):
            raise
        said = without_folders(str(error) if isinstance(error, PluginError) else _reason(error))
        raise PluginError(f"plugin {entry.origin}: {kind} {entry.name!r}: {said}") from error
