"""`camkit verify` finds a changed value, another data set, other weights; and agrees with an honest run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_run import FOLDER, METHODS, make_images, result_files, tiny_bench

from camkit.cli import main
from camkit.config import RunConfig
from camkit.results import summarise, write_summary
from camkit.tables import read_records, render
from camkit.verify import verify

IMAGES = 12
CELLS = f"{FOLDER}/second-rest"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data"), IMAGES)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    tiny_bench(data, out, metrics=("adcc", "deletion"), steps=4)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "out")


def command(out: Path, data: Path) -> Result:
    return CliRunner().invoke(main, ["verify", str(out), "--data", str(data), "--device=cpu"])


def change(out: Path, column: str, amount: float) -> None:
    """Add to a column of every row of GradCAM, and make the summary follow."""
    path = out / CELLS / "gradcam.csv"
    columns, rows = read_records(path)
    path.write_bytes(render(columns, [row | {column: str(float(row[column]) + amount)} for row in rows]))
    write_summary(out, summarise(out))


def test_an_honest_run_agrees_to_the_bit_and_is_not_changed(out: Path, data: Path) -> None:
    before = result_files(out)
    checks = verify(out, RunConfig(model=(), data=str(data), device="cpu"), lambda _: None)
    assert list(checks["method"]) == list(METHODS)
    assert (checks["images"] == 5).all() and (checks["values"] == 5 * 9).all()
    assert (checks["differing"] == 0).all() and (checks["largest"] < 1e-9).all()
    result = command(out, data)
    assert result.exit_code == 0, result.output
    assert f"All {5 * 9 * len(METHODS)} values agree" in result.output
    assert result_files(out) == before


@pytest.mark.parametrize(
    ("column", "amount", "differs"),
    [
        ("average_drop", 2e-5, True),
        ("coherency", 1e-6, False),
        ("increase", 1, True),
        ("deletion_auc", 5e-4, False),
        ("deletion_auc", 2e-3, True),
        ("target", 1, True),
    ],
)
def test_a_changed_value_is_found(column: str, amount: float, differs: bool, out: Path, data: Path) -> None:
    change(out, column, amount)
    result = command(out, data)
    assert result.exit_code == int(differs), result.output
    assert (f"5 of {5 * 9 * len(METHODS)} values differ" in result.output) == differs


def test_a_summary_that_does_not_follow_from_the_rows(out: Path, data: Path) -> None:
    path = out / "summary.csv"
    path.write_text(path.read_text().replace("0.", "0.9", 1))
    result = command(out, data)
    assert result.exit_code == 1
    assert "summary.csv does not follow from the rows" in result.output


def test_other_data_are_refused(out: Path, data: Path, tmp_path: Path) -> None:
    other = make_images(tmp_path / "other", IMAGES - 1)
    result = command(out, other)
    assert result.exit_code == 2
    assert "is not the data of this run" in result.output and repr(data.name) in result.output


def test_other_weights_are_refused_by_name(out: Path, data: Path) -> None:
    path = out / CELLS / "run.json"
    run = json.loads(path.read_text())
    run["protocol"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(run))
    result = command(out, data)
    assert result.exit_code == 2
    assert "another weights sha256" in result.output


def test_weights_that_were_a_file_are_asked_for(out: Path, data: Path) -> None:
    path = out / CELLS / "run.json"
    run = json.loads(path.read_text())
    run["protocol"]["weights"] = "file"
    run["segments"][-1]["weights_file"] = "mine.pth"
    path.write_text(json.dumps(run))
    result = command(out, data)
    assert result.exit_code == 2 and "mine.pth: name it with --weights FILE" in result.output


def test_a_folder_without_results(tmp_path: Path, data: Path) -> None:
    result = command(tmp_path, data)
    assert result.exit_code == 2 and "no results there" in result.output


def test_the_seeded_share_is_one_per_cent_and_five_at_least(data: Path) -> None:
    from camkit.data import find_images
    from camkit.verify import _pick

    items = list(find_images(str(data), seed=0).items)
    many = [items[0]] * 50_000
    assert len(_pick(many, 0)) == 500
    assert len(_pick(items, 0)) == 5 and len(_pick(items[:3], 0)) == 3
    assert _pick(items, 0) == _pick(items, 0) != _pick(items, 1)
