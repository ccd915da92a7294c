"""Mosaics: which photos are set together, what is kept of it, and a network whose right tile is known."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from corners import CORNER_RUN, FIXED, FOLDER, MODEL, SIDE, colour_photos, write_colours
from pictures import write
from tiny import segments
from tiny_run import Crash, at_write, result_files

from camkit.config import RunConfig
from camkit.entries import METRICS, method
from camkit.errors import CamkitError, RunError, UsageError
from camkit.methods.altered import CHANGES
from camkit.network.trace import Trace
from camkit.results.folder import read_run, read_scores, run_folders
from camkit.runs.bench import bench
from camkit.runs.dryrun import dry_run
from camkit.runs.mosaics import OTHERS, Known, candidates, choose
from camkit.runs.rescore import rescore
from camkit.runs.verify import faults, verify


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_photos(tmp_path_factory.mktemp("colours"))


def mosaics(photos: Path, out: Path, **options: object) -> list[str]:
    """Run over mosaics of photos; the lines that the user would see."""
    lines: list[str] = []
    settings = {"method": ("hirescam", "region"), "metrics": ("localisation",)}
    bench(
        RunConfig(**CORNER_RUN | settings | {"data": f"mosaic:{photos}", "out": out} | options), lines.append
    )
    return lines


def chosen(out: Path) -> list[dict[str, str]]:
    (path,) = out.glob("*/mosaics.csv")
    return list(csv.DictReader(path.read_text().splitlines()))


def scores(out: Path, name: str = "hirescam") -> pd.DataFrame:
    (path,) = out.glob(f"*/*/{name}.csv")
    return read_scores(path)


def known(photos: int, classes: int, seed: int) -> Known:
    """What a made-up model says: sure of most photos, of some of two classes at once."""
    drawn = np.random.default_rng(seed)
    logits = (
        drawn.normal(0, 1, (photos, classes)) + 12 * np.eye(classes)[drawn.integers(classes, size=photos)]
    )
    twice = drawn.random(photos) < 0.3
    logits[twice] += 9 * np.eye(classes)[drawn.integers(classes, size=photos)][twice]
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    target = p.argmax(axis=1)
    best = p[np.arange(photos), target]
    return Known([], target, best, p, best >= 0.9)


def made(photos: int = 60, classes: int = 12, seed: int = 0, tiles: int = 4) -> tuple[Known, list]:
    one = known(photos, classes, seed)
    one = Known([None] * photos, one.target, one.probability, one.all_probabilities, one.confident)  # type: ignore[list-item]
    return one, choose(one, tiles, seed=0)


class TestChoice:
    @pytest.mark.parametrize("tiles", [4, 9])
    def test_the_rules(self, tiles: int) -> None:
        one, found = made(photos=90, classes=30, tiles=tiles)
        assert len(found) > 5
        for _, photos in found:
            assert len(set(photos)) == len({one.target[photo] for photo in photos}) == tiles
            for photo in photos:
                assert one.confident[photo]
                others = [one.target[other] for other in photos if other != photo]
                assert (one.all_probabilities[photo, others] < OTHERS).all()

    def test_some_candidates_are_refused_by_each_rule(self) -> None:
        """Else the test above would hold of any choice."""
        one, _ = made()
        first = np.concatenate([groups for _, groups in candidates(60, 4, 0)])
        sure = one.confident[first].all(axis=1)
        unlike = np.array([len({*one.target[group]}) == 4 for group in first])
        others = one.all_probabilities[first[:, :, None], one.target[first][:, None]]
        apart = (others[:, ~np.eye(4, dtype=bool)] < OTHERS).all(axis=1)
        assert sure.any() and (~sure).any()
        assert (sure & unlike & ~apart).any()
        assert (sure & ~unlike).any()

    def test_no_photo_stands_twice_in_a_place(self) -> None:
        _, found = made()
        for place in range(4):
            assert max(Counter(photos[place] for _, photos in found).values()) == 1
        assert max(Counter(photo for _, photos in found for photo in photos).values()) > 1

    def test_each_photo_may_stand_in_any_place(self) -> None:
        """A sure photo takes nearly as many places as there are: none is preferred."""
        _, found = made(photos=80)
        places = Counter(place for _, photos in found for place in range(4) if photos[place] in range(40))
        assert max(places.values()) - min(places.values()) <= 0.3 * max(places.values())

    def test_what_is_tried_does_not_depend_on_the_model(self) -> None:
        """A number stands for the same photos, whichever model they qualify for."""
        (_, one), (_, other) = made(seed=1), made(seed=2)
        one, other = dict(one), dict(other)
        shared = one.keys() & other.keys()
        assert shared and one.keys() != other.keys()
        assert all(one[number] == other[number] for number in shared)

    def test_in_each_round_every_photo_is_tried_once(self) -> None:
        rounds = [groups for _, groups in candidates(42, 4, seed=3)]
        assert all(len({*groups.ravel()}) == groups.size == 40 for groups in rounds)
        assert [first for first, _ in candidates(42, 4, seed=3)] == [10 * turn for turn in range(len(rounds))]
        assert not np.array_equal(rounds[0], next(candidates(42, 4, seed=4))[1])


def test_a_run(colours: Path, tmp_path: Path) -> None:
    """All four targets of a mosaic or none; the target's own tile and class; p in the mosaic."""
    lines = mosaics(colours, tmp_path, limit=3)
    assert not any("shrunk" in line for line in lines)
    rows, kept = scores(tmp_path), chosen(tmp_path)
    names = list(dict.fromkeys(row["mosaic"] for row in kept))[:3]
    assert list(rows.index) == [f"mosaic/{name}#{place}" for name in names for place in (1, 2, 3, 4)]
    for image, row in rows.iterrows():
        name, _, place = str(image).removeprefix("mosaic/").partition("#")
        (tile,) = [one for one in kept if (one["mosaic"], one["place"]) == (name, str(int(place) - 1))]
        assert int(tile["image"][1]) == int(tile["target"]) == row["target"]
        assert float(tile["probability"]) > 0.99
        # Four logits of 2.5 and four of 0.
        assert row["probability"] == pytest.approx(np.exp(2.5) / (4 * np.exp(2.5) + 4), abs=1e-6)
    assert not {"grey.png", "doubtful.png"} & {row["image"] for row in kept}


