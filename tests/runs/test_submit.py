"""`camkit submit`: one job per model, here or on Slurm, whose programs are small stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from places import HELPERS
from tiny_run import MODEL, make_images

from camkit.cli import main
from camkit.errors import CamkitError, UsageError
from camkit.runs.submit import Job, minutes, run_here, slurm_settings, split_words, submit, visible_gpus

PLUGIN = HELPERS / "tiny_run.py"


def command(*words: object) -> Result:
    return CliRunner().invoke(main, ["submit", *map(str, words)])


def test_words_are_split() -> None:
    slurm, rest = split_words(
        ["--slurm-partition", "gpu", "--limit", "3", "--slurm-gpus-per-node=1", "-o", "x"]
    )
    assert slurm == {"partition": "gpu", "gpus_per_node": "1"}
    assert rest == ["--limit", "3", "-o", "x"]
    for words in (["--slurm-mem"], ["--slurm-exclusive", "--limit", "3"]):
        with pytest.raises(UsageError, match=f"{words[0]}: expected a value"):
            split_words(words)


def test_settings_are_numbers_only_where_submitit_counts() -> None:
    slurm = {"account": "0123", "nodes": "1", "time": "1-2:30", "exclusive": "", "gpus_per_node": "a100:2"}
    assert slurm_settings(slurm) == {
        "job_name": "camkit",
        "nodes": 1,
        "time": 26 * 60 + 30,
        "additional_parameters": {"account": "0123", "exclusive": True, "gpus_per_node": "a100:2"},
    }
    assert slurm_settings({})["time"] == 240


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1:30", 2), ("2:00:00", 120), ("1-0", 1440), ("2-1:05", 2945), ("0-00:00:01", 1)],
)
def test_time_limits_as_slurm_writes_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


def test_a_dry_run_prints_every_job_of_a_table(tmp_path: Path) -> None:
    config = tmp_path / "table.toml"
    config.write_text('model = "all"\nmethod = "paper"\n')
    result = command("--config", config, "--slurm-partition", "gpu", "--dry-run")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len([line for line in lines if line.startswith(f"camkit bench --config {config} --model ")]) == 12
    assert lines[-1] == "12 jobs, a Slurm array (job_name camkit, time 240, partition gpu)"
    assert not list(tmp_path.glob("results*"))


def test_models_of_the_command_line_stand_for_those_of_the_table(tmp_path: Path) -> None:
    config = tmp_path / "table.toml"
    config.write_text('model = "all"\n')
    result = command(
        "--config", config, "--model=resnet18,vgg16", "--limit", 3, "--model", "swin_t", "--dry-run"
    )
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[:3] == [
        f"camkit bench --config {config} --limit 3 --model {name}" for name in ("resnet18", "vgg16", "swin_t")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "resnet51"], "Did you mean"),
        (["--model", "resnet50", "--steps", "many"], "--steps"),
        (["--model", "resnet50", "--no-such-option"], "--no-such-option"),
        (["--model", "resnet50", "--force"], "move the others' results aside"),
        (["--limit", "3"], "Missing option '--model'"),
        (
            ["--model", "resnet50", "--method", "gradcamm"],
            "unknown method 'gradcamm'. Did you mean 'gradcam'?",
        ),
        (["--model", "resnet50", "--utility", "logits"], "unknown utility 'logits'"),
        (["--model", "resnet50", "--metrics", "adc"], "unknown metric 'adc'"),
        (["--model", "resnet50", "--local", "1", "--slurm-partition", "gpu"], "--local"),
        (["--model", "resnet50", "--slurm-time", "soon"], "--slurm-time soon: expected minutes, H:M:S"),
        (["--model", "resnet50", "--slurm-time", "0"], "--slurm-time 0: expected minutes"),
        (["--model", "resnet50", "--slurm-nodes", "few"], "--slurm-nodes few: expected a whole number"),
        (["--model", "resnet50", "--slurm-setup", "module load"], "--slurm-setup cannot be set"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_submitted(words: list[str], message: str) -> None:
    result = command(*words, "--dry-run")
    assert result.exit_code == 2 and message in result.output, result.output


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CamkitError, match="no Slurm here .*--local N"):
        submit([Job(("list", "models"))], slurm_settings({}), tmp_path)


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The programs of Slurm, as far as submitit asks for them; sbatch refuses the partition `none`."""
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    write_program(
        folder / "sbatch",
        'if grep -q -- "--partition=none" "$1"; then\n'
        '    echo "sbatch: error: invalid partition: none" >&2; exit 1\n'
        f'fi\ncp "$1" {folder}/job.sh; echo "Submitted batch job 42"',
    )
    write_program(
        folder / "srun",
        'while [ "${1#--}" != "$1" ]; do [ "$1" = --unbuffered ] || shift; shift; done; exec "$@"',
    )
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def run_task(slurm: Path, task: int) -> subprocess.CompletedProcess:
    """What Slurm does with one task of the array."""
    names = {"SLURM_JOB_ID": "43", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": str(task)}
    environment = {**os.environ, **names}
    command = ["bash", str(slurm / "job.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_slurm_gets_an_array_with_one_task_a_model(slurm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command(
        "--model", "resnet18,vgg16,swin_t", "-o", out, "--slurm-partition", "gpu", "--slurm-account", "0123",
        "--slurm-time", "2:00:00", "--slurm-exclusive=", "--slurm-licenses", "imagenet",
        "--slurm-array-parallelism", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"3 jobs: 42_0 to 42_2; logs in {out / '.jobs'}"
    settings = {line.removeprefix("#SBATCH --") for line in (slurm / "job.sh").read_text().splitlines()}
    assert settings >= {
        "array=0-2%2", "partition=gpu", "account=0123", "time=120", "exclusive", "licenses=imagenet",
        "job-name=camkit",
    }  # fmt: skip


def test_a_refusal_is_shown(slurm: Path, tmp_path: Path) -> None:
    for models in ("resnet18", "resnet18,vgg16"):
        result = command("--model", models, "-o", tmp_path, "--slurm-partition", "none")
        assert result.exit_code == 1
        last = result.output.splitlines()[-1]
        assert last == "error: Slurm refused the jobs: sbatch: error: invalid partition: none"


@pytest.mark.slow
def test_a_job_of_the_array_fails_where_its_run_fails(slurm: Path, tmp_path: Path) -> None:
    assert submit([Job(("--version",)), Job(("nonsense",))], slurm_settings({}), tmp_path) == [
        "42_0", "42_1"
    ]  # fmt: skip
    fine, failing = run_task(slurm, 0), run_task(slurm, 1)
    assert fine.returncode == 0, fine.stderr
    assert failing.returncode != 0 and "CalledProcessError" in failing.stderr


@pytest.mark.slow
def test_the_jobs_run_here(tmp_path: Path) -> None:
    data, out = make_images(tmp_path / "data", 3), tmp_path / "out"
    result = command(
        "--local", 2, "--plugin", PLUGIN, "--model", f"{MODEL},timm/test_byobnet", "--data", data,
        "--weights", "random", "--metrics", "adcc", "--method", "gradcam", "--workers", 0, "-o", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = pd.read_csv(out / "summary.csv")
    assert sorted(summary["model"]) == [MODEL, "timm/test_byobnet"]
    assert (summary["images"] == 3).all()
    assert "gradcam" in (out / ".jobs" / "timm__test_byobnet.log").read_text()


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Jobs run a small program instead of camkit; its argument is the job's name."""
    monkeypatch.setattr(Job, "command", property(lambda self: [sys.executable, "-c", code, self.name]))


def test_a_job_that_fails_is_named_and_the_others_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "import sys; print('I am', sys.argv[1]); sys.exit(sys.argv[1] == 'timm/a')")
    said: list[str] = []
    with pytest.raises(CamkitError, match=r"1 of 2 jobs failed: timm/a \(see .*timm__a\.log\)"):
        run_here([Job(("timm/a",)), Job(("b",))], 1, tmp_path, [], said.append)
    assert said == ["started: camkit timm/a", "failed: timm/a", "started: camkit b", "done: b"]
    assert (tmp_path / ".jobs" / "timm__a.log").read_text() == "I am timm/a\n"


def test_each_slot_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    stand_in(
        monkeypatch, "import os, time; time.sleep(0.5); print('GPU', os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    jobs = [Job((name,)) for name in "abc"]
    for gpus, expected in ((["3", "5"], ["3", "5"]), (["3"], ["7"]), ([], ["7"])):
        out = tmp_path / str(len(gpus))
        run_here(jobs, 2, out, gpus, lambda _: None)
        seen = [(out / ".jobs" / f"{job.name}.log").read_text().split()[-1] for job in jobs]
        assert sorted(set(seen)) == expected and seen[:2] == (expected * 2)[:2]


def test_the_gpus_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert visible_gpus() == ["4", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1"]


def interrupt_at_work(log: Path) -> None:
    """Send this process a signal once the job of the log is at work."""

    def press() -> None:
        while not (log.exists() and "at work" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()


def test_ctrl_c_ends_the_jobs_and_starts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        monkeypatch,
        "import sys, time\n"
        "try:\n    print('at work', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('finished the batch'); sys.exit(1)",
    )
    said: list[str] = []
    log = tmp_path / ".jobs" / "a.log"
    interrupt_at_work(log)
    with pytest.raises(KeyboardInterrupt):
        run_here([Job(("a",)), Job(("b",))], 1, tmp_path, [], said.append)
    assert "finished the batch" in log.read_text()
    assert not (tmp_path / ".jobs" / "b.log").exists()
    assert said == ["started: camkit a", "SIGINT: finishing this batch (once more: stop now)", "failed: a"]


def test_a_job_that_is_requeued_is_the_same_job() -> None:
    submitit = pytest.importorskip("submitit")
    job = Job(("bench", "--model", "resnet50"))
    again = job.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == job


def test_a_signal_that_leaves_nothing_undone_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only job was in its last batch."""
    stand_in(
        monkeypatch,
        "import time\n"
        "try:\n    print('at work', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('done')",
    )
    said: list[str] = []
    interrupt_at_work(tmp_path / ".jobs" / "a.log")
    run_here([Job(("a",))], 1, tmp_path, [], said.append)
    assert said[-1] == "done: a"
