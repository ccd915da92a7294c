"""What the system does to a run: signals, locks, disks, workers, memory. Nothing is lost, and it is said."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import (
    FOLDER,
    METHODS,
    Crash,
    at_write,
    make_images,
    result_files,
    table_rows,
    tiny_bench,
    tiny_command,
)

from camkit.data.pixels import read_file
from camkit.errors import CamkitError
from camkit.results.folder import read_run, run_folders
from camkit.results.lock import LOCK, hold
from camkit.results.table import Table
from camkit.runs.stop import stop_signals

IMAGES = 10
CELLS = f"{FOLDER}/second-rest"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data"), IMAGES)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("reference") / "out"
    tiny_bench(data, out)
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_finishes_the_batch(number: int, data: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with at_write(5, lambda: os.kill(os.getpid(), number)):
        result = tiny_command(data, out)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == (
        "error: stopped. What is finished is kept: the same command goes on from there."
    )
    assert f"{signal.Signals(number).name}: finishing this batch" in result.output
    assert Counter(key[0] for key, _ in table_rows(out) if "rest" in key[0]) == {
        f"{CELLS}/{method}.csv": 8 for method in METHODS
    }
    assert read_run(out / CELLS)["segments"][0]["images"] == 8
    assert (out / "summary.csv").exists()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert tiny_command(data, out).exit_code == 0
    assert result_files(out) == result_files(reference)


def test_two_signals_stop_now(data: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with at_write(5, twice):
        result = tiny_command(data, out)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("error: stopped.")
    found = Counter(key[0] for key, _ in table_rows(out) if "rest" in key[0])
    assert found[f"{CELLS}/{METHODS[0]}.csv"] == 8 and found[f"{CELLS}/{METHODS[1]}.csv"] == 4
    assert tiny_command(data, out).exit_code == 0
    assert result_files(out) == result_files(reference)


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGINT, 0), (signal.SIGTERM, 1)])
def test_signals_to_a_worker_that_still_starts(number: int, ended: int) -> None:
    """It is forked with the run's handlers: SIGTERM ends it, and Ctrl-C is for the run."""
    fork = multiprocessing.get_context("fork")
    there, said = fork.Event(), fork.SimpleQueue()
    begin, go_on = os.pipe()

    def work() -> None:
        there.set()
        os.read(begin, 1)

    with stop_signals(said.put) as stop, stop.patiently():
        worker = fork.Process(target=work)
        worker.start()
        assert worker.pid and there.wait(60)
        os.kill(worker.pid, number)
        os.write(go_on, b"1")
        worker.join(60)
    os.close(begin)
    os.close(go_on)
    assert (worker.exitcode, said.empty()) == (ended, True)


