"""Several processes divide a run: the same files whatever their number, and after one of them was killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tiny_run import (
    FOLDER,
    METHODS,
    Crash,
    make_images,
    result_files,
    table_rows,
    tiny_bench,
)

from camkit import merge
from camkit.cli import main
from camkit.errors import CamkitError, UsageError
from camkit.lock import hold
from camkit.results import read_run
from camkit.share import PARTS, Share

IMAGES = 50
CHILD = Path(__file__).parent / "torchrun_child.py"
CELLS = f"{FOLDER}/second-rest"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data"), IMAGES)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process."""
    out = tmp_path_factory.mktemp("reference") / "out"
    tiny_bench(data, out)
    return out


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Set the environment as torchrun does."""

    def become(rank: int, world: int) -> None:
        for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))

    return become


def torchrun(world: int, *arguments: object, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command += [f"--max-restarts={restarts}", str(CHILD), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_torchrun_with_any_number_of_processes(
    world: int, data: Path, reference: Path, tmp_path: Path
) -> None:
    done = torchrun(world, data, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert result_files(tmp_path / "out") == result_files(reference)
    (segment,) = read_run(tmp_path / "out" / CELLS)["segments"]
    assert segment["rows"] == dict.fromkeys(METHODS, f"0-{IMAGES - 1}")
    assert (segment["images"], segment["starts"]) == (IMAGES, world)


def test_a_process_that_is_killed_and_restarted(data: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = torchrun(2, data, out, 1, 6, restarts=1)
    assert done.returncode == 0, done.stderr
    assert out.with_suffix(".killed").exists()
    assert result_files(out) == result_files(reference)


@pytest.mark.parametrize("world", range(1, 8))
def test_no_image_twice_and_none_left_out(world: int) -> None:
    parts = [Share(rank, world).of(range(IMAGES)) for rank in range(world)]
    assert sorted(image for part in parts for image in part) == list(range(IMAGES))


def run_as(rank: int, world: int, as_rank: Callable, data: Path, out: Path) -> None:
    as_rank(rank, world)
    tiny_bench(data, out)


def test_parts_of_another_number_of_processes_are_taken_up(
    data: Path, reference: Path, tmp_path: Path, as_rank: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes of which one finished, then a single one: it computes the rest, and folds the part."""
    out = tmp_path / "out"
    run_as(1, 3, as_rank, data, out)
    assert (out / PARTS / "rank-1").is_dir() and not (out / "summary.csv").exists()
    there = len([1 for key, _ in table_rows(out) if "second-rest" in key[0]])
    assert there == len(Share(1, 3).of(range(IMAGES))) * len(METHODS)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    tiny_bench(data, out)
    assert result_files(out) == result_files(reference)
    assert not (out / PARTS).exists()


def test_merge_can_be_killed_and_repeated(
    data: Path, reference: Path, tmp_path: Path, as_rank: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for rank in (1, 2):
        run_as(rank, 3, as_rank, data, out)
    monkeypatch.setattr("camkit.benchmark.wait_for_parts", lambda *_: None)
    run_as(0, 3, as_rank, data, out)
    for number in range(8):
        replace, calls = Path.replace, iter(range(number))

        def lost(self: Path, target: Path, replace=replace, calls=calls) -> Path:
            if next(calls, None) is None:
                raise Crash
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lost)
            try:
                merge.merge(out)
            except Crash:
                continue
    result = CliRunner().invoke(main, ["merge", str(out)])
    assert result.exit_code == 0, result.output
    assert result_files(out) == result_files(reference)
    assert not (out / PARTS).exists()
    other = CliRunner().invoke(main, ["merge", str(out), "--plugin", "none.py"])
    assert other.exit_code == 2 and "--plugin none.py: no such file" in other.output
    again = CliRunner().invoke(main, ["merge", str(out)])
    assert again.exit_code == 0 and result_files(out) == result_files(reference)


def test_parts_that_disagree_are_refused_by_name(data: Path, tmp_path: Path, as_rank: Callable) -> None:
    out = tmp_path / "out"
    run_as(1, 2, as_rank, data, out)
    shutil.copytree(out / PARTS / "rank-1", out / PARTS / "rank-7")
    path = out / PARTS / "rank-7" / CELLS / "run.json"
    path.write_text(path.read_text().replace('"steps": 224', '"steps": 9'))
    result = CliRunner().invoke(main, ["merge", str(out)])
    assert result.exit_code == 2
    assert "another steps" in result.output


def test_the_parts_of_a_run_at_work_are_left_alone(data: Path, tmp_path: Path, as_rank: Callable) -> None:
    out = tmp_path / "out"
    run_as(1, 2, as_rank, data, out)
    before = result_files(out)
    with hold(out / PARTS / "rank-1" / FOLDER):
        result = CliRunner().invoke(main, ["merge", str(out)])
    assert result.exit_code == 1 and "another run is at work" in result.output
    assert result_files(out) == before


def test_the_first_process_does_not_wait_for_ever(
    data: Path, tmp_path: Path, as_rank: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "SILENCE", 1.5)
    with pytest.raises(CamkitError, match="25 images are missing.*\n.*same command"):
        run_as(0, 2, as_rank, data, tmp_path / "out")


def test_force_is_refused_in_several_processes(data: Path, tmp_path: Path, as_rank: Callable) -> None:
    as_rank(0, 2)
    with pytest.raises(UsageError, match="--force: several processes"):
        tiny_bench(data, tmp_path / "out", force=True)


@pytest.mark.parametrize("rank", ["2", "-1", "one"])
def test_an_environment_that_makes_no_sense(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="expected 0 <= RANK < WORLD_SIZE"):
        Share.from_environment()


def test_each_process_takes_its_own_gpu() -> None:
    share = Share(rank=5, world=8, local_rank=1)
    assert share.device("cuda") == "cuda:1"
    assert (share.device("cuda:3"), share.device("cpu")) == ("cuda:3", "cpu")
    assert Share().device("cuda") == "cuda"
