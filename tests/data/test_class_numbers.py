"""Bare numbers as labels: of which list, and whether they are its indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import small_imagenet as small
from small_imagenet import LABELS, labels_of, number_folders, official_name, photos, write

from camkit.data import find_images
from camkit.errors import UsageError


def in_parquet(root: Path, numbers: Sequence[int]) -> dict:
    return {"data": str(small.parquet(root, labels=numbers, classes=(), paths=[None] * 6))}


def in_shards(root: Path, numbers: Sequence[int]) -> dict:
    return {"data": str(small.shards(root, numbers=numbers))}


def in_folders(root: Path, numbers: Sequence[int]) -> dict:
    return {"data": str(number_folders(root, numbers))}


def in_csv(root: Path, numbers: Sequence[int]) -> dict:
    return {"data": str(small.flat(root / "val")), "labels": small.label_file(root / "labels.csv", numbers)}


SOURCES = [in_parquet, in_shards, in_folders, in_csv]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("numbers", [(0, 1, 2, 3, 4, 5), (50, 52, 55, 60, 61, 69), (7,) * 6])
def test_some_numbers_are_indices_only_where_the_list_is_named(
    source: Callable, numbers: tuple[int, ...], tmp_path: Path
) -> None:
    found = source(tmp_path, numbers)
    said = "nothing says that they are ImageNet's indices; --classes imagenet says so"
    if source is in_csv:
        with pytest.raises(UsageError, match=said):
            find_images(seed=0, **found)
    else:
        data = find_images(seed=0, **found)
        assert set(labels_of(data).values()) == {None}
        assert any(note.startswith("labels not used: ") and said in note for note in data.notes)
        assert not any("none found" in note for note in data.notes)
    named = find_images(seed=0, classes="imagenet", **found)
    assert sorted(item.label or 0 for item in named.items) == sorted(numbers)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("numbers", "looks"),
    [
        ((1, 2, 3, 4, 5, 6), "from 1 to 6: they look counted from 1, and indices begin at 0"),
        (
            (12, 450, 3, 999, 77, 1000),
            "from 3 to 1000: they look, as those of ImageNet's devkit are, counted",
        ),
        ((0, 450, 3, 999, 77, 1000), "1000 classes, with indices to 999; .* one for the background"),
        ((0, 450, 3, 999, 77, 21840), "ImageNet-1k has 1000 classes, so they are another list's"),
    ],
)
def test_numbers_of_another_kind_are_refused_though_the_list_is_named(
    source: Callable, numbers: tuple[int, ...], looks: str, tmp_path: Path
) -> None:
    found = source(tmp_path, numbers)
    with pytest.raises(UsageError, match=looks):
        find_images(seed=0, classes="imagenet", **found)
    if source is not in_csv:
        data = find_images(seed=0, **found)
        assert set(labels_of(data).values()) == {None}


@pytest.mark.parametrize("source", SOURCES)
def test_numbers_of_a_list_of_ones_own(source: Callable, tmp_path: Path) -> None:
    names = write(tmp_path / "names.txt", "".join(f"class {letter}\n" for letter in "abcdefg"))
    found = source(tmp_path / "data", (0, 6, 3, 2, 1, 5))
    data = find_images(seed=0, classes=str(names), **found)
    assert sorted(item.label or 0 for item in data.items) == [0, 1, 2, 3, 5, 6]
    found = source(tmp_path / "more", (7, 6, 3, 2, 1, 5))
    with pytest.raises(UsageError, match="look counted from 1"):
        find_images(seed=0, classes=str(names), **found)


def test_all_numbers_of_the_list_are_its_indices(tmp_path: Path) -> None:
    """All rows of a label file count, also those of images that are not there."""
    small.flat(tmp_path / "val")
    rows = "".join(f"{official_name(place)},{(place + 340) % 1000}\n" for place in range(1000))
    labels = write(tmp_path / "labels.csv", f"image,label\n{rows}")
    data = find_images(str(tmp_path / "val"), seed=0, labels=labels)
    assert labels_of(data) == {official_name(place): 340 + place for place in range(6)}
    labels = write(tmp_path / "labels.csv", f"image,label\n{rows}more.JPEG,1000\n")
    with pytest.raises(UsageError, match="one for the background"):
        find_images(str(tmp_path / "val"), seed=0, labels=labels)


def test_a_thousand_folders_from_1(tmp_path: Path) -> None:
    """Under the layout that is named, too."""
    root = number_folders(tmp_path, range(1, 1001))
    assert {item.label for item in find_images(str(root), seed=0).items} == {None}
    with pytest.raises(UsageError, match="from 1 to 1000: they look, as those of ImageNet's devkit are"):
        find_images(str(root), seed=0, layout="imagenet-v2")


@pytest.mark.parametrize("form", ["{:03d}", "{:04d}"])
def test_zero_padded_folders_are_numbers(form: str, tmp_path: Path) -> None:
    data = find_images(str(number_folders(tmp_path / "all", range(1000), form)), seed=0)
    assert data.layout == "imagenet-v2"
    assert all(int(item.id.split("/")[0]) == item.label for item in data.items)
    root = number_folders(tmp_path / "some", (0, 7, 340), form)
    assert any("0 to 340, and nothing says" in note for note in find_images(str(root), seed=0).notes)
    named = find_images(str(root), seed=0, classes="imagenet")
    assert sorted(item.label or 0 for item in named.items) == [0, 7, 340]


def test_folders_of_years_are_no_classes(tmp_path: Path) -> None:
    data = find_images(str(number_folders(tmp_path, (2019, 2020))), seed=0)
    assert data.layout == "photos"
    assert any("labels: none found" in note for note in data.notes)


@pytest.mark.parametrize("text", ["340.0", " 340 ", "0340", "340."])
def test_whole_floats_are_numbers(text: str, tmp_path: Path) -> None:
    members = {
        "a.jpg": photos()[0],
        "a.cls": text.encode(),
        "b.jpg": photos()[1],
        "b.json": b'{"label": 1.0}',
    }
    path = str(small.make_tar(tmp_path / "a.tar", members))
    assert labels_of(find_images(path, seed=0, classes="imagenet")) == {"a.jpg": 340, "b.jpg": 1}
    assert any("numbers go from 1 to 340" in note for note in find_images(path, seed=0).notes)


def test_the_first_reason_why_labels_were_not_understood_is_said(tmp_path: Path) -> None:
    members = {"a.jpg": photos()[0], "b.jpg": photos()[1], "b.txt": b"unicorn", "c.jpg": photos()[2]}
    data = find_images(str(small.make_tar(tmp_path / "a.tar", members)), seed=0)
    (note,) = [note for note in data.notes if "label" in note.split(":")[0]]
    assert note.startswith("labels not used: the shards' ")
    assert "label 'unicorn' is no index, wnid or name of a class of ImageNet-1k" in note
    write(tmp_path / "in21k" / "n00007846" / "a.jpg", photos()[0])
    notes = find_images(str(tmp_path / "in21k"), seed=0).notes
    assert any(
        "labels not used: the wnid folders: n00007846 is no class of ImageNet-1k" in note for note in notes
    )


def test_numbers_unlike_the_wnids_in_the_names_are_refused(tmp_path: Path) -> None:
    """Hugging Face's rows have names with wnids, whoever numbered the rows."""
    root = small.parquet(tmp_path / "a", labels=[label + 1 for label in LABELS], classes=())
    with pytest.raises(UsageError, match=r"6 of 6 differ from the wnids .*has 341; n02391049 is class 340\)"):
        find_images(str(root), seed=0, classes="imagenet")
    root = small.parquet(tmp_path / "b", labels=[5, *LABELS[1:]], classes=())  # one that somebody corrected
    assert len({item.label for item in find_images(str(root), seed=0, classes="imagenet").items}) == 5
