"""Label files as people have them: encodings and separators; the devkit and Tiny ImageNet."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_imagenet as small
from pictures import jpeg, picture, write
from small_imagenet import DEVKIT_NUMBERS, LABELS, WNIDS, labels_of, official_name, photos

from camkit.data import DataSet, find_images
from camkit.errors import UsageError

TRUTH = "ILSVRC2012_validation_ground_truth.txt"
ROWS = (("image", "label"), (official_name(0), "zebra"), (official_name(5), '"liner, ocean liner"'))


def known(data: DataSet) -> dict[str, int]:
    return {name: label for name, label in labels_of(data).items() if label is not None}


# -- --labels FILE ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t", ", ", "; ", " ;  "])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_label_file_in_any_usual_form(encoding: str, separator: str, line_end: str, tmp_path: Path) -> None:
    """As Excel, LibreOffice, pandas and people write them."""
    small.flat(tmp_path / "val")
    text = "".join(separator.join(row) + line_end for row in ROWS)
    path = write(tmp_path / "labels.csv", text.encode(encoding))
    found = known(find_images(str(tmp_path / "val"), seed=0, labels=path))
    assert found == {official_name(0): 340, official_name(5): 628}


@pytest.mark.parametrize("heading", ["Image,Label", "label,size,image", " image , label "])
def test_the_heading_of_a_label_file(heading: str, tmp_path: Path) -> None:
    small.flat(tmp_path / "val")
    row = {"image": official_name(0), "label": "zebra", "size": "7"}
    line = ",".join(row[name.strip().lower()] for name in heading.split(","))
    path = write(tmp_path / "labels.csv", f"{heading}\n\n{line}\n")
    assert known(find_images(str(tmp_path / "val"), seed=0, labels=path)) == {official_name(0): 340}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file;class\na;b\n", "the columns image,label; no 'image'; its columns: file, class$"),
        ("image\tclass\na\tb\n".encode("utf-16"), "no 'label'; its columns: image, class$"),
        (b"\n\n", "image,label; it is empty"),
        (b"\xff\xfei", "begins as UTF-16 text and is none; save it as UTF-8"),
    ],
)
def test_what_is_there_where_a_label_file_lacks_columns(content: bytes, message: str, tmp_path: Path) -> None:
    small.flat(tmp_path / "val")
    with pytest.raises(UsageError, match=message):
        find_images(str(tmp_path / "val"), seed=0, labels=write(tmp_path / "labels.csv", content))


@pytest.mark.parametrize("name", [" leading.jpg", "trailing.jpg ", "in side.jpg"])
def test_names_with_spaces_around_them(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "val" / name if name.endswith(" ") else tmp_path / "val"
    path = folder / "x.jpg" if name.endswith(" ") else folder / name
    write(path, photos()[0])
    image = path.relative_to(tmp_path / "val").as_posix()
    labels = write(tmp_path / "labels.csv", f"image,label\n{image},zebra\n")
    assert known(find_images(str(tmp_path / "val"), seed=0, labels=labels)) == {image: 340}


def test_a_number_beside_wnids_or_names_is_imagenets(tmp_path: Path) -> None:
    """The name `crane` is that of two classes, and camkit asks for the index."""
    small.flat(tmp_path / "val")
    labels = small.label_file(tmp_path / "labels.csv", ("517", "zebra", "-", "", "", ""))
    with pytest.raises(UsageError, match="row 4: label '-' is no index"):
        find_images(str(tmp_path / "val"), seed=0, labels=labels)
    labels = small.label_file(tmp_path / "labels.csv", ("517", "zebra", "", "", "", ""))
    found = known(find_images(str(tmp_path / "val"), seed=0, labels=labels))
    assert found == {official_name(0): 517, official_name(1): 340}
    labels = small.label_file(tmp_path / "labels.csv", ("1", "zebra", "2", "3", "", ""))
    with pytest.raises(UsageError, match="from 1 to 3: they look counted from 1"):
        find_images(str(tmp_path / "val"), seed=0, labels=labels)
    members: dict[str, bytes] = {}
    for place, text in enumerate((b"1", b"zebra", b"2", b"3")):
        members |= {f"{place}.jpg": photos()[place], f"{place}.cls": text}
    path = small.make_tar(tmp_path / "a.tar", members)
    assert known(find_images(str(path), seed=0)) == {}


# -- the devkit ---------------------------------------------------------------------------------------------


def ground_truth(root: Path, lines: list[str]) -> Path:
    return write(small.devkit(root) / "ILSVRC2012_devkit_t12" / "data" / TRUTH, "\n".join(lines) + "\n")


def test_every_line_of_the_ground_truth_is_checked(tmp_path: Path) -> None:
    """Also those of images that are not there: a file with numbers from 0 need not show it in the others."""
    small.flat(tmp_path / "val")
    numbers = [str(DEVKIT_NUMBERS[wnid]) for wnid in WNIDS]
    ground_truth(tmp_path, [*numbers, "0", "3"])
    data = find_images(str(tmp_path / "val"), seed=0)
    assert known(data) == {}
    (note,) = [note for note in data.notes if note.startswith("labels not used")]
    assert "line 7: meta.mat has no class '0'; has the file been rewritten with numbers from 0?" in note
    ground_truth(tmp_path, [*numbers, "1001"])  # a node above the classes
    assert "line 7: meta.mat has no class '1001'" in " ".join(
        find_images(str(tmp_path / "val"), seed=0).notes
    )
    ground_truth(tmp_path, [*numbers, "3"])
    assert sorted(known(find_images(str(tmp_path / "val"), seed=0)).values()) == sorted(LABELS)


def test_the_devkits_numbers_are_no_indices(tmp_path: Path) -> None:
    """In a file of the user's, or a column: where the devkit lies near, it shows that they are its own."""
    small.flat(tmp_path / "val")
    numbers = [DEVKIT_NUMBERS[wnid] for wnid in WNIDS]
    labels = small.label_file(tmp_path / "labels.csv", numbers)
    find_images(str(tmp_path / "val"), seed=0, labels=labels, classes="imagenet")  # nothing shows it
    small.devkit(tmp_path)
    with pytest.raises(
        UsageError, match=r"labels\.csv: its labels are the devkit's own numbers.* 12 is class 340"
    ):
        find_images(str(tmp_path / "val"), seed=0, labels=labels, classes="imagenet")
    names = [official_name(place) for place in range(6)]
    root = small.parquet(tmp_path / "rows", labels=numbers, classes=(), paths=names)
    with pytest.raises(UsageError, match="column 'label': its labels are the devkit's own numbers"):
        find_images(str(root), seed=0, classes="imagenet")
    labels = small.label_file(tmp_path / "labels.csv", LABELS)
    data = find_images(str(tmp_path / "val"), seed=0, labels=labels, classes="imagenet")
    assert sorted(known(data).values()) == sorted(LABELS)