@pytest.mark.parametrize("step", ["bench.select", "job.prepare"])
def test_a_signal_before_the_first_batch_stops_at_once(
    step: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the data are looked through, and while the model is loaded."""
    monkeypatch.setattr(f"camkit.runs.{step}", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    result = tiny_command(data, tmp_path / "out")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("error: stopped.")


def test_force_leaves_a_run_alone_that_is_loading_its_model(data: Path, reference: Path) -> None:
    """It has written nothing yet but its lock."""
    with hold(reference / "another_model"):
        result = tiny_command(data, reference, "--force")
    assert result.exit_code == 1 and "another run is at work" in result.output
    assert tiny_command(data, reference).exit_code == 0


def test_a_second_run_says_so_and_stops(data: Path, reference: Path) -> None:
    with hold(reference / FOLDER):
        result = tiny_command(data, reference)
        assert result.exit_code == 1
        assert "another run is at work in" in result.output and "use another --out" in result.output
        forced = tiny_command(data, reference, "--force")
        assert forced.exit_code == 1 and "another run is at work" in forced.output
    assert tiny_command(data, reference).exit_code == 0


HOLDER = """
import sys, time, pathlib
from camkit.results.lock import hold
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_another_process_is_seen_and_dies_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(CamkitError, match=f"at work in .*process {holder.pid} on "), hold(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with hold(tmp_path):
        pass


def test_a_folder_that_another_process_removes_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the parts' folders are, once they are empty."""
    mkdir = os.mkdir

    def removed(path: str, *more: int) -> None:
        mkdir(path, *more)
        monkeypatch.setattr("os.mkdir", mkdir)
        Path(path).rmdir()

    monkeypatch.setattr("os.mkdir", removed)
    with hold(tmp_path / "part" / "model"):
        assert (tmp_path / "part" / "model" / LOCK).exists()
    assert os.mkdir is mkdir


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("camkit.results.lock.fcntl.lockf", none)
    with pytest.warns(UserWarning, match="no locks here"), hold(tmp_path):
        pass


@pytest.mark.parametrize(
    "fault", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO], ids=errno.errorcode.get
)
@pytest.mark.parametrize("after", [0, 3, 20, 35])
def test_a_disk_that_fails(
    fault: int, after: int, data: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a read-only folder: at the start, in the loop, and while the tables are sorted."""
    out = tmp_path / "out"
    fsync, calls = os.fsync, iter(range(after))

    def failing(handle: int) -> None:
        if next(calls, None) is None:
            raise OSError(fault, os.strerror(fault))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        result = tiny_command(data, out)
    assert result.exit_code == 1
    last = result.output.splitlines()[-2:]
    assert os.strerror(fault) in last[0] and str(out) in last[0]
    assert last[1] == "What was written before is kept: the same command goes on from there."
    assert tiny_command(data, out).exit_code == 0
    assert result_files(out) == result_files(reference)


@pytest.mark.parametrize("room", range(7))
def test_what_did_not_fit_on_the_disk_is_nowhere(room: int, tmp_path: Path) -> None:
    """The system takes the first bytes of a batch and refuses the rest; then there is room again."""
    table = Table(tmp_path / "t.csv", ("image", "score"))
    table.append([{"image": "a", "score": "1"}])
    before = table.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
    try:
        with pytest.raises(CamkitError, match="the same command goes on"):
            table.append([{"image": "b,c", "score": "2"}, {"image": "d", "score": "3"}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert table.path.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_small_disk_that_is_full(data: Path, reference: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        result = tiny_command(data, disk / "out")
        assert result.exit_code == 1 and os.strerror(errno.ENOSPC) in result.output
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert tiny_command(data, disk / "out").exit_code == 0
        assert result_files(disk / "out") == result_files(reference)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_is_deleted_under_the_run(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with at_write(5, lambda: shutil.rmtree(out)):
        result = tiny_command(data, out)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "The results folder was taken away while the run was going on."


def test_a_worker_killed_by_the_system(
    data: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def killed(path: Any) -> bytes:
        if path.name == "image9.png" and os.getpid() != test:
            os.kill(os.getpid(), signal.SIGKILL)
        return read_file(path)

    test = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr("camkit.data.batches.read_file", killed)
        result = tiny_command(data, out, "--workers=1")
    assert result.exit_code == 1
    assert "a process that decodes images died" in result.output.splitlines()[-1]
    assert "the same command goes on from there" in result.output.splitlines()[-1]
    assert tiny_command(data, out).exit_code == 0
    assert result_files(out) == result_files(reference)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "mps", "cpu"],
)
def test_out_of_memory(error: Exception, data: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fail() -> None:
        raise error

    with at_write(6, fail):
        result = tiny_command(data, out)
    assert result.exit_code == 1
    assert "out of memory at --batch-size 4" in result.output.splitlines()[-1]
    assert tiny_command(data, out).exit_code == 0
    assert result_files(out) == result_files(reference)


@pytest.mark.parametrize("number", range(7))  # run.json three times, three cells' maps, summary.csv
def test_power_lost_between_write_and_rename(
    number: int, data: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    replace, calls = Path.replace, iter(range(number))

    def lost(self: Path, target: Path) -> Path:
        if next(calls, None) is None:
            # As a process that is no more would have left it.
            shutil.copy(self, self.with_name(f".{target.name}.1.tmp"))
            raise Crash
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lost)
        with pytest.raises(Crash):
            tiny_bench(data, out)
    assert list(out.rglob(".*.tmp"))
    tiny_bench(data, out)
    assert result_files(out) == result_files(reference), "and no temporary file is left"


def test_a_class_that_the_model_lacks_is_refused_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused = tiny_command(data, out, "--target=10")
    assert refused.exit_code == 2
    assert refused.output.splitlines()[-1] == "error: --target 10: class 10 of a model that gives 10"
    assert not result_files(out) and not run_folders(out)
    assert tiny_command(data, out, "--target=9").exit_code == 0


def test_a_run_that_ends_before_its_first_row_stops_no_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that does not fit; images of another size do."""
    out = tmp_path / "out"

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("camkit.runs.evaluate.Evaluation._first_pass", full)
        assert tiny_command(data, out).exit_code == 1
    assert not result_files(out) and not run_folders(out)
    assert tiny_command(data, out, "--size=192x192").exit_code == 0


def test_a_signal_in_the_last_batch_leaves_nothing_undone(
    data: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with at_write(9, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        result = tiny_command(data, out)
    assert result.exit_code == 0
    assert "That was the last batch: the run is done." in result.output
    assert "goes on from there" not in result.output
    assert result_files(out) == result_files(reference)
