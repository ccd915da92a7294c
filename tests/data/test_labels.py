"""Labels: what a text stands for, and where the labels of a data set come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import small_imagenet as small
from pictures import write
from small_imagenet import CLASSES, LABELS, WNIDS, labels_of, official_name, photos
from timm.data import ImageNetInfo

from camkit.data import class_name, find_images, imagenet, wnid_to_index
from camkit.errors import UsageError


def test_wnids_have_timms_indices() -> None:
    info = ImageNetInfo()
    assert len(wnid_to_index()) == 1000
    for index, wnid, name in CLASSES:
        assert wnid_to_index()[wnid] == index
        assert name is None or info.index_to_description(index) == name


def test_class_names() -> None:
    assert class_name(628, 1000) == "liner"
    assert class_name(7, 10) == "class 7"


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("0", 0),
        (" 999 ", 999),
        ("5.0", 5),
        ("007", 7),
        ("n02391049", 340),
        ("zebra", 340),
        ("Zebra", 340),
        ("ocean_liner", 628),
        ("liner, ocean liner", 628),
        ("maillot, tank suit", 639),
    ],
)
def test_what_stands_for_a_class(text: str, index: int) -> None:
    assert imagenet().index_of(text) == index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crane", r"classes 134 \(n02012849\) and 517 \(n03126707\)"),
        ("maillot", r"classes 638 \(n03710637\) and 639 \(n03710721\)"),
        ("1000", "from 0 to 999"),
        ("-1", "from 0 to 999"),
        ("n00007846", "none of ImageNet-1k's wnids"),
        ("unicorn", "no index, wnid or name"),
        ("3.5", "no index, wnid or name"),
        ("9" * 5000, "no index, wnid or name"),
    ],
)
def test_what_stands_for_no_class_or_for_two(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        imagenet().index_of(text)


def test_a_list_of_a_thousand_names_in_another_order_is_not_imagenets() -> None:
    names = [name.split(",")[0] for name in ImageNetInfo().label_descriptions()]
    with pytest.raises(UsageError, match="is the name of classes"):
        imagenet().indices_of(names[::-1])
    assert imagenet().indices_of(ImageNetInfo().label_names()[::-1]) == list(range(999, -1, -1))


# -- --labels FILE ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", [LABELS, WNIDS, ("zebra", "goldfish", "banana", "517", "n01443537", '"liner, ocean liner"')]
)
def test_a_label_file_takes_indices_wnids_and_names(labels: tuple, tmp_path: Path) -> None:
    small.flat(tmp_path / "val")
    path = small.label_file(tmp_path / "labels.csv", labels)
    found = labels_of(find_images(str(tmp_path / "val"), seed=0, labels=path, classes="imagenet"))
    assert found == {official_name(place): label for place, label in enumerate(LABELS)}


def test_a_label_file_stands_above_devkit_kaggle_and_folders(tmp_path: Path) -> None:
    small.devkit(tmp_path)
    small.kaggle_solution(tmp_path)
    other = [(label + 5) % 1000 for label in LABELS]
    path = small.label_file(tmp_path / "labels.csv", other)
    for build in (small.flat, small.wnid_folders):
        build(tmp_path / build.__name__)
        data = find_images(str(tmp_path / build.__name__), seed=0, labels=path, classes="imagenet")
        assert sorted(item.label or 0 for item in data.items) == sorted(other)
        assert data.labels == "labels.csv"


def test_a_label_file_takes_paths_where_names_are_shared(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / "photos" / folder / "x.jpg", photos()[0])
    path = write(tmp_path / "labels.csv", "image,label\na/x.jpg,n01443537\nb/x.jpg,n01484850\n")
    found = labels_of(find_images(str(tmp_path / "photos"), seed=0, labels=path))
    assert found == {"a/x.jpg": 1, "b/x.jpg": 2}
    write(path, "image,label\nx.jpg,n01443537\n")
    with pytest.raises(UsageError, match="2 images are called 'x.jpg'"):
        find_images(str(tmp_path / "photos"), seed=0, labels=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\n{0},crane\n", "row 2: label 'crane' is the name of classes"),
        ("image,label\n{0},1\n{1},1000\n", "row 3: label 1000"),
        ("image,label\n{0},1\n{0},2\n", "row 3: .*has another label further up"),
        ("name,class\n{0},1\n", "columns image,label; no 'image'"),
        ("image,label\nother.JPEG,1\n", "names none of the images"),
        ("", "columns image,label"),
    ],
)
def test_a_label_file_with_a_fault_is_refused(text: str, message: str, tmp_path: Path) -> None:
    small.flat(tmp_path / "val")
    path = write(tmp_path / "labels.csv", text.format(official_name(0), official_name(1)))
    with pytest.raises(UsageError, match=message):
        find_images(str(tmp_path / "val"), seed=0, labels=path)


def test_a_label_file_that_is_not_there(tmp_path: Path) -> None:
    small.flat(tmp_path / "val")
    with pytest.raises(UsageError, match=r"labels.csv: No such file"):
        find_images(str(tmp_path / "val"), seed=0, labels=tmp_path / "labels.csv")


def test_a_label_file_for_some_of_the_images(tmp_path: Path) -> None:
    small.flat(tmp_path / "val")
    text = f"\ufeffimage,label\r\n{official_name(2)},banana\r\n{official_name(3)},\r\nother.JPEG,3\r\n"
    data = find_images(str(tmp_path / "val"), seed=0, labels=write(tmp_path / "labels.csv", text))
    assert {name: label for name, label in labels_of(data).items() if label is not None} == {
        official_name(2): 954
    }
    assert any("5 of 6 images have no label: labels.csv gives it no label" in note for note in data.notes)
    assert any("1 rows name images that are not there" in note for note in data.notes)


# -- the devkit, Kaggle, file names: in this order ---------------------------------------------------------


def test_the_order_of_the_sources(tmp_path: Path) -> None:
    val = small.named_flat(tmp_path / "val")
    assert find_images(str(val), seed=0).labels == "the wnids in the file names"
    names = [path.stem for path in sorted(val.iterdir())]
    lines = "".join(f"{name},n02391049 1 2 3 4\n" for name in names)
    write(tmp_path / "LOC_val_solution.csv", f"ImageId,PredictionString\n{lines}")
    data = find_images(str(val), seed=0)
    assert data.labels == "LOC_val_solution.csv"
    assert {item.label for item in data.items} == {340}
    small.devkit(tmp_path)
    data = find_images(str(val), seed=0)
    assert data.labels == "ILSVRC2012_validation_ground_truth.txt"
    assert sorted(item.label or 0 for item in data.items) == sorted(LABELS)


def test_devkit_files_in_the_images_own_folder(tmp_path: Path) -> None:
    small.flat(tmp_path)
    for name, content in small.devkit_files().items():
        write(tmp_path / name, content)
    assert labels_of(find_images(str(tmp_path), seed=0))[official_name(0)] == LABELS[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("meta.mat", None, "its numbers are explained by meta.mat"),
        ("meta.mat", b"no mat file", "meta.mat .* cannot be read"),
        (
            "ILSVRC2012_validation_ground_truth.txt",
            b"12\n450\n",
            "has 2 lines, and .*00000003.JPEG is number 3",
        ),
        ("ILSVRC2012_validation_ground_truth.txt", b"5\n" * 6, "line 1: meta.mat has no class '5'"),
    ],
)
def test_a_devkit_that_does_not_fit_is_passed_over_and_said(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    small.flat(tmp_path / "val")
    path = small.devkit(tmp_path) / "ILSVRC2012_devkit_t12" / "data" / name
    path.unlink()
    if content is not None:
        write(path, content)
    data = find_images(str(tmp_path / "val"), seed=0)
    assert {item.label for item in data.items} == {None}
    (note,) = [note for note in data.notes if note.startswith("labels not used")]
    assert re.search(message, note)


def test_kaggles_solution_of_another_kind(tmp_path: Path) -> None:
    small.flat(tmp_path / "val")
    write(tmp_path / "LOC_val_solution.csv", "a,b\n1,2\n")
    data = find_images(str(tmp_path / "val"), seed=0)
    assert data.labels == ""
    assert any("no 'ImageId'" in note for note in data.notes)
