"""Which files are the images, and which label belongs to which: shards, parquet columns, copies, splits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_imagenet as small
from click.testing import CliRunner
from pictures import encode, picture, write
from small_imagenet import LABELS, WNIDS, labels_of, photos
from tiny import silent

from camkit.cli import main
from camkit.data import find_images
from camkit.errors import CamkitError, UsageError
from camkit.runs.check import check_data

MASK = encode(picture(50), "PNG")


def shard(path: Path, members: Mapping[str, bytes]) -> str:
    return str(small.make_tar(path / "shard.tar", members))


# -- which members of a shard belong together ---------------------------------------------------------------


def test_names_with_dots_have_a_label_each(tmp_path: Path) -> None:
    """`cat.1.cls` is the label of `cat.1.jpg`, not of all that begins with `cat`."""
    members = {
        "cat.1.jpg": photos()[0],
        "cat.1.cls": b"zebra",
        "cat.2.jpg": photos()[1],
        "cat.2.cls": b"liner",
    }
    found = labels_of(find_images(shard(tmp_path, members), seed=0))
    assert found == {"cat.1.jpg": 340, "cat.2.jpg": 628}


def test_a_version_in_the_name_is_no_key(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for place, wnid in enumerate(WNIDS):
        members |= {f"v1.0_{place:04d}.jpg": photos()[place], f"v1.0_{place:04d}.txt": wnid.encode()}
    members["v1.0_0006.jpg"] = photos()[0]  # without a label, and without anybody's
    found = labels_of(find_images(shard(tmp_path, members), seed=0))
    assert found == {f"v1.0_{place:04d}.jpg": label for place, label in enumerate((*LABELS, None))}


def test_a_sidecar_by_the_key_of_one_image(tmp_path: Path) -> None:
    members = {"a.photo.jpg": photos()[0], "a.cls": b"zebra", "b.jpg": photos()[1], "b.class.txt": b"liner"}
    found = labels_of(find_images(shard(tmp_path, members), seed=0))
    assert found == {"a.photo.jpg": 340, "b.jpg": 628}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"cat.1.jpg": b"1", "cat.2.jpg": b"2", "cat.cls": b"zebra"},
            r"shard\.tar: cat\.cls could be the label of cat\.1\.jpg and of cat\.2\.jpg",
        ),
        (
            {"1.jpg": b"1", "1.class.txt": b"zebra", "1.caption.txt": b"a zebra"},
            r"1\.jpg has several \.txt members, as 1\.caption\.txt",
        ),
        ({"1.jpg": b"1", "1.cls": b"zebra", "./1.cls": b"liner"}, r"two members have the name '1\.cls'"),
    ],
)
def test_labels_that_could_be_of_several_are_refused_by_name(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CamkitError, match=message):
        find_images(shard(tmp_path, members), seed=0)


MASKS = {
    "1.jpg": photos()[0], "1.seg.png": MASK, "1.cls": b"zebra", "2.jpg": photos()[1], "2.seg.png": MASK,
    "2.cls": b"liner",
}  # fmt: skip


@pytest.mark.parametrize("mask", ["1.seg.png", "1.png"])
def test_two_images_of_one_sample_are_refused_by_name(mask: str, tmp_path: Path) -> None:
    members = {"1.jpg": photos()[0], mask: MASK, "1.cls": b"zebra"}
    with pytest.raises(
        UsageError, match=rf"1\.jpg and {mask} are images of one sample.*\n--image-column jpg\|"
    ):
        find_images(shard(tmp_path, members), seed=0)


@pytest.mark.parametrize(("column", "ending"), [("jpg", "jpg"), (".JPG", "jpg"), ("seg.png", "seg.png")])
def test_the_image_column_of_shards(column: str, ending: str, tmp_path: Path) -> None:
    data = find_images(shard(tmp_path, MASKS), seed=0, image_column=column)
    assert labels_of(data) == {f"1.{ending}": 340, f"2.{ending}": 628}
    assert any("other images, left out: 2" in note for note in data.notes)


def test_an_image_column_that_shards_lack(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--image-column png: no image ends so; they end in: jpg, seg\.png"):
        find_images(shard(tmp_path, MASKS), seed=0, image_column="png")


def test_masks_without_any_label_are_asked_about_or_left_out(tmp_path: Path) -> None:
    path = shard(tmp_path, {name: data for name, data in MASKS.items() if not name.endswith("cls")})
    data = find_images(path, seed=0)
    assert any("with a further ending: 2 (1.seg.png); are they masks?" in note for note in data.notes)
    assert set(labels_of(find_images(path, seed=0, image_column="jpg"))) == {"1.jpg", "2.jpg"}


def test_a_second_photo_is_no_mask(tmp_path: Path) -> None:
    for name in ("cat.jpg", "cat.1.jpg"):
        write(tmp_path / name, photos()[0])
    assert not any("mask" in note for note in find_images(str(tmp_path), seed=0).notes)


JSONS = {
    "1.jpg": photos()[0], "1.json": b'{"category": "zebra", "cls": "crane"}', "1.txt": b"goldfish",
    "2.jpg": photos()[1], "2.json": b'{"category": "liner"}', "2.txt": b"banana",
}  # fmt: skip


@pytest.mark.parametrize(("column", "labels"), [("category", (340, 628)), ("txt", (1, 954))])
def test_the_label_column_of_shards(column: str, labels: tuple[int, int], tmp_path: Path) -> None:
    data = find_images(shard(tmp_path, JSONS), seed=0, label_column=column)
    assert labels_of(data) == {"1.jpg": labels[0], "2.jpg": labels[1]}


def test_a_label_column_that_shards_lack(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--label-column kind: in .json there is no kind, but category, cls"):
        find_images(shard(tmp_path, JSONS), seed=0, label_column="kind")


# -- columns of parquet files -------------------------------------------------------------------------------


def parquet(path: Path, **columns: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def declared(path: Path, features: Mapping[str, Mapping[str, object]], **columns: list) -> str:
    """As Hugging Face's library writes it, which declares what the columns are."""
    kept = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(kept), path)
    return str(path)


