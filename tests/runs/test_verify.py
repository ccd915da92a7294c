"""`camkit verify` finds what was changed and what it cannot compare, and agrees with an honest run."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from tiny_run import FOLDER, METHODS, MODEL, Tiny, make_images, result_files, tiny_bench
from torch import Tensor

from camkit.cli import main
from camkit.config import RunConfig
from camkit.entries import METHODS as METHOD_REGISTRY
from camkit.network.passes import Network
from camkit.results.folder import read_run
from camkit.results.summary import summarise, write_summary
from camkit.results.table import Row, read_records, render
from camkit.runs.agreement import Comparison, tolerance_of
from camkit.runs.describe import as_it_ran
from camkit.runs.evaluate import Evaluation
from camkit.runs.verify import _pick, faults, verify

IMAGES = 12
CELLS = f"{FOLDER}/second-rest"
# Of the five images that are picked: nine columns a method, class and probability of the predictions.
VALUES = 5 * (9 * len(METHODS) + 2)


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


def command(out: Path, data: Path, *more: object) -> Result:
    return CliRunner().invoke(
        main, ["verify", str(out), "--data", str(data), "--device=cpu", "--workers=0", *map(str, more)]
    )


def edit(path: Path, change: Callable[[Row], Row | None], out: Path) -> None:
    """Change the rows of a table, or take them out (None), and make the summary follow."""
    columns, rows = read_records(path)
    path.write_bytes(render(columns, [new for row in rows if (new := change(dict(row))) is not None]))
    write_summary(out, summarise(out))


def edit_run(out: Path, change: Callable[[dict], object]) -> None:
    path = out / CELLS / "run.json"
    run = json.loads(path.read_text())
    change(run)
    path.write_text(json.dumps(run))


def set_field(column: str, value: object, image: str | None = None) -> Callable[[Row], Row]:
    return lambda row: row | {column: str(value)} if image in (None, row["image"]) else row


def picked(out: Path, seed: int = 0) -> list[str]:
    return _pick([row["image"] for row in read_records(out / CELLS / "gradcam.csv")[1]], seed)


def test_an_honest_run_agrees_to_the_bit_and_is_not_changed(out: Path, data: Path) -> None:
    before = result_files(out)
    checks = verify(out, RunConfig(model=(), data=str(data), device="cpu"), lambda _: None)
    assert list(checks["method"]) == [*METHODS, "predictions.csv"]
    assert (checks["images"] == 5).all()
    assert list(checks["values"]) == [5 * 9] * len(METHODS) + [5 * 2]
    assert not checks[["lacking", "differing", "jumped"]].any(axis=None)
    assert (checks["largest"] < 1e-9).all()
    result = command(out, data)
    assert result.exit_code == 0, result.output
    assert f"All {VALUES} values agree" in result.output
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
        ("label", 1, True),
    ],
)
def test_a_changed_value_is_found(column: str, amount: float, differs: bool, out: Path, data: Path) -> None:
    edit(out / CELLS / "gradcam.csv", lambda row: row | {column: str(float(row[column] or 0) + amount)}, out)
    result = command(out, data)
    assert result.exit_code == int(differs), result.output
    values = VALUES + 5 * (column == "label")  # which these images do not have
    assert (f"5 of {values} values differ" in result.output) == differs


def test_what_jumps_may_do_so_in_one_image_of_five(out: Path, data: Path) -> None:
    def flip(images: list[str]) -> Callable[[Row], Row]:
        return lambda row: (
            row | {"increase": str(1 - float(row["increase"]))} if row["image"] in images else row
        )

    path = out / CELLS / "gradcam.csv"
    edit(path, flip(picked(out)[:1]), out)
    checks = verify(out, RunConfig(model=(), data=str(data), device="cpu"), lambda _: None)
    assert list(checks["jumped"]) == [1, 0, 0, 0, 0] and not checks["differing"].any()
    assert not faults(checks)
    edit(path, flip(picked(out)[1:2]), out)
    checks = verify(out, RunConfig(model=(), data=str(data), device="cpu"), lambda _: None)
    assert list(checks["differing"]) == [2, 0, 0, 0, 0] and not checks["jumped"].any()


@pytest.mark.parametrize("text", ["much", "nan"])
@pytest.mark.parametrize("column", ["adcc", "increase"])
def test_a_field_that_is_no_number_is_a_difference(column: str, text: str, out: Path, data: Path) -> None:
    edit(out / CELLS / "gradcam.csv", set_field(column, text, picked(out)[0]), out)
    result = command(out, data)
    assert result.exit_code == 1 and f"1 of {VALUES} values differ" in result.output


def test_a_value_that_is_not_there_is_named(out: Path, data: Path) -> None:
    edit(out / CELLS / "gradcam.csv", set_field("deletion_auc", "", picked(out)[0]), out)
    result = command(out, data)
    assert result.exit_code == 1, result.output
    assert f"second, rest, gradcam: {picked(out)[0]!r}: has no value in deletion_auc" in result.output
    assert "1 rows could not be compared" in result.output


def test_a_metric_that_a_method_was_not_asked_for_is_not_missed(out: Path, data: Path) -> None:
    edit(out / CELLS / "gradcam.csv", set_field("deletion_auc", ""), out)
    assert command(out, data).exit_code == 0


def test_a_value_that_nothing_makes_is_named(out: Path, data: Path) -> None:
    edit(out / CELLS / "edges.csv", set_field("insertion_auc", 0.5), out)
    result = command(out, data)
    assert result.exit_code == 1, result.output
    assert "has a value in insertion_auc, which was not recomputed" in result.output


def test_an_image_that_cannot_be_read_is_named(out: Path, data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(data, tmp_path / "data")
    image = picked(out)[0]
    path = broken / image
    path.write_bytes(b"\0" * path.stat().st_size)  # the same size: the fingerprint stays
    result = command(out, broken)
    assert result.exit_code == 1, result.output
    assert f"gradcam: {image!r}: cannot be read" in result.output
    assert f"{len(METHODS) + 1} rows could not be compared" in result.output


def test_an_image_of_which_there_is_no_such_file_is_named(out: Path, data: Path) -> None:
    edit(out / CELLS / "edges.csv", lambda row: row | {"image": row["image"].replace("image", "Image")}, out)
    result = command(out, data)
    assert result.exit_code == 1, result.output
    assert "edges: 'group0/Image9.png': is not in the data" in result.output


def test_a_cell_without_rows_is_named(out: Path, data: Path) -> None:
    (out / CELLS / "edges.csv").unlink()
    write_summary(out, summarise(out))
    result = command(out, data)
    assert result.exit_code == 1, result.output
    assert f"{MODEL}, second, rest, edges: no value was compared" in result.output


def test_methods_of_different_images_are_picked_from_their_own(out: Path, data: Path) -> None:
    few = [row["image"] for row in read_records(out / CELLS / "edges.csv")[1]][:2]
    edit(out / CELLS / "edges.csv", lambda row: row if row["image"] in few else None, out)
    edit_run(out, lambda run: run["segments"][-1]["rows"].update(edges="0-1"))
    checks = verify(out, RunConfig(model=(), data=str(data), device="cpu"), lambda _: None)
    assert list(checks["images"])[:4] == [5, 5, 5, 2] and not faults(checks)


@pytest.mark.parametrize(("gap", "images", "code"), [(5e-4, 1, 0), (5e-4, 2, 1), (2e-3, 1, 1)])
def test_few_values_may_differ_by_little(gap: float, images: int, code: int, out: Path, data: Path) -> None:
    for image in picked(out)[:images]:
        rows = {row["image"]: row for row in read_records(out / CELLS / "gradcam.csv")[1]}
        value = float(rows[image]["complexity"]) + gap
        edit(out / CELLS / "gradcam.csv", set_field("complexity", value, image), out)
    result = command(out, data)
    assert result.exit_code == code, result.output


def test_methods_with_other_groups_of_the_same_columns(data: Path, tmp_path: Path) -> None:
    tiny_bench(data, tmp_path, method=("gradcam",), metrics=("average_drop",))
    tiny_bench(data, tmp_path, method=("edges",), metrics=("adcc",))
    result = command(tmp_path, data)
    assert result.exit_code == 0, result.output


def test_a_neighbouring_class_is_another_class() -> None:
    """Relatively 1000 and 1001 differ by little."""
    comparison = Comparison()
    comparison.add("a", {"label": "", "target": "1001"}, {"label": math.nan, "target": 1000})
    assert comparison.judge(1, (), 1e-5) == (1, 0)


def test_rows_that_were_chosen_or_added_are_found(out: Path, data: Path) -> None:
    """Means of the best rows, or of rows from elsewhere, are those of another data set."""
    few = [row["image"] for row in read_records(out / CELLS / "edges.csv")[1]][:6]
    edit(out / CELLS / "edges.csv", lambda row: row if row["image"] in few else None, out)
    edit_run(out, lambda run: run["segments"][-1]["rows"].update(gradcam=f"0-{IMAGES - 3}"))
    result = command(out, data)
    assert result.exit_code == 1
    assert result.output.count("has no row, but run.json lists one") == IMAGES - 6
    assert result.output.count("has a row that run.json does not list") == 2


def test_damaged_rows_count_nowhere(out: Path, data: Path) -> None:
    """A row of too few fields, or with zeros in it, is none for verify, and none for the means."""
    before = summarise(out)
    path = out / CELLS / "edges.csv"
    whole = path.read_bytes()
    path.write_bytes(
        whole + b"forged.png,1,2,1,0,1,1,1,0,1\n" + whole.split(b"\n")[1].replace(b",", b",\0", 3)
    )
    pd.testing.assert_frame_equal(summarise(out), before)
    assert command(out, data).exit_code == 0


@pytest.mark.parametrize(("column", "value"), [("predicted", 3), ("predicted", 9999), ("predicted", "x"),
                                               ("probability", 0.99)])  # fmt: skip
def test_changed_predictions_are_found(column: str, value: object, out: Path, data: Path) -> None:
    edit(out / FOLDER / "predictions.csv", set_field(column, value), out)
    result = command(out, data)
    assert result.exit_code == 1 and "values differ" in result.output, result.output


def test_predictions_that_are_not_there_are_named(out: Path, data: Path) -> None:
    (out / FOLDER / "predictions.csv").unlink()
    write_summary(out, summarise(out))
    result = command(out, data)
    assert result.exit_code == 1 and f"predictions.csv: {picked(out)[1]!r}: has no row" in result.output


def test_a_class_that_is_as_probable_as_the_first_is_the_recorded_one(
    out: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine two classes that are nearly as probable may come out in the other order."""
    logits = Tiny.forward

    def turned(self: Tiny, images: Tensor) -> Tensor:
        """All classes equally probable, the last one by a last bit more: here, not where the run was made."""
        level = logits(self, images) * 0 + 1 + images.mean(dim=(1, 2, 3))[:, None]
        return level + torch.eye(10)[9] * 1e-6 * here

    monkeypatch.setattr(Tiny, "forward", turned)
    here = 0
    tiny_bench(data, out.parent / "tied", metrics=("adcc",), method=("gradcam",))
    here = 1
    checks = verify(out.parent / "tied", RunConfig(model=(), data=str(data), device="cpu"), lambda _: None)
    rows = read_records(out.parent / "tied" / FOLDER / "predictions.csv")[1]
    assert {row["predicted"] for row in rows} == {"0"}
    assert not checks["differing"].any(), checks.to_string()


