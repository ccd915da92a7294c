"""Shared by all tests: threads, a world of their own, and small photos."""

from __future__ import annotations

import os

# Read once, when torch starts its threads: without it they spin while they wait, and on a machine that has
# other work the tests take five times as long. Of several test processes each, and what it starts, has one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ALONE = "PYTEST_XDIST_WORKER" not in os.environ
if not ALONE:
    os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from pictures import write_photo  # noqa: E402
from printed import blocks  # noqa: E402

import camkit.runs.cells  # noqa: E402, F401  (fills the registries)
from camkit.plugins import REGISTRIES  # noqa: E402

torch.set_num_threads(2 if ALONE else 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several test processes none is left with the longest tests at the end; one has the golden run."""
    if not ALONE:
        items.sort(key=lambda one: (one.path.name != "test_golden.py", not one.get_closest_marker("slow")))


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No data folder of the user's, no results in the working tree, and no plugin of another test's."""
    monkeypatch.delenv("CAMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    kept = [(registry, dict(registry._entries)) for registry in REGISTRIES]
    yield
    for registry, entries in kept:
        registry._entries = entries


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos in a folder, no labels."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(6):
        write_photo(root / f"photo_{number}.png", seed=number)
    return root


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos in each of three ImageNet class folders."""
    root = tmp_path_factory.mktemp("labelled")
    for number, wnid in enumerate(["n01440764", "n01443537", "n02123045"] * 2):
        write_photo(root / wnid / f"photo_{number}.png", seed=10 + number)
    return root


@pytest.fixture
def plugin_files(tmp_path: Path) -> dict[str, Path]:
    """The plugin files of docs/extend.md by their names, as they are printed there."""
    written = {}
    for text in blocks("python"):
        name = text.splitlines()[0].removeprefix("# ")
        written[name] = tmp_path / name
        written[name].write_text(text, encoding="utf-8")
    return written
