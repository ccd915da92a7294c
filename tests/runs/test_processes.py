"""Several processes divide a run: nobody waits for anybody, and they leave what one would have made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from places import HELPERS
from tiny_run import (
    FOLDER,
    METHODS,
    Crash,
    RunAs,
    at_write,
    images_of,
    make_images,
    result_files,
    table_rows,
    tiny_bench,
)

from camkit.cli import main
from camkit.errors import UsageError
from camkit.results import lock as locks
from camkit.results import merge
from camkit.results.folder import read_run
from camkit.results.lock import hold
from camkit.results.model_run import ModelRun
from camkit.runs.job import Job
from camkit.share import PARTS, Share

IMAGES = 50
CELLS = f"{FOLDER}/second-rest"
Lines = list[str]

pytestmark = pytest.mark.usefixtures("one_thread")


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
def unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes end before they fold their parts, as if each was killed there."""
    monkeypatch.setattr("camkit.runs.job.fold", lambda *_, **__: None)


def crash_as(rank: int, world: int, run_as: RunAs, data: Path, out: Path, number: int) -> None:
    """A process that is killed before its `number`-th cell and batch is written."""

    def crash() -> None:
        raise Crash

    with at_write(number, crash), pytest.raises(Crash):
        run_as(rank, world, data, out)