# -- Tiny ImageNet ------------------------------------------------------------------------------------------


def tiny_imagenet(root: Path) -> Path:
    """Its three splits; the validation split's labels stand in a file."""
    lines = ""
    for place, wnid in enumerate(WNIDS):
        write(root / "train" / wnid / "images" / f"{wnid}_{place}.JPEG", jpeg(picture(60 + place)))
        write(root / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_{place}.JPEG\t0\t10\t63\t58\n")
        write(root / "val" / "images" / f"val_{place}.JPEG", photos()[place])
        lines += f"val_{place}.JPEG\t{wnid}\t0\t32\t44\t62\n"
    write(root / "val" / "val_annotations.txt", lines)
    write(root / "test" / "images" / "test_0.JPEG", jpeg(picture(70)))
    write(root / "wnids.txt", "".join(f"{wnid}\n" for wnid in dict.fromkeys(WNIDS)))
    return root


@pytest.mark.parametrize("part", ["", "val", "val/images"])
def test_tiny_imagenets_validation_split(part: str, tmp_path: Path) -> None:
    data = find_images(str(tiny_imagenet(tmp_path) / part), seed=0)
    found = {item.id.rpartition("/")[2]: item.label for item in data.items}
    assert found == {f"val_{place}.JPEG": label for place, label in enumerate(LABELS)}
    assert (data.layout, data.labels) == ("flat", "val_annotations.txt")
    assert any("left out: test (1), training (6)" in note for note in data.notes) == (part == "")


def test_tiny_imagenets_training_split(tmp_path: Path) -> None:
    data = find_images(str(tiny_imagenet(tmp_path) / "train"), seed=0)
    assert {item.id.split("/")[0]: item.label for item in data.items} == dict(zip(WNIDS, LABELS, strict=True))
    assert data.layout == "wnid"


def test_tiny_imagenets_own_list(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path)
    data = find_images(str(root), seed=0, classes=str(root / "wnids.txt"))
    own = list(dict.fromkeys(WNIDS))
    assert known(data) == {
        f"val/images/val_{place}.JPEG": own.index(wnid) for place, wnid in enumerate(WNIDS)
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "val_9.JPEG,n02391049",
            "line 7: expected a file name, a tab and a wnid; found 'val_9.JPEG,n02391049'",
        ),
        ("val_0.JPEG\tn03673027", "line 7: 'val_0.JPEG' has another wnid further up"),
    ],
)
def test_annotations_of_another_kind_are_passed_over_and_said(
    line: str, message: str, tmp_path: Path
) -> None:
    with (tiny_imagenet(tmp_path) / "val" / "val_annotations.txt").open("a") as file:
        file.write(line)
    data = find_images(str(tmp_path), seed=0)
    assert known(data) == {}
    assert any(note.startswith("labels not used: ") and message in note for note in data.notes)
