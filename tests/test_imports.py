"""The house: a room imports only from rooms below it, modules in no circle, and nothing grows too long."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import camkit

# From the bottom up; modules beside the rooms are rooms of their own.
ROOMS = (
    *("errors", "registry", "entries", "console", "option", "config", "plugins", "share"),
    *("data", "network", "methods", "metrics", "results", "report", "runs"),
    *("api", "cli", "__main__"),
)
ROOT = Path(camkit.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
MODULE_LINES, FUNCTION_LINES = 300, 50
# Function -> why it is longer.
LONGER = {
    "api.py:explain": "a public function: its signature and docstring are half of it",
    "cli/report.py:report": "likewise",
}


def room(path: Path) -> str:
    """`metrics` for metrics/adcc.py, `api` for api.py."""
    return path.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Modules (`camkit.data.items`) that a file imports, inside functions and for the type checker too."""
    modules = {".".join(("camkit", *file.with_suffix("").parts)) for file in FILES}
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in modules else str(node.module))
    return {name for name in names if name.startswith("camkit.")}


def test_every_room_has_its_place() -> None:
    assert {room(path) for path in FILES} == set(ROOMS)


def test_few_modules_stand_beside_the_rooms() -> None:
    assert len([path for path in FILES if len(path.parts) == 1 and path.name != "__main__.py"]) <= 8


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_down(path: Path) -> None:
    below = ROOMS[: ROOMS.index(room(path)) + 1]
    wrong = sorted(name for name in imported(path) if name.split(".")[1] not in below)
    assert not wrong, f"camkit/{path} imports {wrong}, which stand above {room(path)!r}"


def test_there_is_no_circle() -> None:
    graph = {
        f"camkit.{'.'.join(path.with_suffix('').parts).removesuffix('.__init__')}": imported(path)
        for path in FILES
    }
    # A package's __init__ names its modules, which import each other by their own names.
    inner = {name: {one for one in found if one != name} for name, found in graph.items()}
    TopologicalSorter(inner).prepare()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_modules_and_functions_are_short(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and f"{path}:{node.name}" not in LONGER:
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES, f"{path}:{node.lineno} {node.name}"