def test_a_photo_of_two_classes_stands_beside_neither_of_the_other(tmp_path: Path) -> None:
    """A quarter of `both` is of colour 1: p is 0.0067, less than a tenth and more than a thousandth."""
    photos = colour_photos(tmp_path / "photos")
    for copy in range(4):
        write_colours(photos / f"both{copy}.png", 0, 1, 0.75)
    mosaics(photos, tmp_path / "out")
    groups = pd.DataFrame(chosen(tmp_path / "out")).groupby("mosaic")
    beside = [set(rows["target"]) for _, rows in groups if rows["image"].str.startswith("both").any()]
    assert beside
    assert not any("1" in targets for targets in beside)
    assert any({"0", "1"} <= set(rows["target"]) for _, rows in groups)


def test_the_right_tile_is_found(colours: Path, tmp_path: Path) -> None:
    """The network sees a colour where it is: HiResCAM is as good as the region itself; all is certified."""
    mosaics(colours, tmp_path, method=("hirescam", "gradcam", "region", "flat"), limit=4)
    ceiling = scores(tmp_path, "region")
    for name in ("hirescam", "gradcam"):
        rows = scores(tmp_path, name)
        assert (rows["certified"] == 1).all()
        assert (rows["region_share"] == 0.25).all()
        assert (rows["pointing"] == 1).all()
        np.testing.assert_allclose(rows["energy"], ceiling["energy"], atol=1e-6)
        assert (rows["energy"] > 0.75).all()  # tiles of 4 x 4 cells: the resize spreads half a cell
    assert scores(tmp_path, "flat")["energy"].mean() == pytest.approx(0.25, abs=0.01)


