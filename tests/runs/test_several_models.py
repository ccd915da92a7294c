"""Runs of two models of which one fails: the other's rows, the summary, and what is said."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_run import (
    FOLDER,
    METHODS,
    MODEL,
    SECOND_FOLDER,
    SECOND_MODEL,
    at_write,
    make_images,
    tiny_bench,
    tiny_command,
)

from camkit.data import find_images
from camkit.errors import CamkitError, UsageError
from camkit.report.study import load_study
from camkit.results.folder import read_run
from camkit.results.lock import hold
from camkit.results.merge import merge
from camkit.results.summary import summarise, summary_text
from camkit.runs import job

IMAGES = 10
BOTH = (MODEL, SECOND_MODEL)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_images(tmp_path / "data", IMAGES)


def fail_at(model: str, action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something instead of loading a model."""
    prepare = job.prepare

    def failing(name: str, *details: Any) -> Any:
        return action() if name == model else prepare(name, *details)

    monkeypatch.setattr(job, "prepare", failing)


def raising(error: Exception) -> Any:
    def action() -> None:
        raise error

    return action


def rows_in_summary(out: Path) -> dict[str, int]:
    """Model -> images of its cells; the file must say what the rows say."""
    assert (out / "summary.csv").read_text() == summary_text(summarise(out))
    summary = pd.read_csv(out / "summary.csv")
    return {str(model): images.max() for model, images in summary.groupby("model")["images"]}


def test_the_others_run_and_the_command_names_what_failed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fail_at(MODEL, raising(CamkitError("no weights here")), monkeypatch)
    result = tiny_command(data, out, f"--model={SECOND_MODEL}")
    assert result.exit_code == 1
    assert f"error: {MODEL}: no weights here" in result.output
    assert result.output.splitlines()[-2:] == [
        f"error: 1 of 2 models failed, as said above: {MODEL}",
        f"All else is finished: {out / 'summary.csv'}",
    ]
    assert rows_in_summary(out) == {SECOND_MODEL: IMAGES}


def test_out_of_memory_in_the_middle_of_the_first_model(data: Path, tmp_path: Path) -> None:
    with at_write(6, raising(torch.OutOfMemoryError("CUDA out of memory"))):
        result = tiny_command(data, tmp_path / "out", f"--model={SECOND_MODEL}")
    assert result.exit_code == 1
    assert f"error: {MODEL}: out of memory at --batch-size 4" in result.output
    assert rows_in_summary(tmp_path / "out") == {MODEL: 8, SECOND_MODEL: IMAGES}


@pytest.mark.parametrize("code", [1, 2])
def test_what_ends_the_run_at_the_second_model_leaves_a_summary(
    code: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if code == 2:
        fail_at(SECOND_MODEL, raising(UsageError("no such layer")), monkeypatch)
        result = tiny_command(data, out, f"--model={SECOND_MODEL}")
    else:
        with hold(out / SECOND_FOLDER):
            result = tiny_command(data, out, f"--model={SECOND_MODEL}")
    assert result.exit_code == code
    assert rows_in_summary(out) == {MODEL: IMAGES}


def test_a_signal_while_the_second_model_loads(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(SECOND_MODEL, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    result = tiny_command(data, tmp_path / "out", f"--model={SECOND_MODEL}")
    assert result.exit_code == 1 and "error: stopped." in result.output
    assert rows_in_summary(tmp_path / "out") == {MODEL: IMAGES}


def test_an_extended_run_that_stops_at_an_image(data: Path, tmp_path: Path) -> None:
    """Rows, summary and run.json agree, and the same command stops there again."""
    out = tmp_path / "out"
    tiny_bench(data, out, limit=4)
    broken = data / find_images(str(data), 0).items[6].id
    content = broken.read_bytes()
    broken.write_bytes(b"x" * len(content))
    for _ in range(2):
        with pytest.raises(CamkitError, match=r"1 of 10 images cannot be read(.|\n)*meets these first"):
            tiny_bench(data, out, max_errors=0.0, batch_size=1)
        assert rows_in_summary(out) == {MODEL: 6}
        run = read_run(out / FOLDER / "second-rest")
        assert run["errors"] == 1
        assert [segment["images"] for segment in run["segments"]] == [4, 2]
        assert all("ended" in segment for segment in run["segments"])
        assert run["segments"][1]["rows"] == dict.fromkeys(METHODS, "4-5")
    broken.write_bytes(content)
    lines = tiny_bench(data, out, max_errors=0.0, batch_size=1)
    assert rows_in_summary(out) == {MODEL: IMAGES}
    assert read_run(out / FOLDER / "second-rest")["errors"] == 0
    assert not (out / FOLDER / "errors.csv").exists()
    assert not any("could not be read" in line for line in lines)


def test_an_error_that_is_past_in_a_run_that_has_nothing_to_do(data: Path, tmp_path: Path) -> None:
    """As a kill between the last row and the end leaves it."""
    out = tmp_path / "out"
    tiny_bench(data, out)
    (out / FOLDER / "errors.csv").write_text("image,stage,reason\ngroup0/image9.png,read,an outage\n")
    lines = tiny_bench(data, out)
    assert not (out / FOLDER / "errors.csv").exists()
    assert not any("could not be read" in line for line in lines)


def test_an_image_that_new_methods_cannot_read_stays_an_error(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tiny_bench(data, out, method=METHODS[:1])
    broken = data / find_images(str(data), 0).items[6].id
    broken.write_bytes(b"x" * broken.stat().st_size)
    lines = tiny_bench(data, out)
    assert any("1 images could not be read" in line for line in lines)
    assert (out / FOLDER / "errors.csv").read_text(errors="surrogateescape").count("read,cannot be") == 1


@pytest.mark.parametrize("left", [b"", b"image,lab"], ids=["nothing", "half a header"])
def test_a_table_without_a_whole_line_has_no_rows(left: bytes, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tiny_bench(data, out, model=BOTH, limit=2)
    torn = out / SECOND_FOLDER / "second-rest" / f"{METHODS[0]}.csv"
    torn.write_bytes(left)
    tiny_bench(data, out)
    summary = merge(out)
    assert len(summary) == 2 * len(METHODS) - 1
    assert rows_in_summary(out) == {MODEL: IMAGES, SECOND_MODEL: 2}
    blocks = {block.protocol["model"]: block.methods for block in load_study([out])}
    assert set(blocks[SECOND_MODEL]) == set(METHODS[1:])