IMAGES = [photos()[0], photos()[1]]
NAMES = ["zebra", "liner"]


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_two_columns_of_images_are_not_guessed_between(kind: str, tmp_path: Path) -> None:
    images = {"mask": [MASK, MASK], "photo": IMAGES}
    if kind == "struct":
        images = {name: [{"bytes": one, "path": None} for one in data] for name, data in images.items()}
    path = parquet(tmp_path / "val.parquet", **images, label=NAMES)
    with pytest.raises(UsageError, match="images in several columns, mask, photo: name one .*--image-column"):
        find_images(path, seed=0)
    data = find_images(path, seed=0, image_column="photo")
    assert {item.source.read_bytes(): item.label for item in data.items} == {IMAGES[0]: 340, IMAGES[1]: 628}


def test_a_binary_id_is_no_image(tmp_path: Path) -> None:
    path = parquet(tmp_path / "val.parquet", id=[b"\x01\x02", b"\x01\x03"], image=IMAGES, label=NAMES)
    assert {item.source.column for item in find_images(path, seed=0).items} == {"image"}  # type: ignore[union-attr]


def test_an_image_column_whose_first_images_are_damaged(tmp_path: Path) -> None:
    path = parquet(tmp_path / "val.parquet", image=[b"no image", None, *IMAGES])
    assert len(find_images(path, seed=0).items) == 4
    path = parquet(tmp_path / "bad.parquet", image=[b"no image"] * 10)
    with pytest.raises(
        CamkitError, match="no column of images; its columns: image; --image-column says which"
    ):
        find_images(path, seed=0)
    assert len(find_images(path, seed=0, image_column="image").items) == 10


def test_columns_that_are_not_there_or_hold_none(tmp_path: Path) -> None:
    path = parquet(tmp_path / "val.parquet", image=IMAGES, label=NAMES)
    with pytest.raises(UsageError, match=r"--image-column photo: .* has the columns image, label"):
        find_images(path, seed=0, image_column="photo")
    with pytest.raises(UsageError, match="--image-column label: it holds string, no image files"):
        find_images(path, seed=0, image_column="label")
    with pytest.raises(UsageError, match=r"--label-column class: .* has the columns image, label"):
        find_images(path, seed=0, label_column="class")


