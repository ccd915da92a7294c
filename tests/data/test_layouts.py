"""Every layout, built small: it is found by looking, and the same photos get the same labels in all."""

from __future__ import annotations

import csv
import json
import pickle
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import small_imagenet as small
from click.testing import CliRunner
from pictures import encode, jpeg, picture, write
from places import ROOT
from small_imagenet import LABELS, WNIDS, official_name, photos

from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import LAYOUTS, DataSet, find_images, wnid_to_index
from camkit.data.sources import read_bytes
from camkit.errors import CamkitError, UsageError
from camkit.runs.bench import bench


def _with(build: Callable[[Path], Path], beside: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Images in `val`, and what gives their labels beside it."""

    def both(root: Path) -> Path:
        beside(root)
        return build(root / "val")

    return both


def _devkit_tar_gz(root: Path) -> Path:
    files = {f"ILSVRC2012_devkit_t12/data/{name}": data for name, data in small.devkit_files().items()}
    small.make_tar(root / "ILSVRC2012_devkit_t12.tar.gz", files, mode="w:gz")
    return root


def _imagenette(root: Path) -> Path:
    """Train and validation side by side; the photos are the validation split."""
    write(root / "train" / "n01440764" / "n01440764_1.JPEG", jpeg(picture(99)))
    small.wnid_folders(root / "val")
    return root


def _kaggle(root: Path) -> Path:
    small.kaggle_solution(root)
    return small.flat(root / "ILSVRC" / "Data" / "CLS-LOC" / "val")


def _tar_of_folders(root: Path) -> Path:
    members = {f"./val/{wnid}/{place}.JPEG": photos()[place] for place, wnid in enumerate(WNIDS)}
    return small.make_tar(root / "val.tar", members)


def _tar_beside_devkit(root: Path) -> Path:
    small.devkit(root)
    return small.official_tar(root / "ILSVRC2012_img_val.tar")


def _one_parquet_file(root: Path) -> Path:
    import pyarrow.parquet as pq

    table = pq.read_table(small.parquet(root) / "data")
    path = root / "validation.parquet"
    pq.write_table(table, path)
    return path


# name -> (layout, builder): all that have labels.
LABELLED: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "wnid folders": ("wnid", small.wnid_folders),
    "imagenette": ("wnid", _imagenette),
    "flat, devkit": ("flat", _with(small.flat, small.devkit)),
    "flat, packed devkit": ("flat", _with(small.flat, _devkit_tar_gz)),
    "flat, kaggle": ("flat", _kaggle),
    "flat, file names": ("flat", small.named_flat),
    "tar, devkit": ("tar", _tar_beside_devkit),
    "tar of wnid folders": ("tar", _tar_of_folders),
    "parquet": ("parquet", small.parquet),
    "parquet, one file": ("parquet", _one_parquet_file),
    "webdataset, cls": ("webdataset", small.shards),
    "webdataset, json": ("webdataset", lambda root: small.shards(root, "json")),
    "webdataset, txt": ("webdataset", lambda root: small.shards(root, "txt")),
    "imagenet-v2": ("imagenet-v2", small.index_folders),
}
# Those whose labels are bare numbers: whose they are has to be said.
BARE = {"webdataset, cls": "imagenet", "webdataset, json": "imagenet"}


def by_content(data: DataSet) -> dict[bytes, int | None]:
    return {read_bytes(item.source): item.label for item in data.items}


@pytest.mark.parametrize("case", LABELLED)
def test_the_same_photos_have_the_same_labels_in_every_layout(case: str, tmp_path: Path) -> None:
    layout, build = LABELLED[case]
    data = find_images(str(build(tmp_path)), seed=0, classes=BARE.get(case))
    found = by_content(data)
    assert data.layout == layout
    assert {photo: found.get(photo) for photo in photos()} == dict(zip(photos(), LABELS, strict=True))
    assert any(line.startswith("labels: from ") for line in data.notes)
    assert len({item.id for item in data.items}) == len(data.items)


def test_every_layout_of_the_table_has_a_case() -> None:
    assert {layout for layout, _ in LABELLED.values()} | {"photos", "folders"} == set(LAYOUTS)


@pytest.mark.parametrize("case", LABELLED)
def test_sources_survive_the_way_into_a_worker(case: str, tmp_path: Path) -> None:
    data = find_images(str(LABELLED[case][1](tmp_path)), seed=0)
    for item in pickle.loads(pickle.dumps(data.items[:8])):
        assert item in data.items
        assert read_bytes(item.source)


@pytest.mark.parametrize("case", [case for case in LABELLED if case != "imagenet-v2"])
def test_the_same_scores_in_every_layout(
    case: str, tmp_path: Path, wnid_scores: dict[bytes, list[float]]
) -> None:
    data = LABELLED[case][1](tmp_path / "data")
    found = scores(str(data), tmp_path / "out", classes=BARE.get(case))
    assert found.keys() == wnid_scores.keys()
    for photo, row in found.items():
        assert row == pytest.approx(wnid_scores[photo], abs=2e-5)


@pytest.fixture(scope="module")
def wnid_scores(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, list[float]]:
    root = tmp_path_factory.mktemp("wnid")
    return scores(str(small.wnid_folders(root / "data")), root / "out")


def scores(data: str, out: Path, **settings: object) -> dict[bytes, list[float]]:
    """Photo -> its row of a small run: label, target, probability and scores."""
    config = RunConfig(
        model=("timm/test_resnet",),
        method=("gradcam",),
        weights="random",
        metrics=("adcc",),
        target="label",
        data=data,
        batch_size=3,
        out=out,
        device="cpu",
        **settings,  # type: ignore[arg-type]
    )
    bench(config, say=lambda line: None)
    sources = {item.id: item.source for item in find_images(data, 0).items}
    with (out / "timm__test_resnet" / "conv-rest" / "gradcam.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("label", "target", "probability", "average_drop", "coherency", "complexity", "adcc")
    return {read_bytes(sources[row["image"]]): [float(row[name]) for name in names] for row in rows}


def test_a_run_with_workers_reads_archives(tmp_path: Path, wnid_scores: dict[bytes, list[float]]) -> None:
    data = small.parquet(tmp_path / "data")
    for photo, row in scores(str(data), tmp_path / "out", workers=2).items():
        assert row == pytest.approx(wnid_scores[photo], abs=2e-5)


def test_three_class_folders_keep_imagenets_indices(tmp_path: Path) -> None:
    for wnid in ("n02391049", "n01443537", "n07753592"):
        write(tmp_path / wnid / "a.jpg", photos()[0])
    data = find_images(str(tmp_path), seed=0)
    assert {item.id: item.label for item in data.items} == {
        "n02391049/a.jpg": 340,
        "n01443537/a.jpg": 1,
        "n07753592/a.jpg": 954,
    }


def test_two_hundred_class_folders_keep_imagenets_indices(tmp_path: Path) -> None:
    """ImageNet-A and -R."""
    chosen = dict(list(wnid_to_index().items())[3::5])
    assert len(chosen) == 200
    for wnid in chosen:
        write(tmp_path / wnid / "0.01_bird _ coral reef_0.5.jpg", photos()[0])
    write(tmp_path / "README.txt", "about")
    data = find_images(str(tmp_path), seed=0)
    assert {item.id.split("/")[0]: item.label for item in data.items} == chosen


def test_wnids_that_imagenet_1k_lacks_and_images_outside_get_no_label(tmp_path: Path) -> None:
    small.wnid_folders(tmp_path)
    write(tmp_path / "n00007846" / "person.jpg", photos()[0])
    write(tmp_path / "stray.jpg", photos()[0])
    data = find_images(str(tmp_path), seed=0)
    assert [item.label for item in data.items if item.id in ("n00007846/person.jpg", "stray.jpg")] == [
        None
    ] * 2
    assert "n00007846 is no class of ImageNet-1k" in data.unlabelled["n00007846/person.jpg"]
    assert "outside" in data.unlabelled["stray.jpg"]
    assert sum("have no label" in note for note in data.notes) == 2


def test_flat_without_labels_is_allowed_and_said_once(tmp_path: Path) -> None:
    data = find_images(str(small.flat(tmp_path)), seed=0)
    assert (data.layout, data.labels) == ("flat", "")
    assert [item.label for item in data.items] == [None] * len(LABELS)
    assert sum("labels: none" in note for note in data.notes) == 1


@pytest.mark.parametrize("target", ["label", "correct"])
def test_without_labels_their_targets_are_refused(target: str, tmp_path: Path) -> None:
    small.flat(tmp_path / "data")
    config = RunConfig(
        model=("timm/test_resnet",),
        weights="random",
        data=str(tmp_path / "data"),
        target=target,
        out=tmp_path,
    )
    with pytest.raises(UsageError, match=f"--target {target} needs labels"):
        bench(config, say=lambda line: None)


def test_photos_in_folders_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "cats" / "a.jpg", photos()[0])
    write(tmp_path / "dogs" / "b.PNG", encode(picture(1), "PNG"))
    write(tmp_path / "dogs" / "._b.PNG", "what macOS leaves beside a file")
    write(tmp_path / ".thumbnails" / "a.jpg", photos()[0])
    data = find_images(str(tmp_path), seed=0)
    assert data.layout == "photos"
    assert {item.id: (item.label, item.group) for item in data.items} == {
        "cats/a.jpg": (None, "cats"),
        "dogs/b.PNG": (None, "dogs"),
    }


def test_number_folders_are_classes_only_when_all_are_there_or_named(tmp_path: Path) -> None:
    for index in (0, 7, 340):
        write(tmp_path / str(index) / "a.jpeg", photos()[0])
    looked = find_images(str(tmp_path), seed=0)
    assert looked.layout == "photos"
    assert {item.label for item in looked.items} == {None}
    assert any("--classes imagenet" in note for note in looked.notes)
    named = find_images(str(tmp_path), seed=0, layout="imagenet-v2")
    assert {item.id: item.label for item in named.items} == {"0/a.jpeg": 0, "7/a.jpeg": 7, "340/a.jpeg": 340}


def test_nine_hundred_and_ninety_nine_number_folders_are_not_all(tmp_path: Path) -> None:
    root = small.index_folders(tmp_path)
    (root / "999" / "0.jpeg").unlink()
    assert find_images(str(root), seed=0).layout == "photos"


# -- parquet ----------------------------------------------------------------------------------------------


def test_parquet_ids_are_the_file_names_in_the_rows(tmp_path: Path) -> None:
    data = find_images(str(small.parquet(tmp_path)), seed=0)
    assert min(item.id for item in data.items) == f"ILSVRC2012_val_00000001_{WNIDS[0]}.JPEG"


@pytest.mark.parametrize("path", [None, "same.jpg", "../../{}.jpg", "/etc/{}.jpg"])
def test_parquet_rows_without_good_names_are_numbered(path: str | None, tmp_path: Path) -> None:
    names = [None if path is None else path.format(place) for place in range(len(LABELS))]
    data = find_images(str(small.parquet(tmp_path, paths=names)), seed=0)
    assert sorted(item.id for item in data.items)[3] == "data/validation-00001-of-00002.parquet/000000"


def test_parquet_class_names_stand_above_their_numbers(tmp_path: Path) -> None:
    """Imagenette's numbers are 0 to 9; its list of names says what they mean."""
    small.parquet(tmp_path, labels=[0, 1, 2, 2, 1, 0], classes=["tench", "chain saw", "n03888257"])
    found = by_content(find_images(str(tmp_path), seed=0))
    assert [found[photo] for photo in photos()] == [0, 491, 701, 701, 491, 0]


def test_parquet_class_names_that_two_classes_share_are_refused(tmp_path: Path) -> None:
    small.parquet(tmp_path, labels=[0, 1, 0, 1, 0, 1], classes=["crane", "tench"])
    data = find_images(str(tmp_path), seed=0)
    assert {item.label for item in data.items} == {None}
    assert any("'crane' is the name of classes 134" in note for note in data.notes)


def test_imagenets_own_list_of_names_is_known_in_spite_of_its_cranes(tmp_path: Path) -> None:
    from timm.data import ImageNetInfo

    names = ImageNetInfo().label_descriptions()
    names[517] = "crane2"
    small.parquet(tmp_path, classes=names)
    found = by_content(find_images(str(tmp_path), seed=0))
    assert [found[photo] for photo in photos()] == list(LABELS)


@pytest.mark.parametrize("build", [small.parquet, small.shards])
def test_numbers_from_zero_without_a_gap_are_not_taken_for_imagenets(
    build: Callable[..., Path], tmp_path: Path
) -> None:
    numbers = [0, 1, 2, 3, 1, 0]
    if build is small.shards:
        root = small.shards(tmp_path, numbers=numbers)
    else:
        root = small.parquet(tmp_path, labels=numbers, classes=(), paths=[None] * 6)
    looked = find_images(str(root), seed=0)
    assert {item.label for item in looked.items} == {None}
    assert any("--classes imagenet" in note for note in looked.notes)
    named = by_content(find_images(str(root), seed=0, classes="imagenet"))
    assert [named[photo] for photo in photos()] == numbers


def test_a_hidden_label_is_no_label(tmp_path: Path) -> None:
    """HF's test split has -1 everywhere."""
    data = find_images(str(small.parquet(tmp_path, labels=[-1] * 6)), seed=0)
    assert {item.label for item in data.items} == {None}


def test_without_pyarrow_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CamkitError, match=r"pip install \"camkit\[parquet\]\""):
        find_images(str(tmp_path), seed=0)


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    write(tmp_path / "validation.parquet", b"PAR1 and then nothing")
    with pytest.raises(CamkitError, match="cannot be read as a parquet file"):
        find_images(str(tmp_path), seed=0)


