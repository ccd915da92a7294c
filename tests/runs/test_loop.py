"""The scoring loop: batch sizes, what it records, memory, and the words for what the system does to it."""

from __future__ import annotations

import csv
import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny import TINY, TinyNet, run, segments
from torch import Tensor

import camkit.network.prepare
from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import sample_items
from camkit.errors import CamkitError, is_out_of_memory
from camkit.metrics.subject import Subject
from camkit.network.loading import LoadedModel
from camkit.network.passes import Network, TracedPass
from camkit.network.prepare import prepare
from camkit.network.trace import Trace
from camkit.results.cells import Cell, CellScores
from camkit.results.model_run import ModelRun
from camkit.runs.batch import Explained
from camkit.runs.bench import bench
from camkit.runs.dryrun import dry_run
from camkit.runs.evaluate import Evaluation
from camkit.runs.loop import Loop, OutOfMemory

FITS = 4


def rows(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    found = {}
    for path in sorted(out.glob("*/*/*.csv")):
        with path.open(newline="") as file:
            found |= {(path.stem, row["image"]): row for row in csv.DictReader(file)}
    return found


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device in which a scoring pass of more than four images does not fit."""
    logits = Network.logits

    def fits(self: Network, images: Tensor) -> Tensor:
        if len(images) > FITS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return logits(self, images)

    monkeypatch.setattr(Network, "logits", fits)


@pytest.mark.usefixtures("small_memory")
def test_auto_halves_and_goes_on(photos: Path, tmp_path: Path) -> None:
    said = run(photos, tmp_path / "auto", method=("flat", "hirescam"), batch_size="auto")
    assert [line for line in said if "out of memory" in line] == [
        "timm/camkit_tiny: out of memory, going on with 3 images per pass"
    ]
    assert [segment["batch_size"] for segment in segments(tmp_path / "auto")] == [3]
    assert not any("not as before" in line for line in said)
    run(photos, tmp_path / "fixed", method=("flat", "hirescam"), batch_size=2)
    auto, fixed = rows(tmp_path / "auto"), rows(tmp_path / "fixed")
    assert auto.keys() == fixed.keys()
    assert len(auto) == 2 * 6
    for key, row in auto.items():
        for column, value in list(row.items())[3:]:
            # A CAM's nearly equal pixels change places with the last bit, and its curves with them.
            if not (column.endswith("_auc") and key[0] == "hirescam"):
                assert float(value) == pytest.approx(float(fixed[key][column]), abs=1e-5), (key, column)


@pytest.mark.usefixtures("small_memory")
def test_auto_that_halves_again_goes_on_with_its_segment(photos: Path, tmp_path: Path) -> None:
    """Each start tries the large size first, without a row."""
    said = run(photos, tmp_path / "out", method=("flat",), batch_size="auto")
    said += run(photos, tmp_path / "out", method=("flat", "edges"), batch_size="auto")
    assert not any("not as before" in line for line in said)
    assert [segment["starts"] for segment in segments(tmp_path / "out")] == [2]


@pytest.mark.usefixtures("small_memory")
def test_a_size_that_was_asked_for_is_not_changed(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path, method=("flat",), batch_size=2, limit=2)
    before = rows(tmp_path)
    words = ["bench", "--model", "timm/camkit_tiny", "--weights", "random", "--preprocess", "native"]
    words += ["--device", "cpu", "--workers", "0", "--data", str(photos), "--out", str(tmp_path)]
    result = CliRunner().invoke(main, [*words, "--steps", "4", "--method", "flat", "--batch-size", "6"])
    assert result.exit_code == 1
    assert (
        "error: out of memory at --batch-size 6: try a smaller one, or auto. Finished rows are kept"
        in result.output
    )
    assert "Traceback" not in result.output
    assert rows(tmp_path) == before
    assert len(before) == 2


@pytest.mark.parametrize("size", [4, 5])
def test_every_pass_of_the_loop_has_one_shape(photos: Path, tmp_path: Path, size: int) -> None:
    """Six images: the last batch is padded. What comes before the loop (probes, statistics) is left out."""
    run(photos, tmp_path, method=("gradcam",), batch_size=size)
    passes = segments(tmp_path)[-1]["passes"]
    assert set(TinyNet.passed[-passes:]) == {size}
    assert passes == 2 * (1 + 2 + 2 + 2 * 3)


def test_a_run_records_its_passes_and_its_waiting(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path, method=("gradcam",), metrics=("adcc",), batch_size=3)
    (segment,) = segments(tmp_path)
    assert segment["passes"] == 2 * 3
    assert 0 < segment["waiting_seconds"] < segment["seconds"]


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("work", [bench, dry_run])
def test_a_model_is_freed_before_the_next_is_loaded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable
) -> None:
    """Two models at once may not fit; the first runs out of memory on its way, which must not keep it."""
    load = camkit.network.prepare.load_model
    loaded: list[weakref.ref] = []

    def watched(*arguments: object) -> LoadedModel:
        assert all(model() is None for model in loaded)
        found = load(*arguments)
        loaded.append(weakref.ref(found.model))
        return found

    monkeypatch.setattr(camkit.network.prepare, "load_model", watched)
    models = ("timm/camkit_tiny", "timm/camkit_tiny_too")
    settings = TINY | {"model": models, "data": str(photos), "out": tmp_path / "out", "batch_size": "auto"}
    work(RunConfig(**settings | {"method": ("gradcam",), "metrics": ("adcc",)}), lambda line: None)
    gc.collect()
    assert len(loaded) == 2 and all(model() is None for model in loaded)


@pytest.fixture(scope="module")
def loop() -> Loop:
    """Of eight images per pass."""
    config = RunConfig(**TINY)
    return Loop(prepare("timm/camkit_tiny", ("conv",), sample_items(), config, lambda line: None), config, 8)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
    ],
)
def test_out_of_memory_in_all_its_words(error: Exception, loop: Loop) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemory, match="out of memory at --batch-size 8"), loop.failures_named():
        raise error


def test_other_errors_are_not_out_of_memory(loop: Loop) -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"))
    with pytest.raises(RuntimeError, match="shapes"), loop.failures_named():
        raise RuntimeError("shapes do not match")


def test_workers_that_are_silent(monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path) -> None:
    """As a worker is that waits for room in shared memory."""
    monkeypatch.setattr("camkit.data.batches.TIMEOUT", 1)
    monkeypatch.setattr("camkit.runs.loop.TIMEOUT", 1)
    monkeypatch.setattr("camkit.data.batches.start_worker", lambda number: time.sleep(30))
    with pytest.raises(CamkitError, match="for 1 seconds no batch came (.|\n)*--workers 0(.|\n)*are kept"):
        run(photos, tmp_path / "out", method=("flat",), metrics=("adcc",), batch_size=2, workers=1)


def test_rows_are_written_while_the_next_cell_is_made(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also across batches: a result is read once something else is queued, so the device is never idle."""
    log: list[str] = []
    scores, write = Explained.scores, ModelRun.write

    def queued(self: Explained, cell: Cell, *rest: Any) -> Callable:
        log.append(f"queued {cell.method.name}")
        return scores(self, cell, *rest)

    def written(self: ModelRun, result: Any) -> None:
        log.append(f"written {result.cell.method.name if isinstance(result, CellScores) else 'predictions'}")
        write(self, result)

    def passed(self: Evaluation, *arguments: Any) -> Any:
        log.append("queued pass")
        return first_pass(self, *arguments)

    first_pass = Evaluation._first_pass
    monkeypatch.setattr(Evaluation, "_first_pass", passed)
    monkeypatch.setattr(Explained, "scores", queued)
    monkeypatch.setattr(ModelRun, "write", written)
    run(photos, tmp_path, method=("gradcam", "layercam"), metrics=("adcc",), batch_size=3)
    cells = ["queued gradcam", "written predictions", "queued layercam", "written gradcam"]
    first = ["queued pass", *cells]
    assert log == [*first, "queued pass", "written layercam", *cells, "written layercam"]


def test_a_run_records_what_each_method_took(photos: Path, tmp_path: Path) -> None:
    """Over both starts; the seconds of the cells are within those of the run."""
    for limit in (3, 6):
        run(photos, tmp_path, method=("gradcam", "flat"), metrics=("adcc",), batch_size=3, limit=limit)
    costs = {}
    for segment in segments(tmp_path):
        for method, cost in segment["costs"].items():
            assert cost["scoring_seconds"] > 0 and cost["explaining_seconds"] >= 0
            costs[method] = costs.get(method, 0) + cost["images"]
        spent = sum(c["explaining_seconds"] + c["scoring_seconds"] for c in segment["costs"].values())
        assert spent < segment["seconds"]
    assert costs == {"gradcam": 6, "flat": 6}


def test_a_batch_leaves_nothing_that_only_the_garbage_collector_frees(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alive() -> list[object]:
        return [one for one in gc.get_objects() if type(one) in {Trace, TracedPass, Subject}]

    gc.collect()
    gc.disable()
    monkeypatch.setattr(gc, "collect", lambda: 0)
    before = alive()  # other tests' own
    try:
        run(
            photos,
            tmp_path,
            method=("shapleycam", "aumann-1", "shapley", "refinecam"),
            metrics=("adcc", "null", "axioms", "shapley"),
            budget=4,
            batch_size=1,
            limit=2,
        )
        left = {*map(id, alive())} - {*map(id, before)}
    finally:
        gc.enable()
    assert not left
