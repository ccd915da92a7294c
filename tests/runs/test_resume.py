"""Runs that stop half way: what is computed again, what is said, and what the folder holds in the end."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from tiny_run import (
    FOLDER,
    METHODS,
    MODEL,
    SECOND_FOLDER,
    SECOND_MODEL,
    crash_at_write,
    make_images,
    result_files,
    table_rows,
    tiny_bench,
    tiny_command,
    tiny_config,
)

from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import find_images
from camkit.errors import UsageError
from camkit.network.loading import load_model
from camkit.results.cells import CellScores
from camkit.results.folder import read_run, run_folders, write_run
from camkit.results.model_run import ModelRun
from camkit.results.table import read_records, render
from camkit.runs.bench import bench
from camkit.runs.evaluate import Evaluation
from camkit.runs.rescore import rescore

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


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """(method, image) -> how often it was computed."""
    counts: Counter[tuple[str, str]] = Counter()
    write = ModelRun.write

    def counted(self: ModelRun, result: Any) -> None:
        if isinstance(result, CellScores):
            counts.update((result.cell.method.name, item.id) for item in result.items)
        write(self, result)

    monkeypatch.setattr(ModelRun, "write", counted)
    return counts


def segments(out: Path) -> list[dict[str, Any]]:
    return read_run(out / CELLS)["segments"]


@pytest.mark.parametrize("stop_at", [0, 1, 5, 11])
def test_only_what_was_missing_is_computed(
    stop_at: int, data: Path, reference: Path, tmp_path: Path, computed: Counter
) -> None:
    out = tmp_path / "out"
    crash_at_write(stop_at, data, out)
    there = table_rows(out)
    logs = {path: path.read_bytes() for path in out.rglob("*.csv")}
    before = computed.copy()
    assert len([key for key, _ in there if "second-rest" in key[0]]) == sum(before.values())
    lines = tiny_bench(data, out)
    assert set(computed.values()) == {1}, "each image once in each cell"
    assert len(computed) == IMAGES * len(METHODS)
    assert any("going on with" in line for line in lines) == bool(before)
    assert result_files(out) == result_files(reference)
    for path, log in logs.items():
        final = set(path.read_bytes().splitlines())
        assert set(log.splitlines()) <= final, f"{path.name}: rows on disk stay byte for byte"


def test_batches_do_not_mix_what_lacks_different_things(
    data: Path, tmp_path: Path, computed: Counter
) -> None:
    """A broken image of the first batch is tried again, and moves all that follow by one place."""
    broken, out = shutil.copytree(data, tmp_path / "broken"), tmp_path / "out"
    second = find_images(str(data), seed=0).items[1]
    (broken / second.id).write_bytes(b"no image")
    crash_at_write(6, broken, out)
    tiny_bench(broken, out)
    assert set(computed.values()) == {1}
    assert len(computed) == (IMAGES - 1) * len(METHODS)


def test_a_finished_run_again_changes_nothing(
    data: Path, reference: Path, tmp_path: Path, computed: Counter
) -> None:
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    lines = tiny_bench(data, out)
    assert not computed
    assert lines[-1:] == [f"{MODEL}: nothing to do, all {IMAGES} images are there"]
    assert result_files(out) == result_files(reference)
    assert read_run(out / CELLS) == read_run(reference / CELLS)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"method": METHODS[:2]}, {}, IMAGES * 2),
        ({"limit": 8}, {}, 2 * len(METHODS)),
        (
            {"metrics": ("deletion",), "steps": 2},
            {"metrics": ("deletion", "adcc"), "steps": 2},
            IMAGES * len(METHODS),
        ),
        ({"save_maps": False}, {}, IMAGES * (len(METHODS) - 1)),
    ],
    ids=["methods", "images", "metrics", "maps"],
)
def test_more_of_something_in_a_finished_folder(
    first: dict, second: dict, expected: int, data: Path, tmp_path: Path, computed: Counter
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    tiny_bench(data, once, **second)
    computed.clear()
    tiny_bench(data, twice, **first)
    computed.clear()
    tiny_bench(data, twice, **second)
    assert sum(computed.values()) == expected
    assert result_files(twice) == result_files(once)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"steps": 9}, "steps"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"preprocess": "native"}, "preprocess"),
        ({"data": None}, "data fingerprint"),
    ],
    ids=str,
)
def test_what_decides_a_number_is_refused_by_name(
    change: dict, name: str, data: Path, reference: Path, tmp_path: Path
) -> None:
    if "data" in change:
        other = shutil.copytree(data, tmp_path / "other")
        next(other.rglob("image9.png")).unlink()
        change = {"data": str(other)}
    before = result_files(reference)
    with pytest.raises(UsageError, match=f"another ({name}): .*, now .*second-rest.*\n.*--force"):
        bench(tiny_config(**{"data": data, "out": reference} | change), lambda _: None)
    assert result_files(reference) == before


def test_other_weights_are_refused(data: Path, tmp_path: Path) -> None:
    import timm

    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(timm.create_model("camkit_tiny_run").state_dict(), tmp_path / "weights.pth")
        if seed == 1:
            tiny_bench(data, tmp_path / "out", weights=str(tmp_path / "weights.pth"))
    for layer in ("second", "first"):
        with pytest.raises(UsageError, match="another weights sha256"):
            tiny_bench(data, tmp_path / "out", weights=str(tmp_path / "weights.pth"), layer=(layer,))


def test_the_same_weights_may_have_another_name(data: Path, reference: Path, tmp_path: Path) -> None:
    state = load_model(MODEL, "random").model.state_dict()
    for limit, name in ((4, "weights.pth"), (None, "renamed.pth")):
        torch.save(state, tmp_path / name)
        tiny_bench(data, tmp_path / "out", weights=str(tmp_path / name), limit=limit)
    assert [segment["weights_file"] for segment in segments(tmp_path / "out")] == [
        "weights.pth",
        "renamed.pth",
    ]


def test_results_of_older_definitions_are_reported_but_not_added_to(data: Path, tmp_path: Path) -> None:
    """What is refused writes nothing, summary.csv among it, which would lack the columns of the rows here."""
    out, options = tmp_path / "out", {"metrics": ("shapley",), "method": ("gradcam", "hirescam")}
    tiny_bench(data, out, limit=4, save_maps=True, **options)
    for folder in run_folders(out):  # as version 1 left them: no squares either
        run = read_run(folder)
        run["protocol"]["definitions"] = 1
        write_run(folder, run)
        for table in folder.glob("*.csv"):
            rows = pd.read_csv(table, dtype=str)
            rows[[name for name in rows if "square" not in name]].to_csv(table, index=False)
    before = result_files(out)
    added = RunConfig(model=(), out=out, metrics=("deletion",), data=str(data), device="cpu")
    for again in (
        lambda: tiny_bench(data, out, **options),
        lambda: rescore(added, lambda line: None),
    ):
        with pytest.raises(UsageError, match="version 1 of the definitions, now 2: they can be reported"):
            again()
    assert result_files(out) == before
    shown = CliRunner().invoke(main, ["report", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "SV error" in shown.output and "hirescam" in shown.output


PLUGIN = """
from camkit import method