# -- what is refused, and what is left out ----------------------------------------------------------------


def test_the_training_split_is_left_out_and_said(tmp_path: Path) -> None:
    data = find_images(str(_imagenette(tmp_path)), seed=0)
    assert {item.id.split("/")[0] for item in data.items} == {"val"}
    assert any("left out: training" in note for note in data.notes)


def test_several_splits_without_validation_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train" / "n01440764" / "a.jpg", photos()[0])
    write(tmp_path / "test" / "n01440764" / "a.jpg", photos()[0])
    with pytest.raises(UsageError, match="several splits \\(test, training\\)"):
        find_images(str(tmp_path), seed=0)
    assert len(find_images(str(tmp_path), seed=0, layout="photos").items) == 2


def test_photos_beside_an_archive_are_not_guessed_at(tmp_path: Path) -> None:
    small.flat(tmp_path)
    small.official_tar(tmp_path / "ILSVRC2012_img_val.tar")
    with pytest.raises(UsageError, match="6 images and 1 tar archives: name what you mean"):
        find_images(str(tmp_path), seed=0)
    assert find_images(str(tmp_path), seed=0, layout="tar").layout == "tar"
    assert find_images(str(tmp_path), seed=0, layout="flat").layout == "flat"


def test_an_unknown_layout_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'parquet'"):
        find_images(str(small.flat(tmp_path)), seed=0, layout="parket")


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"flat", "photos"}))
def test_a_layout_that_is_not_there_is_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--layout {layout} is .*holds 6 images"):
        find_images(str(small.flat(tmp_path)), seed=0, layout=layout)


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        find_images(str(tmp_path / "nowhere"), seed=0)
    with pytest.raises(UsageError, match="no images found"):
        find_images(str(tmp_path), seed=0)
    write(tmp_path / "notes.txt", "text")
    with pytest.raises(UsageError, match="expected a folder, a .tar or a .parquet file"):
        find_images(str(tmp_path / "notes.txt"), seed=0)
    with pytest.raises(UsageError, match="gunzip"):
        find_images(str(write(tmp_path / "val.tar.gz", b"\x1f\x8b")), seed=0)


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path) -> None:
    small.wnid_folders(tmp_path)
    (tmp_path / "n02391049" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(find_images(str(tmp_path), seed=0).items) == len(LABELS)


def test_nothing_of_the_users_is_changed(tmp_path: Path) -> None:
    """torchvision's ImageNet class moves files; camkit only reads."""
    for number, (_, build) in enumerate(LABELLED.values()):
        if build is small.index_folders:
            continue
        root = tmp_path / str(number)
        path = build(root)
        before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
        find_images(str(path), seed=0)
        assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_the_fingerprint_knows_labels_and_sizes_and_not_the_place(tmp_path: Path) -> None:
    first = find_images(str(small.named_flat(tmp_path / "a")), seed=0)
    again = find_images(str(small.named_flat(tmp_path / "b")), seed=7)
    assert first.fingerprint == again.fingerprint
    labels = write(tmp_path / "labels.csv", f"image,label\n{first.items[0].id},n01491361\n")
    other = find_images(str(tmp_path / "a"), seed=0, labels=labels)
    assert other.fingerprint != first.fingerprint
    write(tmp_path / "b" / first.items[0].id, photos()[0] + b"more")
    assert find_images(str(tmp_path / "b"), seed=0).fingerprint != first.fingerprint


def test_a_tar_beside_nothing_has_names_and_no_labels(tmp_path: Path) -> None:
    data = find_images(str(small.official_tar(tmp_path / "ILSVRC2012_img_val.tar")), seed=0)
    assert (data.layout, data.labels) == ("tar", "")
    assert sorted(item.id for item in data.items) == [official_name(place) for place in range(6)]
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar") as tar:
        assert {item.source.offset for item in data.items} == {member.offset_data for member in tar}  # type: ignore[union-attr]


def test_the_command_line_says_what_it_found(tmp_path: Path) -> None:
    command = ["data", "check", str(_kaggle(tmp_path)), "--format", "json", "--workers", "0"]
    result = CliRunner().invoke(main, command)
    assert json.loads(result.stdout)["facts"]["labels"] == "LOC_val_solution.csv"
    assert "layout flat" in result.stderr


def test_the_documentation_and_the_help_name_every_layout() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    assert sorted(re.findall(r"^### `(.*)`:", text, flags=re.MULTILINE)) == sorted(LAYOUTS)
    for command in (["bench"], ["data", "check"], ["data", "sample"]):
        words = CliRunner().invoke(main, [*command, "--help"]).output
        assert all(name in words for name in LAYOUTS)
