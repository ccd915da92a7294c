"""Archives are untrusted: nothing in one reaches outside it, and a damaged one is not half a data set."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import small_imagenet as small
from small_imagenet import photos

from camkit.data import archives, find_images, sources
from camkit.data.archives import list_tar, safe_name
from camkit.data.sources import read_bytes
from camkit.data.subset import take
from camkit.errors import CamkitError


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if member.isreg():
                member.size = member.size or len(photos()[0])
                tar.addfile(member, io.BytesIO(photos()[0].ljust(member.size, b"\0")))
            else:
                tar.addfile(member)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "name",
    [
        "../out.jpg",
        "/etc/out.jpg",
        "a/../../out.jpg",
        "a/..",
        "C:/out.jpg",
        "..\\out.jpg",
        "\\\\host\\out.jpg",
        "//host/share/out.jpg",
    ],
)
def test_names_that_lead_outside_are_refused(name: str, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", tarfile.TarInfo("good.jpg"), tarfile.TarInfo(name))
    with pytest.raises(CamkitError, match=r"a\.tar is refused: the member name .* leads outside"):
        find_images(str(path), seed=0)


def test_names_that_stay_inside() -> None:
    assert safe_name("./val/./a..b.jpg") == "val/a..b.jpg"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", tarfile.TarInfo("good.jpg"), special("x.jpg", kind, "/etc/passwd"))
    with pytest.raises(CamkitError, match="'x.jpg' is a link or a device"):
        find_images(str(path), seed=0)


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", tarfile.TarInfo("x.jpg"), tarfile.TarInfo("./x.jpg"))
    with pytest.raises(CamkitError, match="two members have the name 'x.jpg'"):
        find_images(str(path), seed=0)


@pytest.mark.parametrize("keep", [700, 1500, 512 * 20, -2000, -20 * 512])
def test_a_cut_off_archive_is_refused(keep: int, tmp_path: Path) -> None:
    path = small.official_tar(tmp_path / "a.tar")
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[:keep])
    with pytest.raises(CamkitError, match=r"a\.tar (is refused|cannot be read)"):
        find_images(str(path), seed=0)


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    path = small.official_tar(tmp_path / "a.tar")
    third = list(list_tar(path).images)[2][1]
    content = bytearray(path.read_bytes())
    content[third.offset - 512] ^= 0xFF  # type: ignore[union-attr]
    path.write_bytes(content)
    with pytest.raises(CamkitError, match="damaged or cut off at byte"):
        find_images(str(path), seed=0)


def test_a_member_that_claims_more_than_there_is(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x.jpg")
    member.size = 2**40
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf() + b"\0" * 2048)
    with pytest.raises(CamkitError, match="reaches beyond the archive's end"):
        find_images(str(path), seed=0)


def test_archives_that_grow_without_bound_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small.official_tar(tmp_path / "a.tar")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 5)
    with pytest.raises(CamkitError, match="more than 5 members"):
        find_images(str(path), seed=0)


def test_a_huge_image_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (item, *_) = find_images(str(small.official_tar(tmp_path / "a.tar")), seed=0).items
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    with pytest.raises(CamkitError, match="too large: .* the limit is 100"):
        read_bytes(item.source)


def test_huge_row_groups_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from camkit.data import parquet

    monkeypatch.setattr(parquet, "MAX_GROUP", 1000)
    with pytest.raises(CamkitError, match="is refused: row group 0 claims"):
        find_images(str(small.parquet(tmp_path)), seed=0)


def test_huge_sidecars_are_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.make_tar(
        tmp_path / "a.tar", {"a.jpg": photos()[0], "a.cls": b"340", "b.jpg": photos()[1], "b.cls": b"3"}
    )
    monkeypatch.setattr(archives, "MAX_SIDECAR", 2)
    data = find_images(str(tmp_path / "a.tar"), seed=0, classes="imagenet")
    assert {item.id: item.label for item in data.items} == {"a.jpg": None, "b.jpg": 3}


@pytest.mark.parametrize(
    ("sidecar", "label"),
    [
        (b'{"label": 340}', 340),
        (b'{"wnid": "n02391049", "label": 5}', 340),
        (b'{"caption": "a zebra"}', None),
        (b"[1, 2]", None),
        (b"{", None),
        (b"\xff\xfe", None),
    ],
)
def test_what_a_json_sidecar_says(sidecar: bytes, label: int | None, tmp_path: Path) -> None:
    members = {"a.jpg": photos()[0], "a.json": sidecar, "b.jpg": photos()[1], "b.json": b'{"label": 954}'}
    data = find_images(str(small.make_tar(tmp_path / "a.tar", members)), seed=0, classes="imagenet")
    assert data.layout == "webdataset"
    assert {item.id: item.label for item in data.items} == {"a.jpg": label, "b.jpg": 954}


def test_keys_go_to_the_first_dot(tmp_path: Path) -> None:
    members = {"a.b/x.y.jpg": photos()[0], "a.b/x.cls": b"340", "a.b/z.jpg": photos()[1], "a.b/z.cls": b"1"}
    data = find_images(str(small.make_tar(tmp_path / "a.tar", members)), seed=0, classes="imagenet")
    assert {item.id: item.label for item in data.items} == {"a.b/x.y.jpg": 340, "a.b/z.jpg": 1}


def test_shards_of_the_same_names_are_told_apart(tmp_path: Path) -> None:
    for shard in "01":
        small.make_tar(tmp_path / f"val-{shard}.tar", {"x.jpg": photos()[0], "x.cls": b"340"})
    assert {item.id for item in find_images(str(tmp_path), seed=0).items} == {
        "val-0.tar/x.jpg",
        "val-1.tar/x.jpg",
    }


def test_only_validation_shards_are_taken(tmp_path: Path) -> None:
    small.shards(tmp_path)
    small.make_tar(tmp_path / "imagenet1k-train-0000.tar", {"x.jpg": photos()[0], "x.cls": b"340"})
    data = find_images(str(tmp_path), seed=0)
    assert len(data.items) == 6
    assert any("left out: training" in note for note in data.notes)


def test_an_archive_that_changes_while_the_run_goes_on(tmp_path: Path) -> None:
    path = small.official_tar(tmp_path / "a.tar")
    last = max(find_images(str(path), seed=0).items, key=lambda item: item.id)
    os.truncate(path, last.source.offset + 10)  # type: ignore[union-attr]
    with pytest.raises(CamkitError, match="ends before the image does"):
        read_bytes(last.source)


@pytest.mark.parametrize("build", [small.parquet, small.shards])
def test_nothing_is_unpacked(
    build: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "data")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TMPDIR", str(here))
    before = sorted(tmp_path.rglob("*"))
    for item in find_images(str(tmp_path / "data"), seed=0).items:
        read_bytes(item.source)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sample_of_an_archive_stays_in_its_folder(tmp_path: Path) -> None:
    members = {"a/x.jpg": photos()[0], "a/x.cls": b"340", "b/x.jpg": photos()[1], "b/x.cls": b"340"}
    data = find_images(str(small.make_tar(tmp_path / "a.tar", members)), seed=0, classes="imagenet")
    take(data, 5, tmp_path / "out", seed=0, copy=False, say=lambda line: None)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"a.tar", "out/n02391049/a__x.jpg", "out/n02391049/b__x.jpg"}
