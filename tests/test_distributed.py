"""Several processes divide a run: the same files whatever their number, and after one of them was killed."""

from __future__ import annotations

import os
import re
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
    MODEL,
    Crash,
    make_images,
    result_files,
    table_rows,
    tiny_bench,
)

from camkit.cli import main
from camkit.data import Item, find_images
from camkit.entries import METHODS as REGISTERED
from camkit.errors import CamkitError, PluginError, UsageError
from camkit.results import merge
from camkit.results.folder import read_run
from camkit.results.lock import hold
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


def run_as(rank: int, world: int, as_rank: Callable, data: Path, out: Path, **changes: object) -> list[str]:
    as_rank(rank, world)
    return tiny_bench(data, out, **changes)


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
    monkeypatch.setattr("camkit.runs.bench.wait_for_parts", lambda *_: None)
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


def share_of(rank: int, data: Path) -> list[Item]:
    return list(Share(rank, 2).of(find_images(str(data), 0).items))


@pytest.fixture
def own_data(data: Path, tmp_path: Path) -> Path:
    return shutil.copytree(data, tmp_path / "data")


def break_images(data: Path, items: list[Item]) -> dict[Path, bytes]:
    """Make images unreadable whose size stays; give what was in them.

    Not any of the first 16 of all, from which random weights take their statistics.
    """
    contents = {data / item.id: (data / item.id).read_bytes() for item in items}
    for path, content in contents.items():
        path.write_bytes(b"x" * len(content))
    return contents


def test_each_process_compares_its_faults_with_its_own_share(
    own_data: Path, tmp_path: Path, as_rank: Callable
) -> None:
    break_images(own_data, share_of(1, own_data)[:4])
    lines = run_as(1, 2, as_rank, own_data, tmp_path / "out", max_errors=0.1)
    (line,) = [line for line in lines if line.startswith(f"error: process 1: {MODEL}: stopped: ")]
    assert "4 of 25 images cannot be read, more than --max-errors 10%" in line


def test_errors_of_all_processes_are_counted_and_go_when_they_are_past(
    own_data: Path, reference: Path, tmp_path: Path, as_rank: Callable
) -> None:
    out = tmp_path / "out"
    contents = break_images(own_data, [share_of(0, own_data)[20], share_of(1, own_data)[20]])
    assert run_as(1, 2, as_rank, own_data, out) == []
    assert run_as(0, 2, as_rank, own_data, out)[-1].startswith(f"{MODEL}: 2 images could not be read; see")
    assert read_run(out / CELLS)["errors"] == 2
    for path, content in contents.items():
        path.write_bytes(content)
    run_as(1, 2, as_rank, own_data, out)
    assert not any("could not be read" in line for line in run_as(0, 2, as_rank, own_data, out))
    assert read_run(out / CELLS)["errors"] == 0
    assert result_files(out) == result_files(reference), "and there is no errors.csv"


def test_the_first_process_waits_for_images_that_an_earlier_start_could_not_read(
    own_data: Path, reference: Path, tmp_path: Path, as_rank: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    contents = break_images(own_data, share_of(1, own_data)[20:22])
    for rank in (1, 0):
        run_as(rank, 2, as_rank, own_data, out)
    for path, content in contents.items():
        path.write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(merge, "SILENCE", 1.5)
        with pytest.raises(CamkitError, match="2 images are missing, and for"):
            run_as(0, 2, as_rank, own_data, out)
    for rank in (1, 0):
        run_as(rank, 2, as_rank, own_data, out)
    assert result_files(out) == result_files(reference)


def test_the_first_process_does_not_take_an_earlier_starts_word(
    own_data: Path, tmp_path: Path, as_rank: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 1 was through with its images in the first start, and has not begun in the second."""
    out = tmp_path / "out"
    break_images(own_data, share_of(1, own_data)[20:22])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    run_as(1, 2, as_rank, own_data, out)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with monkeypatch.context() as patch:
        patch.setattr(merge, "SILENCE", 1.5)
        with pytest.raises(CamkitError, match="2 images are missing, and for"):
            run_as(0, 2, as_rank, own_data, out)
    run_as(1, 2, as_rank, own_data, out)
    assert run_as(0, 2, as_rank, own_data, out)[-1].startswith(f"{MODEL}: 2 images could not be read")


def test_a_process_that_fails_says_so_and_the_first_one_does_not_wait_for_it(
    data: Path, tmp_path: Path, as_rank: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise CamkitError("no weights here")

    with monkeypatch.context() as patch:
        patch.setattr("camkit.runs.bench.prepare", fails)
        assert run_as(1, 2, as_rank, data, tmp_path / "out") == [
            f"error: process 1: {MODEL}: no weights here"
        ]
    with pytest.raises(CamkitError, match="25 images are missing: another process ended"):
        run_as(0, 2, as_rank, data, tmp_path / "out")
    assert (tmp_path / "out" / "summary.csv").exists()


PLUGIN = """
from pathlib import Path
from camkit import method

@method("picky")
def picky(trace):
    if Path(__file__).with_name("bad").read_text() in trace.image_ids:
        raise ValueError("not this one")
    return trace.activation.sum(dim=1)
"""


def test_rows_of_the_others_are_folded_where_the_first_process_fails(
    own_data: Path, tmp_path: Path, as_rank: Callable
) -> None:
    out, theirs = tmp_path / "out", share_of(1, own_data)
    break_images(own_data, share_of(0, own_data)[:10])
    run_as(1, 2, as_rank, own_data, out)
    with pytest.raises(CamkitError, match="cannot be read"):
        run_as(0, 2, as_rank, own_data, out)
    (images,) = re.findall(r",gradcam,predicted,(\d+),", (out / "summary.csv").read_text())
    assert int(images) >= len(theirs)


def test_what_a_plugin_did_wrong_in_another_process_is_reported_by_the_first(
    data: Path, tmp_path: Path, as_rank: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REGISTERED, "_entries", dict(REGISTERED._entries))
    (tmp_path / "picky.py").write_text(PLUGIN)
    bad = next(item.id for item in share_of(1, data)[10:] if "image" in item.id)
    (tmp_path / "bad").write_text(bad)
    out, changes = tmp_path / "out", {"method": ("gradcam", "picky"), "plugin": (tmp_path / "picky.py",)}
    assert run_as(1, 2, as_rank, data, out, **changes) == []
    with pytest.raises(PluginError, match=r"'picky': ValueError: not this one(.|\n)*All else is finished"):
        run_as(0, 2, as_rank, data, out, **changes)
    summary = (out / "summary.csv").read_text()
    assert f",gradcam,predicted,{IMAGES}," in summary and f",picky,predicted,{IMAGES - 4}," in summary
    (tmp_path / "bad").write_text("none")
    for rank in (1, 0):
        run_as(rank, 2, as_rank, data, out, **changes)
    assert not (out / FOLDER / "failures.csv").exists()


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