@method("mine")
def mine(trace):
    return {sign}trace.activation.sum(dim=1)
"""


def test_a_plugin_that_was_edited_is_said(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    settings = {"method": ("mine", "gradcam"), "plugin": (str(file),)}
    tiny_bench(data, tmp_path / "out", method=("gradcam",), limit=4)
    file.write_text(PLUGIN.format(sign=""))
    assert not any(
        "not as before" in line for line in tiny_bench(data, tmp_path / "out", **settings, limit=4)
    )
    file.write_text(PLUGIN.format(sign="-"))
    lines = tiny_bench(data, tmp_path / "out", **settings)
    (line,) = (line for line in lines if "not as before: plugin mine.py " in line)
    assert "New rows may differ from the old ones." in line
    assert [segment["rows"]["mine"] for segment in segments(tmp_path / "out")] == ["0-3", f"4-{IMAGES - 1}"]


def test_results_that_disagree_are_not_mixed(data: Path, tmp_path: Path) -> None:
    """Somebody copies a model's folder into another run's results."""
    out, other = tmp_path / "out", tmp_path / "other"
    tiny_bench(data, out, limit=2)
    tiny_bench(data, other, limit=2, steps=9, model=(SECOND_MODEL,))
    shutil.copytree(other / SECOND_FOLDER, out / SECOND_FOLDER)
    for words in (
        ["merge"],
        ["report"],
        ["compare"],
        ["plot", "-o", str(tmp_path)],
        ["verify", "--data", str(data)],
    ):
        result = CliRunner().invoke(main, [words[0], str(out), *words[1:]])
        assert result.exit_code == 2, result.output
        assert "disagree in steps: 224 in " in result.output and ", 9 in " in result.output


def test_force_moves_the_old_results_aside(data: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    result = tiny_command(data, out, "--seed=1", "--force")
    assert result.exit_code == 0, result.output
    (aside,) = tmp_path.glob("out.*")
    assert str(aside) in result.output
    assert result_files(aside) == result_files(reference)
    assert read_run(out / CELLS)["protocol"]["seed"] == 1


def test_force_follows_a_link_and_leaves_the_working_directory(
    data: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, link = tmp_path / "disk" / "out", tmp_path / "link"
    shutil.copytree(reference, real)
    link.symlink_to(real)
    assert tiny_command(data, link, "--seed=1", "--force").exit_code == 0
    (aside,) = (tmp_path / "disk").glob("out.*")
    assert result_files(aside) == result_files(reference)
    assert link.is_symlink() and read_run(real / CELLS)["protocol"]["seed"] == 1
    monkeypatch.chdir(real)
    result = tiny_command(data, Path(), "--force")
    assert result.exit_code == 2 and "change the directory first" in result.output


def test_force_without_results_is_no_harm(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("not camkit's")
    assert tiny_command(data, tmp_path / "out", "--force", "--limit=1").exit_code == 0
    assert (tmp_path / "out" / "mine.txt").exists()
    assert not list(tmp_path.glob("out.*"))


def test_last_bits_make_a_new_segment_that_knows_its_rows(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tiny_bench(data, out, limit=4)
    lines = tiny_bench(data, out, batch_size=3)
    assert any("batch size 4 -> 3" in line and "last digits" in line for line in lines)
    first, second = segments(out)
    assert first["rows"] == dict.fromkeys(METHODS, "0-3")
    assert second["rows"] == dict.fromkeys(METHODS, "4-9")
    assert (first["batch_size"], second["batch_size"]) == (4, 3)
    assert (first["images"], second["images"]) == (4, 6)
    assert second["images_per_second"] > 0 and second["ended"] > second["started"]


def test_a_run_goes_on_on_another_machine(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tiny_bench(data, out, limit=4)
    path = out / CELLS / "run.json"
    run = json.loads(path.read_text())
    (segment,) = run["segments"]
    segment |= {"device": "NVIDIA H200", "versions": {**segment["versions"], "torch": "2.3.0"}}
    path.write_text(json.dumps(run))
    (line,) = (line for line in tiny_bench(data, out) if "not as before" in line)
    assert "device NVIDIA H200 -> cpu" in line and f"torch 2.3.0 -> {version('torch')}" in line
    assert "versions" not in line and "last digits" in line
    assert [segment["rows"][METHODS[0]] for segment in segments(out)] == ["0-3", "4-9"]


def test_rows_of_a_crashed_start_are_credited_to_it(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    crash_at_write(5, data, out)
    assert segments(out)[0]["rows"] == {}
    tiny_bench(data, out, batch_size=5)
    first, second = segments(out)
    assert first["rows"] == {METHODS[0]: "0-7", **dict.fromkeys(METHODS[1:], "0-3")}
    assert second["rows"] == {METHODS[0]: "8-9", **dict.fromkeys(METHODS[1:], "4-9")}


def test_the_same_machine_goes_on_with_its_segment(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    crash_at_write(5, data, out)
    tiny_bench(data, out)
    (segment,) = segments(out)
    assert segment["starts"] == 2
    assert segment["rows"] == dict.fromkeys(METHODS, f"0-{IMAGES - 1}")


def test_a_count_that_an_older_start_did_not_make_begins_at_zero(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    crash_at_write(5, data, out)
    path = out / CELLS / "run.json"
    run = json.loads(path.read_text())
    del run["segments"][0]["head_passes"]
    path.write_text(json.dumps(run))
    tiny_bench(data, out)
    (segment,) = segments(out)
    assert (segment["starts"], segment["head_passes"]) == (2, 0)


def test_the_batch_shape_does_not_depend_on_what_is_left(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = set()
    run = Evaluation.run

    def noted(self: Evaluation, *arguments: Any) -> Any:
        shapes.add(self.batch_size)
        return run(self, *arguments)

    monkeypatch.setattr(Evaluation, "run", noted)
    tiny_bench(data, tmp_path / "out", batch_size=32)
    path = tmp_path / "out" / CELLS / "gradcam.csv"
    columns, rows = read_records(path)
    path.write_bytes(render(columns, rows[:3]))
    tiny_bench(data, tmp_path / "out", batch_size=32)
    assert shapes == {IMAGES}


def test_the_class_that_an_image_was_explained_for_stays(data: Path, tmp_path: Path) -> None:
    """Where two classes are a rounding error apart another machine finds the other one."""
    out = tmp_path / "out"
    tiny_bench(data, out, method=METHODS[:1])
    path = out / FOLDER / "predictions.csv"
    columns, rows = read_records(path)
    rows[3]["predicted"] = other = str((int(rows[3]["predicted"]) + 1) % 10)
    path.write_bytes(render(columns, rows))
    tiny_bench(data, out)
    targets = {
        Path(key[0]).stem: row["target"]
        for key, row in table_rows(out)
        if key[1] == rows[3]["image"] and "target" in row
    }
    assert targets.pop(METHODS[0]) != other
    assert targets == dict.fromkeys(METHODS[1:], other)


def test_run_json_tells_with_what_and_holds_no_path(data: Path, reference: Path) -> None:
    text = (reference / CELLS / "run.json").read_text()
    run = json.loads(text)
    (segment,) = run["segments"]
    assert segment["data"] == data.name
    assert segment["versions"].keys() >= {"python", "cuda", "camkit", "torch", "torchvision", "timm", "numpy"}
    names = "command started ended device driver threads batch_size git weights_file images_per_second"
    assert segment.keys() >= set(names.split())
    assert run["errors"] == 0 and run["flags"] == {}
    for path in (data, reference):
        assert str(path.parent) not in text
    assert RunConfig(model=(MODEL,), data=str(data), out=reference).command().count("/") == 1  # timm/…


def test_a_broken_image_does_not_stop_a_resume(data: Path, tmp_path: Path, computed: Counter) -> None:
    broken, out = shutil.copytree(data, tmp_path / "broken"), tmp_path / "out"
    next(broken.rglob("image9.png")).write_bytes(b"no image")
    tiny_bench(broken, out)
    before = result_files(out)
    computed.clear()
    lines = tiny_bench(broken, out)
    assert not computed
    assert f"{MODEL}: 1 images could not be read; see {out / FOLDER / 'errors.csv'}" in lines
    assert result_files(out) == before
    assert read_run(out / CELLS)["errors"] == 1