def torchrun(world: int, *arguments: object, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command += [f"--max-restarts={restarts}", str(HELPERS / "torchrun_child.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


@pytest.mark.slow
def test_torchrun_with_three_processes(data: Path, reference: Path, tmp_path: Path) -> None:
    done = torchrun(3, data, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert result_files(tmp_path / "out") == result_files(reference)
    assert not (tmp_path / "out" / PARTS).exists()
    (segment,) = read_run(tmp_path / "out" / CELLS)["segments"]
    assert segment["rows"] == dict.fromkeys(METHODS, f"0-{IMAGES - 1}")
    assert (segment["images"], segment["starts"]) == (IMAGES, 3)
    assert f"{tmp_path / 'out' / 'summary.csv'}: {len(METHODS)} cells" in done.stdout


@pytest.mark.slow
def test_a_process_that_is_killed_and_restarted(data: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = torchrun(2, data, out, 1, 6, restarts=1)
    assert done.returncode == 0, done.stderr
    assert out.with_suffix(".killed").exists()
    assert result_files(out) == result_files(reference)


@pytest.mark.parametrize("order", [(0,), (0, 1), (1, 0), (2, 0, 1)])
def test_one_after_the_other_in_any_order(
    order: tuple[int, ...], data: Path, reference: Path, tmp_path: Path, run_as: RunAs
) -> None:
    """Each folds its own part at its end; the last one has the summary, the others have none."""
    out, world = tmp_path / "out", len(order)
    expected = 0
    for place, rank in enumerate(order):
        summary, _ = run_as(rank, world, data, out)
        assert (summary is not None) == (place == world - 1)
        expected += len(Share(rank, world).of(range(IMAGES)))
        assert images_of(out) == expected
        assert not (out / PARTS).exists()
    assert summary is not None and summary["images"].tolist() == [IMAGES] * len(METHODS)
    assert result_files(out) == result_files(reference)
    (segment,) = read_run(out / CELLS)["segments"]
    assert segment["rows"] == dict.fromkeys(METHODS, f"0-{IMAGES - 1}")
    assert (segment["images"], segment["starts"]) == (IMAGES, world)


def test_a_process_of_a_finished_run_has_the_summary_too(data: Path, reference: Path, run_as: RunAs) -> None:
    before = result_files(reference)
    summary, _ = run_as(1, 2, data, reference)
    assert summary is not None and summary["images"].tolist() == [IMAGES] * len(METHODS)
    assert result_files(reference) == before


@pytest.mark.parametrize("world", range(1, 8))
def test_no_image_twice_and_none_left_out(world: int) -> None:
    parts = [Share(rank, world).of(range(IMAGES)) for rank in range(world)]
    assert sorted(image for part in parts for image in part) == list(range(IMAGES))


class TestKilled:
    def test_its_part_is_folded_by_the_next_to_end(
        self, data: Path, reference: Path, tmp_path: Path, run_as: RunAs
    ) -> None:
        out, theirs = tmp_path / "out", len(Share(1, 2).of(range(IMAGES)))
        crash_as(0, 2, run_as, data, out, number=10)
        there = Counter(key[0] for key, _ in table_rows(out) if "second-rest" in key[0])
        assert len(there) == len(METHODS) and all(f"{PARTS}/rank-0" in name for name in there)
        summary, _ = run_as(1, 2, data, out)
        assert summary is None and not (out / PARTS).exists()
        for method in METHODS:
            made = there[f"{PARTS}/rank-0/{CELLS}/{method}.csv"]
            assert made in (8, 12)  # the second or the third batch of four was the last one
            assert images_of(out, method) == theirs + made
        summary, _ = run_as(0, 2, data, out)
        assert summary is not None and result_files(out) == result_files(reference)

    def test_its_part_is_folded_by_merge(self, data: Path, tmp_path: Path, run_as: RunAs) -> None:
        out = tmp_path / "out"
        crash_as(0, 2, run_as, data, out, number=10)
        assert not (out / "summary.csv").exists()
        result = CliRunner().invoke(main, ["merge", str(out)])
        assert result.exit_code == 0, result.output
        assert images_of(out) == 12 and not (out / PARTS).exists()

    def test_its_part_is_taken_up_by_another_number_of_processes(
        self, data: Path, reference: Path, tmp_path: Path, run_as: RunAs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One of three, then a single one: it makes the rest, and folds the part."""
        out = tmp_path / "out"
        crash_as(1, 3, run_as, data, out, number=10)
        assert (out / PARTS / "rank-1").is_dir()
        there = len([1 for key, _ in table_rows(out) if "second-rest" in key[0]])
        assert there == 10 * 4  # batches of four
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)
        lines = tiny_bench(data, out)
        assert any(f"of {IMAGES} images" in line and "going on" in line for line in lines)
        assert result_files(out) == result_files(reference)
        assert not (out / PARTS).exists()

    def test_a_part_at_work_is_left_alone(
        self, data: Path, reference: Path, tmp_path: Path, run_as: RunAs
    ) -> None:
        out = tmp_path / "out"
        crash_as(0, 2, run_as, data, out, number=10)
        part = out / PARTS / "rank-0"
        before = result_files(part)
        with hold(part / FOLDER):
            summary, _ = run_as(1, 2, data, out)
        assert summary is None and result_files(part) == before
        assert images_of(out) == len(Share(1, 2).of(range(IMAGES)))
        summary, _ = run_as(0, 2, data, out)
        assert summary is not None and result_files(out) == result_files(reference)


def test_nobody_folds_a_part_that_a_process_is_about_to_hold(
    data: Path, tmp_path: Path, run_as: RunAs, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lock, held = tmp_path / "out", locks._lock, []

    def noted(handle: int, folder: Path) -> bool:
        if folder.parent.name == "rank-1":
            held.append(out / FOLDER / locks.LOCK in locks._HELD)
        return lock(handle, folder)

    monkeypatch.setattr(locks, "_lock", noted)
    run_as(1, 2, data, out)
    assert held[0]


@pytest.mark.usefixtures("unfolded")
class TestMerge:
    def test_it_can_be_killed_and_repeated(
        self, data: Path, reference: Path, tmp_path: Path, run_as: RunAs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        for rank in range(3):
            assert run_as(rank, 3, data, out)[0] is None
        assert not (out / "summary.csv").exists()
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

    def test_what_the_parts_took_is_counted_once(
        self, data: Path, tmp_path: Path, run_as: RunAs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where a merge is killed before it removes the parts."""
        out = tmp_path / "out"
        for rank in range(2):
            run_as(rank, 2, data, out)

        def killed(folder: Path) -> None:
            raise Crash

        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr("camkit.results.merge.shutil.rmtree", killed)
            merge.merge(out)
        merge.merge(out)
        (segment,) = read_run(out / CELLS)["segments"]
        assert (segment["images"], segment["starts"]) == (IMAGES, 2)

    def test_parts_that_disagree_are_refused_by_name(self, data: Path, tmp_path: Path, run_as: RunAs) -> None:
        out = tmp_path / "out"
        run_as(1, 2, data, out)
        shutil.copytree(out / PARTS / "rank-1", out / PARTS / "rank-7")
        path = out / PARTS / "rank-7" / CELLS / "run.json"
        path.write_text(path.read_text().replace('"steps": 224', '"steps": 9'))
        result = CliRunner().invoke(main, ["merge", str(out)])
        assert result.exit_code == 2
        assert "another steps" in result.output

    def test_parts_of_a_run_at_work_are_left_alone(self, data: Path, tmp_path: Path, run_as: RunAs) -> None:
        out = tmp_path / "out"
        run_as(1, 2, data, out)
        before = result_files(out)
        with hold(out / PARTS / "rank-1" / FOLDER):
            result = CliRunner().invoke(main, ["merge", str(out)])
        assert result.exit_code == 1 and "another run is at work" in result.output
        assert result_files(out) == before


def test_force_is_refused_in_several_processes(data: Path, tmp_path: Path, as_rank: Callable) -> None:
    as_rank(0, 2)
    with pytest.raises(UsageError, match="--force: several processes"):
        tiny_bench(data, tmp_path / "out", force=True)


def test_each_process_says_which_share_it_does_and_where_it_learnt_that(
    data: Path, tmp_path: Path, run_as: RunAs
) -> None:
    for rank in (1, 0):
        _, lines = run_as(rank, 2, data, tmp_path / "out")
        assert (
            f"process {rank} of 2 (RANK and WORLD_SIZE in the environment, as torchrun sets them): "
            f"{(IMAGES + 1 - rank) // 2} of {IMAGES} images" in lines
        )


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


def test_of_processes_that_end_together_one_has_the_summary(
    data: Path, reference: Path, tmp_path: Path, run_as: RunAs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one ends, and folds both parts, when the first one is about to fold its own."""
    out, fold, summaries = tmp_path / "out", Job._fold, []

    def meanwhile(self: Job, run: ModelRun) -> bool:
        monkeypatch.setattr(Job, "_fold", fold)
        summaries.append(run_as(1, 2, data, out)[0])
        return fold(self, run)

    monkeypatch.setattr(Job, "_fold", meanwhile)
    summaries.append(run_as(0, 2, data, out)[0])
    assert [one is not None for one in summaries] == [True, False]
    assert result_files(out) == result_files(reference)
