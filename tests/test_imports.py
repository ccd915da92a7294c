"""Imports go one way: a module imports only what stands above it here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import camkit

ORDER = (
    # what all need
    *("errors", "allocator", "stop", "csv_text", "seeding", "config", "registry", "plugins", "share"),
    # images and models
    *("data", "cache", "pixels", "models", "weights", "loading"),
    # the network, what is made of it, and its scores
    *("utilities", "layers", "game", "head", "tracing", "saliency", "methods", "metrics", "evaluate"),
    # results on disk
    *("statistics", "tables", "lock", "results", "protocol"),
    # a run
    *("prepare", "provenance", "merge", "rows", "run", "benchmark", "dryrun"),
    # what is done beside runs
    *("accuracy", "check", "report", "photos", "rescore", "verify", "submit", "api"),
    # the command line
    *("cli", "__main__"),
)
ROOT = Path(camkit.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room(path: Path) -> str:
    """`metrics` for metrics/adcc.py, `bench` for bench.py."""
    return path.parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, inside functions too, but for those only the type checker sees."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("camkit.")}


def test_every_room_has_its_place() -> None:
    assert {room(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_one_way(path: Path) -> None:
    place = ORDER.index(room(path))
    below = {name for name in imported_rooms(path) if name not in ORDER[: place + 1]}
    assert not below, f"camkit/{path} imports {sorted(below)}, which stand below {room(path)!r}"