def test_another_seed_picks_other_images(out: Path, data: Path) -> None:
    assert picked(out, seed=0) != picked(out, seed=1)
    only = next(iter(set(picked(out, seed=1)) - set(picked(out, seed=0))))
    edit(out / CELLS / "gradcam.csv", set_field("adcc", 0.5, only), out)
    assert command(out, data).exit_code == 0
    assert command(out, data, "--seed", 1).exit_code == 1


@pytest.mark.parametrize(("words", "sizes"), [((), {4}), (("--batch-size", 2), {2})])
def test_the_batch_size_is_that_of_the_run_or_another(
    words: tuple, sizes: set[int], out: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    trace = Network.trace
    monkeypatch.setattr(
        Network,
        "trace",
        lambda self, images, *more, **named: seen.append(len(images)) or trace(self, images, *more, **named),
    )
    assert command(out, data, *words).exit_code == 0
    assert set(seen) - {1} == sizes  # 1: the probe of a model's layers


def test_a_pass_that_does_not_fit_says_what_to_do(
    out: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Evaluation, "run", run)
    result = command(out, data)
    assert result.exit_code == 1
    assert "error: out of memory at --batch-size 4: try a smaller one" in result.output


def test_a_decoder_that_died_is_named(out: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(Evaluation, "run", run)
    result = command(out, data)
    assert result.exit_code == 1
    assert "error: a process that decodes images died (out of memory?): try fewer --workers" in result.output
    assert "Nothing was changed." in result.output


def test_a_run_with_fewer_bits_may_differ_by_more(data: Path, tmp_path: Path) -> None:
    tiny_bench(data, tmp_path, dtype="bfloat16", method=("gradcam",))
    path = tmp_path / CELLS / "gradcam.csv"
    edit(path, lambda row: row | {"complexity": str(float(row["complexity"]) + 0.04)}, tmp_path)
    assert command(tmp_path, data).exit_code == 0
    edit(path, lambda row: row | {"complexity": str(float(row["complexity"]) + 0.02)}, tmp_path)
    assert command(tmp_path, data).exit_code == 1


def test_tolerances() -> None:
    assert tolerance_of(RunConfig(model=())) == 1e-5
    assert tolerance_of(RunConfig(model=(), tf32=True)) == 1e-2
    assert tolerance_of(RunConfig(model=(), tf32=True, dtype="bfloat16")) == 5e-2


@pytest.mark.parametrize(
    ("text", "value", "gap"),
    [("2.5", 2.5, 0), ("1.5", 1, 0.5), ("300", 200, 0.5), ("nan", math.nan, 0), ("nan", 1, math.inf),
     ("1", math.nan, math.inf), ("", 1, math.inf), ("inf", 1, math.inf)],
)  # fmt: skip
def test_gaps_are_relative_above_one(text: str, value: float, gap: float) -> None:
    comparison = Comparison()
    comparison.add("a", {"label": "", "adcc": text}, {"label": math.nan, "adcc": value})
    if text:
        assert comparison.largest() == (gap, "adcc" if gap else "")
    else:
        assert comparison.lacking == {"a": "has no value in adcc"}


def test_scores_of_saved_maps_are_made_as_the_run_was(data: Path, tmp_path: Path) -> None:
    tiny_bench(data, tmp_path, tf32=True, deterministic=True, method=("gradcam",))
    config = as_it_ran(tmp_path / CELLS, RunConfig(model=()))
    assert (config.tf32, config.deterministic, config.batch_size) == (True, True, 4)
    assert (config.weights, config.method, config.metrics) == ("random", ("gradcam",), ("adcc",))
    words = ["--metrics", "deletion", "--data", str(data), "--batch-size", "4", "--device", "cpu"]
    result = CliRunner().invoke(main, ["score", str(tmp_path), *words])
    assert result.exit_code == 0, result.output
    assert len(read_run(tmp_path / CELLS)["segments"]) == 1  # neither refused nor made with something else


def test_a_plugin_is_asked_for_by_name(data: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from camkit import method\n"
        "@method('of-verify')\n"
        "def mine(trace):\n"
        "    return trace.activation.sum(dim=1)\n"
    )
    out = tmp_path / "out"
    tiny_bench(data, out, method=("of-verify",), plugin=(str(plugin),))
    entry = METHOD_REGISTRY._entries.pop("of-verify")
    result = command(out, data)
    assert result.exit_code == 2
    assert "there is no method 'of-verify' here. Name the plugin that has it: --plugin FILE" in result.output
    METHOD_REGISTRY.add(entry)
    assert command(out, data, "--plugin", plugin).exit_code == 0


def test_a_plugin_that_fails_here_is_named(data: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "fails.py"
    text = (
        "from camkit import method\n"
        "@method('fails-in-verify')\n"
        "def mine(trace):\n"
        "    return trace.activation.sum(dim=1)\n"
    )
    plugin.write_text(text)
    out = tmp_path / "out"
    tiny_bench(data, out, method=("gradcam", "fails-in-verify"), plugin=(str(plugin),))
    plugin.write_text(text.replace("sum(dim=1)", "no_such_thing"))
    result = command(out, data, "--plugin", plugin)
    assert result.exit_code == 1, result.output
    assert "plugin fails.py: method 'fails-in-verify': AttributeError" in result.output
    assert "fails-in-verify: no value was compared" in result.output
    assert "5 rows could not be compared" in result.output


def test_a_summary_that_does_not_follow_from_the_rows(out: Path, data: Path) -> None:
    path = out / "summary.csv"
    path.write_text(path.read_text().replace("0.", "0.9", 1))
    result = command(out, data)
    assert result.exit_code == 1
    assert "summary.csv does not follow from the rows" in result.output
    assert "unfinished, or files were changed" in result.output


@pytest.mark.parametrize("text", ["", "no,columns\nof,cells\n", "model,layer\n1,2,3\n", "\xff"])
def test_a_summary_that_is_none(out: Path, data: Path, text: str) -> None:
    (out / "summary.csv").write_text(text, encoding="latin-1")
    result = command(out, data)
    assert result.exit_code == 1
    assert "summary.csv does not follow from the rows" in result.output


def test_a_summary_that_was_written_without_the_plugins(out: Path, data: Path) -> None:
    """Another order of cells and columns, and another opinion on which methods divide the utility."""
    path = out / "summary.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False).iloc[::-1, ::-1]
    table.assign(value="no").to_csv(path, index=False)
    result = command(out, data)
    assert result.exit_code == 0, result.output


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


def test_the_seeded_share_is_one_per_cent_and_five_at_least() -> None:
    many = [str(number) for number in range(50_000)]
    assert len(_pick(many, 0)) == 500
    assert len(_pick(many[:12], 0)) == 5 and len(_pick(many[:3], 0)) == 3
    assert _pick(many, 0) == _pick(reversed(many), 0) != _pick(many, 1)
