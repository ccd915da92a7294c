"""Every script of the project still knows camkit's modules, and none needs the tests."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from places import ROOT, TESTS

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
OURS = {path.stem for path in TESTS.rglob("*.py")}
IMPORT_ALL = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"


@pytest.mark.slow
@pytest.mark.peers
def test_they_can_be_imported() -> None:
    for package in ("pytorch_grad_cam", "torchcam", "sklearn"):
        pytest.importorskip(package)
    command = [sys.executable, "-c", IMPORT_ALL, *(path.stem for path in SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_they_do_without_the_tests(path) -> None:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    assert not names & OURS and not any(name.startswith("tests") for name in names)