def test_two_columns_of_labels_are_not_guessed_between(tmp_path: Path) -> None:
    path = parquet(tmp_path / "val.parquet", image=IMAGES, label=["goldfish", "banana"], target=NAMES)
    data = find_images(path, seed=0)
    assert set(labels_of(data).values()) == {None}
    assert any("labels not used: label, target could all be labels" in note for note in data.notes)
    named = find_images(path, seed=0, label_column="target")
    assert [label for _, label in sorted(labels_of(named).items())] == [340, 628]
    assert named.labels == "the column 'target'"


def test_what_is_declared_to_be_labels_stands_above_what_is_called_so(tmp_path: Path) -> None:
    features = {"species": {"_type": "ClassLabel", "names": ["liner", "zebra"]}}
    path = declared(
        tmp_path / "val.parquet", features, image=IMAGES, species=[1, 0], label=["goldfish", "banana"]
    )
    data = find_images(path, seed=0)
    assert [label for _, label in sorted(labels_of(data).items())] == [340, 628]
    assert any("the column 'species' gives the labels, not label" in note for note in data.notes)


def test_a_number_outside_the_files_own_list_is_no_index(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["liner", "zebra"]}}
    path = declared(tmp_path / "val.parquet", features, image=IMAGES, label=[1, 340])
    data = find_images(path, seed=0)
    assert [label for _, label in sorted(labels_of(data).items())] == [340, None]
    assert list(data.unlabelled.values()) == ["label '340' is no place in its list of 2 classes"]


def test_a_label_that_pandas_left_out(tmp_path: Path) -> None:
    path = parquet(tmp_path / "val.parquet", image=IMAGES, label=[340.0, float("nan")])
    data = find_images(path, seed=0, classes="imagenet")
    assert [label for _, label in sorted(labels_of(data).items())] == [340, None]
    assert list(data.unlabelled.values()) == ["it comes without a label"]


