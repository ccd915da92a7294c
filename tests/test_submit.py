"""`camkit submit`: one job a model, here or (printed) on a cluster."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from tiny_run import MODEL, make_images

from camkit.cli import main
from camkit.errors import CamkitError, UsageError
from camkit.submit import Job, make_jobs, run_here, split_words, submit

PLUGIN = Path(__file__).parent / "tiny_run.py"


def command(*words: object) -> Result:
    return CliRunner().invoke(main, ["submit", *map(str, words)])


def test_words_are_split_and_models_replaced() -> None:
    slurm, rest = split_words(
        ["--slurm-partition", "gpu", "--model", "a", "--limit", "3", "--slurm-gpus-per-node=1", "--model=b"]
    )
    assert slurm == {"partition": "gpu", "gpus_per_node": "1"}
    assert [job.words for job in make_jobs(rest, ["x", "y"])] == [
        ("bench", "--limit", "3", "--model", "x"),
        ("bench", "--limit", "3", "--model", "y"),
    ]
    with pytest.raises(UsageError, match="--slurm-mem: expected a value"):
        split_words(["--slurm-mem"])


def test_a_dry_run_prints_every_job_of_a_table(tmp_path: Path) -> None:
    config = tmp_path / "table.toml"
    config.write_text('model = "all"\nmethod = "paper"\n')
    result = command("--config", config, "--slurm-partition", "gpu", "--dry-run")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len([line for line in lines if line.startswith(f"camkit bench --config {config} --model ")]) == 12
    assert lines[-1] == "12 jobs, a Slurm array (partition gpu)"
    assert not list(tmp_path.glob("results*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "resnet51"], "Did you mean"),
        (["--model", "resnet50", "--steps", "many"], "--steps"),
        (["--model", "resnet50", "--no-such-option"], "--no-such-option"),
        (["--model", "resnet50", "--force"], "move the others' results aside"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_submitted(words: list[str], message: str) -> None:
    result = command(*words, "--local", "1")
    assert result.exit_code == 2 and message in result.output


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CamkitError, match="no Slurm here .*--local N"):
        submit([Job(("list", "models"))], {}, tmp_path)


def test_the_jobs_run_here(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    data, out = make_images(tmp_path / "data", 3), tmp_path / "out"
    result = command(
        "--local", 2, "--plugin", PLUGIN, "--model", f"{MODEL},timm/test_byobnet", "--data", data,
        "--weights", "random", "--metrics", "adcc", "--method", "gradcam", "--workers", 0, "-o", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = pd.read_csv(out / "summary.csv")
    assert sorted(summary["model"]) == [MODEL, "timm/test_byobnet"]
    assert (summary["images"] == 3).all()


def test_a_job_that_fails_is_named_and_the_others_are_run(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    said: list[str] = []
    jobs = [Job(("list", "nonsense")), Job(("--version",))]
    with pytest.raises(CamkitError, match=r"1 of 2 jobs failed: nonsense \(see .*_log\.err\)"):
        run_here(jobs, 1, tmp_path, said.append)
    assert said[-1] == "done: --version"


def test_a_job_that_is_requeued_is_the_same_job() -> None:
    submitit = pytest.importorskip("submitit")
    job = Job(("bench", "--model", "resnet50"))
    again = job.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == job