def test_planted_faults_are_caught(colours: Path, tmp_path: Path) -> None:
    """A map that is turned by a tile, and one whose sign is wrong, score below chance on every tile."""

    @method("turned")
    def turned(trace: Trace) -> torch.Tensor:
        return (trace.activation * trace.gradient).sum(dim=1).roll(trace.activation.shape[3] // 2, dims=2)

    @method("sign")
    def sign(trace: Trace) -> torch.Tensor:
        return (trace.activation * (0.1 - trace.gradient)).sum(dim=1)

    mosaics(colours, tmp_path, method=("hirescam", "turned", "sign"), limit=4)
    assert (scores(tmp_path)["energy"] > 0.75).all()
    for name in ("turned", "sign"):
        assert (scores(tmp_path, name)["energy"] < 0.25).all()
        assert (scores(tmp_path, name)["pointing"] == 0).all()


def test_all_changes_of_a_map(colours: Path, tmp_path: Path) -> None:
    mosaics(colours, tmp_path, method=("hirescam~all",), metrics=("localisation", "shape"), limit=2)
    whole = scores(tmp_path)
    found = {change: scores(tmp_path, f"hirescam~{change}") for change in CHANGES}
    for share in (10, 25, 50, 100):
        moved = found[f"moved-{share}"]
        wrong = found["moved-100"]["energy"]
        expected = (1 - share / 100) * whole["energy"] + share / 100 * wrong
        np.testing.assert_allclose(moved["energy"], expected, atol=1e-5)
        np.testing.assert_allclose(moved["complexity"], whole["complexity"], atol=1e-6)
    np.testing.assert_allclose(found["same"]["energy"], whole["energy"], atol=1e-6)
    for name in ("sqrt", "square", "raised"):
        assert (found[name]["pointing"] == 1).all()
    assert (found["sqrt"]["complexity"] > whole["complexity"]).all()


def test_a_network_of_one_size_sees_them_shrunk(colours: Path, tmp_path: Path) -> None:
    lines = mosaics(colours, tmp_path, model=(FIXED,), limit=2)
    assert f"{FIXED}: takes no larger images: the mosaics are shrunk to {SIDE}x{SIDE}" in lines
    rows = scores(tmp_path)
    assert len(rows) == 8
    assert (rows["region_share"] == 0.25).all()
    assert (rows["pointing"] == 1).all()


def test_the_same_photos_for_two_models(colours: Path, tmp_path: Path) -> None:
    mosaics(colours, tmp_path, model=(MODEL, FIXED))
    one, other = (path.read_bytes() for path in sorted(tmp_path.glob("*/mosaics.csv")))
    assert one == other


def test_a_resumed_run_leaves_what_a_whole_one_does(colours: Path, tmp_path: Path) -> None:
    """Killed in the second batch: the choice is kept, the photos are not looked at again."""
    mosaics(colours, tmp_path / "whole")

    def crash() -> None:
        raise Crash

    with pytest.raises(Crash), at_write(3, crash):
        mosaics(colours, tmp_path / "killed")
    before = (tmp_path / "killed" / FOLDER / "mosaics.csv").stat().st_mtime_ns
    mosaics(colours, tmp_path / "killed")
    assert (tmp_path / "killed" / FOLDER / "mosaics.csv").stat().st_mtime_ns == before
    assert result_files(tmp_path / "killed") == result_files(tmp_path / "whole")


def test_a_higher_limit_adds_mosaics(colours: Path, tmp_path: Path) -> None:
    mosaics(colours, tmp_path / "steps", limit=1)
    assert len(scores(tmp_path / "steps")) == 4
    for out in ("steps", "once"):
        mosaics(colours, tmp_path / out, limit=3)
    assert result_files(tmp_path / "steps") == result_files(tmp_path / "once")
    lines = mosaics(colours, tmp_path / "steps", limit=10**6)
    count = len({row["mosaic"] for row in chosen(tmp_path / "steps")})
    assert f"{MODEL}: {count} mosaics, the photos give no more (--limit 1000000)" in lines
    assert len(scores(tmp_path / "steps")) == 4 * count


def test_processes_share_the_choice(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mosaics(colours, tmp_path / "one", limit=4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        mosaics(colours, tmp_path / "two", limit=4)
    assert (tmp_path / "two" / FOLDER / "mosaics.csv").read_bytes() == (
        tmp_path / "one" / FOLDER / "mosaics.csv"
    ).read_bytes()
    pd.testing.assert_frame_equal(scores(tmp_path / "one"), scores(tmp_path / "two"))


def test_the_protocol(colours: Path, tmp_path: Path) -> None:
    """The photos' fingerprint and the options: another choice is refused in the same folder."""
    mosaics(colours, tmp_path / "out", limit=1)
    (folder,) = run_folders(tmp_path / "out")
    protocol = read_run(folder)["protocol"]
    assert (protocol["mosaic"], protocol["confidence"]) == (2, 0.9)
    assert protocol["transform"].startswith("native: 2x2 of: ")
    with pytest.raises(UsageError, match="another confidence: 0.9, now 0.8"):
        mosaics(colours, tmp_path / "out", confidence=0.8)
    with pytest.raises(UsageError, match="another mosaic: 2, now null"):
        mosaics(colours, tmp_path / "out", data=str(colours), method=("hirescam",), metrics=("shape",))
    more = shutil.copytree(colours, tmp_path / "more")
    write_colours(more / "new.png", 3)
    with pytest.raises(UsageError, match="data fingerprint"):
        mosaics(more, tmp_path / "out")
    (more / "c0_0.png").unlink()
    (more / "c0_1.png").unlink()
    shutil.rmtree(folder)  # a choice that was left without the rows that it was made for
    with pytest.raises(
        CamkitError, match=r"mosaics\.csv is of other photos or options \('c0_.*another --out"
    ):
        mosaics(more, tmp_path / "out")


def test_photos_of_the_same_run_have_no_mosaic_in_their_protocol(colours: Path, tmp_path: Path) -> None:
    mosaics(colours, tmp_path, data=str(colours), method=("hirescam",), metrics=("shape",))
    (folder,) = run_folders(tmp_path)
    assert not {"mosaic", "confidence", "regions"} & read_run(folder)["protocol"].keys()


def test_labels_count(tmp_path: Path) -> None:
    """In folders of classes: a photo that the model takes for another class is not used."""
    for number in range(8):
        for copy in range(2):
            write_colours(tmp_path / "data" / f"class{number}" / f"{copy}.png", number)
    write_colours(tmp_path / "data" / "class0" / "wrong.png", 5)
    mosaics(tmp_path / "data", tmp_path / "out", classes="folders")
    rows = chosen(tmp_path / "out")
    assert rows
    assert all(row["image"].startswith(f"class{row['target']}/") for row in rows)
    assert "class0/wrong.png" not in {row["image"] for row in rows}


@pytest.mark.parametrize(("option", "value"), [("mosaic", 3), ("confidence", 0.5)])
def test_options_of_mosaics_need_mosaics(colours: Path, tmp_path: Path, option: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{option} is for mosaics of photos: --data mosaic:PATH"):
        mosaics(colours, tmp_path, data=str(colours), method=("hirescam",), **{option: value})


def test_what_is_refused(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--regions: in a mosaic the region is the photo's tile"):
        mosaics(colours, tmp_path, regions=tmp_path)
    with pytest.raises(UsageError, match="--target label: in a mosaic each photo's own class is explained"):
        mosaics(colours, tmp_path, target="label")
    with pytest.raises(UsageError, match="--mosaic 1: expected 2 or more"):
        mosaics(colours, tmp_path, mosaic=1)
    with pytest.raises(UsageError, match="'region': these data do not say where the class is"):
        mosaics(colours, tmp_path, data=str(colours))
    with pytest.raises(UsageError, match="'hirescam~moved-25': it changes tiles of mosaics"):
        boxes = write(tmp_path / "boxes.csv", "image,x1,y1,x2,y2\nc0_0.png,1,1,9,9\n")
        mosaics(colours, tmp_path, data=str(colours), regions=boxes, method=("hirescam~moved-25",))
    with pytest.raises(UsageError, match="--metrics localisation: these data do not say where the class is"):
        mosaics(colours, tmp_path, data=str(colours), method=("hirescam",))
    with pytest.raises(UsageError, match="--data mosaic:: of which photos"):
        mosaics(colours, tmp_path, data="mosaic:")
    with pytest.raises(UsageError, match="--mosaic 5: each takes 25 photos, and there are 18"):
        mosaics(colours, tmp_path, mosaic=5)
    with pytest.raises(
        CamkitError,
        match="9 photos of different classes: of 18 photos 16 are classified .* into 8 classes",
    ):
        mosaics(colours, tmp_path, mosaic=3)


def test_photos_that_cannot_be_read(colours: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(colours, tmp_path / "photos")
    (photos / "c3_0.png").write_bytes(b"no image")
    lines = mosaics(photos, tmp_path / "out")
    assert (
        sum("1 of 18 photos cannot be read, the first c3_0.png: cannot be read" in line for line in lines)
        == 1
    )
    assert "c3_0.png" not in {row["image"] for row in chosen(tmp_path / "out")}
    with pytest.raises(RunError, match="on-error stop"):
        mosaics(photos, tmp_path / "stopped", on_error="stop")
    with pytest.raises(CamkitError, match="1 of 18 photos cannot be read.*; more than --max-errors 0%"):
        mosaics(photos, tmp_path / "none", max_errors=0)


def test_the_dry_run_counts_and_writes_nothing(colours: Path, tmp_path: Path) -> None:
    options = {
        "method": ("hirescam", "gradcam", "flat"),
        "metrics": ("localisation", "null", "srg"),
        "limit": 5,
    }
    settings = CORNER_RUN | options | {"data": f"mosaic:{colours}", "out": tmp_path / "out"}
    table, failed = dry_run(RunConfig(**settings), say=lambda line: None)
    assert not failed
    assert not (tmp_path / "out").exists()
    mosaics(colours, tmp_path / "out", **options)
    (row,) = table.to_dict("records")
    assert row["images"] == 20
    assert row["passes"] == segments(tmp_path / "out")[-1]["passes"] == 3 * (1 + 3 + 2 + 1 + 3 * 2 * 3)


def test_scores_afterwards(colours: Path, tmp_path: Path) -> None:
    """Scores of saved maps are those of the run itself; plain photos are not the data of the run."""
    able = tuple(name for name, metric in METRICS.items() if not metric.explains_again)
    assert {"localisation", "single_deletion", "deletion", "shapley"} <= {*able}
    mosaics(colours, tmp_path / "once", limit=3, method=("hirescam",), metrics=able)
    mosaics(colours, tmp_path / "later", limit=3, method=("hirescam",), metrics=("shape",), save_maps=True)
    again = RunConfig(
        model=(),
        out=tmp_path / "later",
        metrics=able,
        data=f"mosaic:{colours}",
        device="cpu",
        batch_size=8,
    )
    rescore(again, lambda line: None)
    one, later = (scores(tmp_path / name) for name in ("once", "later"))
    pd.testing.assert_frame_equal(one, later[one.columns])
    for name in {*METRICS} - {*able}:
        with pytest.raises(UsageError, match=f"{name} needs maps of changed images"):
            rescore(replace(again, metrics=(name,)), lambda line: None)
    with pytest.raises(UsageError, match="this run is of mosaics: --data mosaic:PATH"):
        rescore(replace(again, data=str(colours)), lambda line: None)


def test_a_run_can_be_verified(colours: Path, tmp_path: Path) -> None:
    mosaics(colours, tmp_path, method=("hirescam",), limit=3)
    config = RunConfig(model=(), data=f"mosaic:{colours}", device="cpu")
    checks = verify(tmp_path, config, lambda line: None)
    assert not faults(checks)
    assert checks["values"].sum() > 20
    (path,) = tmp_path.glob("*/*/hirescam.csv")
    text = path.read_text()
    assert ",1," in text
    before = (tmp_path / "summary.csv").read_text()
    path.write_text(text.replace(",1,", ",0,"))
    assert before == (tmp_path / "summary.csv").read_text()
    with pytest.raises(CamkitError):
        verify(tmp_path, config, lambda line: None)


def test_a_refused_run_leaves_no_choice(colours: Path, tmp_path: Path) -> None:
    """Else a later run, with the folder's own --confidence, would take mosaics of another one."""
    mosaics(colours, tmp_path, limit=2)
    (folder,) = (path.parent for path in tmp_path.glob("*/mosaics.csv"))
    shutil.move(folder, tmp_path / "another")
    with pytest.raises(UsageError, match="confidence"):
        mosaics(colours, tmp_path, limit=2, confidence=0.5)
    assert [path.parent.name for path in tmp_path.glob("*/mosaics.csv")] == ["another"]