def test_a_file_without_rows_is_passed_over(tmp_path: Path) -> None:
    parquet(tmp_path / "validation-0.parquet", image=IMAGES, label=NAMES)
    table = pq.read_table(tmp_path / "validation-0.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "validation-1.parquet")
    assert len(find_images(str(tmp_path), seed=0).items) == 2


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_columns_are_for_layouts_that_have_some(option: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--\w+-column: for the layouts parquet or webdataset; this is wnid"
    ):
        find_images(str(small.wnid_folders(tmp_path)), seed=0, **{option: "jpg"})


# -- what is passed over ------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["@eaDir", ".thumbnails", "__MACOSX", "Thumbs"])
def test_copies_that_systems_keep_are_passed_over_counted_and_named(folder: str, tmp_path: Path) -> None:
    root = small.wnid_folders(tmp_path)
    write(root / WNIDS[0] / folder / "a.JPEG" / "SYNOPHOTO_THUMB_M.jpg", photos()[0])
    write(root / WNIDS[1] / folder / "b.jpg", photos()[1])
    data = find_images(str(root), seed=0)
    assert len(data.items) == len(LABELS)
    assert f"passed over, in folders of copies: 2 {folder}" in data.notes


def test_copies_in_an_archive_are_passed_over_too(tmp_path: Path) -> None:
    names = {"a.jpg": photos()[0], "@eaDir/a.jpg": photos()[0], ".hidden/b.jpg": photos()[1], "c.heic": b"x"}
    data = find_images(shard(tmp_path, names), seed=0)
    assert set(labels_of(data)) == {"a.jpg"}
    assert "passed over, in folders of copies: 1 @eaDir" in data.notes
    assert any("not read, by their endings: 1 .heic" in note for note in data.notes)


def test_a_copy_without_a_label_contradicts_nothing(tmp_path: Path) -> None:
    root = small.wnid_folders(tmp_path)
    for name in ("a copy.JPEG", "z copy.JPEG"):
        write(root / name, photos()[0])
    write(root / WNIDS[2] / "another label.JPEG", photos()[0])
    found = {(fault.image, fault.kind): fault.reason for fault in check_data(str(root), say=silent).faults}
    (first,) = [item.id for item in find_images(str(root), 0).items if item.label == LABELS[0]]
    other = f"{WNIDS[2]}/another label.JPEG"
    assert set(found) == {
        ("a copy.JPEG", "no label"),
        ("z copy.JPEG", "no label"),
        ("z copy.JPEG", "duplicate"),
        (first, "duplicate"),
        (other, "contradiction"),
    }
    assert found[other, "contradiction"] == f"the same bytes as {first}, with another label: 954, not 340"


def test_endings_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    root = small.wnid_folders(tmp_path)
    for name in ("a.HEIC", "b.heic", f"{WNIDS[0]}/c.jpe", "d", ".hidden.heic", "README.md", "labels.csv"):
        write(root / name, b"x")
    (note,) = [note for note in find_images(str(root), seed=0).notes if note.startswith("not read")]
    assert note.startswith(
        "not read, by their endings: 2 .heic, 1 .jpe, 1 without an ending (read are .jpeg "
    )


def test_what_is_said_of_names_does_not_write_into_the_terminal(tmp_path: Path) -> None:
    for name in ("\x1b[31mant", "bee\n"):
        write(tmp_path / name / "a.jpg", photos()[0])
    write(tmp_path / "x.\x1b[31m", b"x")
    notes = find_images(str(tmp_path), seed=0, classes="folders").notes
    assert not any("\x1b" in note or "\n" in note for note in notes)
    assert any("0 \\x1b[31mant, 1 bee\\n" in note for note in notes)


def test_only_endings_that_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a.HEIC", b"x")
    with pytest.raises(UsageError, match="no images found(.|\n)*1 .heic"):
        find_images(str(tmp_path), seed=0)


# -- splits -------------------------------------------------------------------------------------------------


def imagenet(root: Path) -> Path:
    write(root / "train" / "n01440764" / "a.JPEG", photos()[0])
    small.wnid_folders(root / "val")
    return root


def test_another_version_of_the_validation_split_is_left_out_and_said(tmp_path: Path) -> None:
    root = imagenet(tmp_path)
    small.wnid_folders(root / "val_blurred")
    data = find_images(str(root), seed=0)
    assert {item.id.split("/")[0] for item in data.items} == {"val"}
    assert "of several splits, validation is taken; left out: training (1), val_blurred/ (6)" in data.notes
    (root / "train" / "n01440764" / "a.JPEG").unlink()
    data = find_images(str(root), seed=0)
    assert {item.id.split("/")[0] for item in data.items} == {"val"}
    assert "validation is taken; left out: val_blurred/ (6)" in data.notes


def test_a_version_alone_is_the_data_set(tmp_path: Path) -> None:
    small.wnid_folders(tmp_path / "val_blurred")
    assert len(find_images(str(tmp_path), seed=0).items) == 6


@pytest.mark.parametrize("link", ["test", "a/test"])
def test_a_link_does_not_stand_for_the_folder_that_it_shows(link: str, tmp_path: Path) -> None:
    """Folders are listed by name, and `test`, a link to `val`, is seen before it."""
    root = imagenet(tmp_path)
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(root / "val", target_is_directory=True)
    data = find_images(str(root), seed=0)
    assert {item.id.split("/")[0] for item in data.items} == {"val"}
    assert len(data.items) == 6
    assert f"{link}: a link to a folder that is read already" in data.notes


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    small.wnid_folders(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(find_images(str(tmp_path / "data"), seed=0).items) == 6
    (tmp_path / "root").symlink_to(tmp_path / "data", target_is_directory=True)
    assert len(find_images(str(tmp_path / "root"), seed=0).items) == 6


def test_the_command_line_takes_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path / "val.parquet", mask=[MASK, MASK], photo=IMAGES, label=[3, 4], target=NAMES)
    words = ["data", "check", path, "--image-column", "photo", "--label-column", "target", "--workers", "0"]
    result = CliRunner().invoke(main, [*words, "--format", "json"])
    assert json.loads(result.stdout)["facts"]["labels"] == "the column 'target'", result.output
    assert json.loads(result.stdout)["facts"]["duplicates"] == 0
