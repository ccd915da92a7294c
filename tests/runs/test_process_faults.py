"""Processes that divide a run, and meet faults: who says it, and what is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import (
    FOLDER,
    MODEL,
    SECOND_MODEL,
    RunAs,
    images_of,
    make_images,
    result_files,
    tiny_bench,
    tiny_config,
)

from camkit.data import Item, find_images
from camkit.errors import CamkitError, PluginError
from camkit.results.folder import read_run
from camkit.runs.bench import bench
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


class TestUnreadable:
    def test_each_process_compares_its_faults_with_its_own_share(
        self, own_data: Path, tmp_path: Path, as_rank: Callable[[int, int], None]
    ) -> None:
        break_images(own_data, share_of(1, own_data)[:4])
        told = "4 of 25 images cannot be read, more than --max-errors 10%"
        lines: Lines = []
        as_rank(1, 2)
        with pytest.raises(CamkitError, match="2 of 2 models failed"):
            bench(
                tiny_config(own_data, tmp_path / "two", max_errors=0.1, model=(MODEL, SECOND_MODEL)),
                lines.append,
            )
        errors = [line for line in lines if line.startswith("error: ")]
        assert [line.partition(": stopped: ")[0] for line in errors] == [
            f"error: process 1: {model}" for model in (MODEL, SECOND_MODEL)
        ]
        assert all(told in line for line in errors)

    @pytest.mark.parametrize("order", [(1, 0), (0, 1)])
    def test_those_of_all_processes_are_counted_and_go_when_they_are_past(
        self, order: tuple[int, int], own_data: Path, reference: Path, tmp_path: Path, run_as: RunAs
    ) -> None:
        out = tmp_path / "out"
        contents = break_images(own_data, [share_of(0, own_data)[20], share_of(1, own_data)[20]])
        for place, rank in enumerate(order, start=1):
            _, lines = run_as(rank, 2, own_data, out)
            assert read_run(out / CELLS)["errors"] == place
            if rank == 0:  # speaks for all
                assert lines[-1].startswith(f"{MODEL}: {place} images could not be read; see")
                assert str(out / FOLDER / "errors.csv") in lines[-1]
            else:
                assert [line for line in lines if not line.startswith("process 1 of 2")] == []
        for path, content in contents.items():
            path.write_bytes(content)
        for place, rank in enumerate(order, start=1):
            _, lines = run_as(rank, 2, own_data, out)
            assert read_run(out / CELLS)["errors"] == 2 - place
        assert not any("could not be read" in line for line in lines)
        assert result_files(out) == result_files(reference), "and there is no errors.csv"

    def test_an_image_is_tried_again_by_the_process_whose_it_is(
        self, own_data: Path, reference: Path, tmp_path: Path, run_as: RunAs
    ) -> None:
        """The others do not wait for it: the run is whole, as far as it is known."""
        out = tmp_path / "out"
        contents = break_images(own_data, share_of(1, own_data)[20:22])
        for rank in (1, 0):
            summary, lines = run_as(rank, 2, own_data, out)
        assert summary is not None and images_of(out) == IMAGES - 2
        assert lines[-1].startswith(f"{MODEL}: 2 images could not be read")
        for path, content in contents.items():
            path.write_bytes(content)
        run_as(0, 2, own_data, out)
        assert images_of(out) == IMAGES - 2
        assert run_as(1, 2, own_data, out)[0] is not None
        assert result_files(out) == result_files(reference)


class TestFailures:
    def test_a_process_that_fails_says_so_and_costs_the_others_nothing(
        self, data: Path, reference: Path, tmp_path: Path, run_as: RunAs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> None:
            raise CamkitError("no weights here")

        out = tmp_path / "out"
        with monkeypatch.context() as patch:
            patch.setattr("camkit.runs.job.prepare", fails)
            with pytest.raises(CamkitError, match=f"1 of 1 models failed, as said above: {MODEL}"):
                run_as(1, 2, data, out)
        summary, _ = run_as(0, 2, data, out)
        assert summary is None and images_of(out) == len(Share(0, 2).of(range(IMAGES)))
        assert run_as(1, 2, data, out)[0] is not None
        assert result_files(out) == result_files(reference)

    def test_what_a_process_made_before_it_failed_is_folded(
        self, own_data: Path, tmp_path: Path, run_as: RunAs
    ) -> None:
        out, mine, theirs = tmp_path / "out", share_of(0, own_data), share_of(1, own_data)
        break_images(own_data, mine[10:20])
        run_as(1, 2, own_data, out)
        with pytest.raises(CamkitError, match="1 of 1 models failed"):
            run_as(0, 2, own_data, out)
        assert images_of(out) >= len(theirs) + 8
        assert not (out / PARTS).exists()

    def test_what_a_plugin_did_wrong_is_reported_by_its_process_and_by_the_last(
        self, data: Path, tmp_path: Path, run_as: RunAs
    ) -> None:
        (tmp_path / "picky.py").write_text(PLUGIN)
        bad = next(item.id for item in share_of(1, data)[10:] if "image" in item.id)
        (tmp_path / "bad").write_text(bad)
        out, changes = tmp_path / "out", {"method": ("gradcam", "picky"), "plugin": (tmp_path / "picky.py",)}
        assert run_as(1, 2, data, out, **changes)[0] is None  # an exit code of 1 would end the others
        with pytest.raises(PluginError, match=r"'picky': ValueError: not this one(.|\n)*finished"):
            run_as(0, 2, data, out, **changes)
        assert images_of(out, "gradcam") == IMAGES and images_of(out, "picky") == IMAGES - 4
        (tmp_path / "bad").write_text("none")
        for rank in (1, 0):
            summary, _ = run_as(rank, 2, data, out, **changes)
        assert summary is not None and images_of(out, "picky") == IMAGES
        assert not (out / FOLDER / "failures.csv").exists()

    def test_what_a_plugin_did_wrong_elsewhere_is_not_this_processs_as_long_as_others_are_at_work(
        self, data: Path, tmp_path: Path, run_as: RunAs
    ) -> None:
        (tmp_path / "picky.py").write_text(PLUGIN)
        (tmp_path / "bad").write_text(share_of(1, data)[10].id)
        out, changes = tmp_path / "out", {"method": ("gradcam", "picky"), "plugin": (tmp_path / "picky.py",)}
        summary, _ = run_as(0, 2, data, out, **changes)
        assert summary is None
        with pytest.raises(PluginError, match="'picky': ValueError"):
            run_as(1, 2, data, out, **changes)


PLUGIN = """
from pathlib import Path
from camkit import method

@method("picky")
def picky(trace):
    if Path(__file__).with_name("bad").read_text() in trace.image_ids:
        raise ValueError("not this one")
    return trace.activation.sum(dim=1)
"""
