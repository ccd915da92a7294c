"""What a run does when its folder has results already."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tiny import PER_IMAGE, SCORES, TinyNet, cell, read, run

from camkit.errors import UsageError
from camkit.network.loading import load_model
from camkit.runs.evaluate import Evaluation


@pytest.fixture(scope="module")
def out(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run."""
    folder = tmp_path_factory.mktemp("out")
    run(labelled, folder)
    return folder


def contents(out: Path) -> dict[str, bytes]:
    """All but run.json, which keeps a record of each start."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


class TestAgain:
    def test_the_same_command_does_nothing(self, photos: Path, tmp_path: Path) -> None:
        run(photos, tmp_path)
        before = contents(tmp_path)
        TinyNet.passed.clear()
        lines = run(photos, tmp_path)
        assert any("nothing to do" in line for line in lines)
        assert contents(tmp_path) == before

    def test_a_new_method_leaves_the_others_as_they_are(self, photos: Path, tmp_path: Path) -> None:
        run(photos, tmp_path, method=("gradcam",))
        before = contents(tmp_path)
        run(photos, tmp_path, method=("layercam",))
        after = contents(tmp_path)
        assert {name: after[name] for name in before if name != "summary.csv"} == {
            name: text for name, text in before.items() if name != "summary.csv"
        }
        assert [row["method"] for row in read(tmp_path / "summary.csv")] == ["gradcam", "layercam"]

    def test_a_new_metric_fills_its_fields(self, photos: Path, tmp_path: Path) -> None:
        run(photos, tmp_path / "a", metrics=("adcc",))
        before = {row["image"]: row for row in read(cell(tmp_path / "a"))}
        run(photos, tmp_path / "a", metrics=("adcc", "insertion"))
        after = {row["image"]: row for row in read(cell(tmp_path / "a"))}
        assert len(after) == 6
        for image, row in after.items():
            assert row["insertion_auc"]
            assert not row["deletion_auc"]
            assert {c: row[c] for c in SCORES[:6]} == {c: before[image][c] for c in SCORES[:6]}
        run(photos, tmp_path / "b", metrics=("adcc", "insertion"))
        assert read(cell(tmp_path / "a")) == read(cell(tmp_path / "b"))

    def test_average_drop_alone_then_adcc(self, photos: Path, tmp_path: Path) -> None:
        """Two of the six columns come first; the others fill up around them, and are those of one run."""
        run(photos, tmp_path / "a", metrics=("average_drop",))
        before = read(cell(tmp_path / "a"))
        assert list(before[0]) == [*PER_IMAGE, "average_gain"]
        assert all(row["average_drop"] and row["increase"] and not row["adcc"] for row in before)
        run(photos, tmp_path / "b", metrics=("adcc",))
        reference = read(cell(tmp_path / "b"))
        run(photos, tmp_path / "a", metrics=("adcc",))
        after = read(cell(tmp_path / "a"))
        for old, row, expected in zip(before, after, reference, strict=True):
            assert (row["average_drop"], row["increase"]) == (old["average_drop"], old["increase"])
            assert float(row["average_drop"]) == pytest.approx(float(expected["average_drop"]), abs=1e-5)
            assert row["increase"] == expected["increase"]
            assert [row[c] for c in SCORES[2:5]] == [expected[c] for c in SCORES[2:5]]

    def test_more_images_come_on_top(self, photos: Path, tmp_path: Path) -> None:
        run(photos, tmp_path / "a", limit=2, batch_size=2)
        before = read(cell(tmp_path / "a"))
        run(photos, tmp_path / "a", limit=5, batch_size=2)
        assert read(cell(tmp_path / "a"))[:2] == before
        run(photos, tmp_path / "b", limit=5, batch_size=2)
        first, second = (read(cell(tmp_path / name)) for name in "ab")
        assert [row["image"] for row in first] == [row["image"] for row in second]
        assert len(first) == 5

    @pytest.mark.parametrize("stop", [1, 2])
    def test_ctrl_c_keeps_the_finished_batches(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
    ) -> None:
        score = Evaluation.run
        calls = itertools.count(1)

        def interrupted(*arguments):
            if next(calls) == stop:
                os.kill(os.getpid(), signal.SIGINT)
            yield from score(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Evaluation, "run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(photos, tmp_path / "a", batch_size=2)
        assert len(read(cell(tmp_path / "a"))) == 2 * stop  # the batch in hand is finished first
        lines = run(photos, tmp_path / "a", batch_size=2)
        assert any(f"going on with {6 - 2 * stop} of 6 images" in line for line in lines)
        run(photos, tmp_path / "b", batch_size=2)
        assert read(cell(tmp_path / "a")) == read(cell(tmp_path / "b"))
        assert read(tmp_path / "a" / "summary.csv") == read(tmp_path / "b" / "summary.csv")

    def test_rows_are_on_disk_while_the_next_batch_runs(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        score = Evaluation.run
        on_disk: list[int] = []

        def watched(*arguments):
            path = cell(tmp_path)
            on_disk.append(len(read(path)) if path.exists() else 0)
            yield from score(*arguments)

        monkeypatch.setattr(Evaluation, "run", watched)
        run(photos, tmp_path, batch_size=2)
        assert on_disk == [0, 0, 2]

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"target": "label"}, "target rule"),
            ({"steps": 5}, "steps"),
            ({"seed": 1}, "seed"),
            ({"preprocess": "paper"}, "preprocess"),
            ({"dtype": "bfloat16"}, "dtype"),
            ({"tf32": True}, "tf32"),
        ],
    )
    def test_one_folder_holds_one_protocol(
        self, out: Path, labelled: Path, tmp_path: Path, change: dict, named: str
    ) -> None:
        there = tmp_path / "out"
        shutil.copytree(out, there)
        before = contents(there)
        with pytest.raises(UsageError, match=f"results with another {named}") as error:
            run(labelled, there, **change)
        assert "--out" in str(error.value)
        assert contents(there) == before

    def test_other_data_are_refused(self, out: Path, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(out, tmp_path / "out")
        with pytest.raises(UsageError, match="another data fingerprint"):
            run(photos, tmp_path / "out")

    def test_other_weights_are_refused(self, photos: Path, tmp_path: Path) -> None:
        run(photos, tmp_path / "out", limit=1, metrics=("adcc",))
        path = tmp_path / "weights.pth"
        torch.save(load_model("timm/camkit_tiny", "random", seed=3).model.state_dict(), path)
        with pytest.raises(UsageError, match="another weights"):
            run(photos, tmp_path / "out", limit=1, metrics=("adcc",), weights=str(path))
