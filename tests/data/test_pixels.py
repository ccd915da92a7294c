"""Odd pictures: what each becomes, or the line that says why it cannot be read."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encode, jpeg, picture, png, refuse, write
from PIL import Image, ImageChops

from camkit.data.batches import Batch, batches
from camkit.data.items import make_items
from camkit.data.pixels import PAPER_CROP, Preprocess, decode, read_file
from camkit.data.sources import Source
from camkit.entries import IMAGENET_MEAN, IMAGENET_STD
from camkit.errors import CamkitError

PAPER = Preprocess("paper", PAPER_CROP, IMAGENET_MEAN, IMAGENET_STD)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def read(*sources: Source) -> Batch:
    """One batch, as the loop gets it."""
    items = make_items([(f"image {place}", source) for place, source in enumerate(sources)], labels={})
    (batch,) = batches(items, PAPER, batch_size=len(items), workers=0)
    return batch


def reason(source: Source) -> str:
    ((_, found),) = read(source).errors
    return found


# -- pictures that are read --------------------------------------------------------------------------------


def test_greyscale() -> None:
    grey = picture(0).convert("L")
    found = pixels(decode(encode(grey, "PNG")))
    assert (found == np.asarray(grey)[..., None]).all()


def test_cmyk_jpeg_has_the_colours_of_its_rgb_twin() -> None:
    """ImageNet's validation set has them; Adobe's are stored inverted."""
    plain = Image.new("RGB", (32, 32), (200, 60, 20))
    content = jpeg(plain.convert("CMYK"))
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    assert np.abs(pixels(decode(content)) - (200, 60, 20)).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = pixels(decode(encode(Image.fromarray(deep), kind)))
    assert (found == np.round(deep / 257)[..., None]).all()


def test_sixteen_bit_colour() -> None:
    """PIL keeps the upper byte of 16-bit RGB."""
    rows = b"".join(b"\0" + struct.pack(">HHH", 0xC8FF, 0x3C00, 0x1480) * 4 for _ in range(4))
    content = png(4, 4, rows, depth=16, colour=2)
    assert (pixels(decode(content)) == (0xC8, 0x3C, 0x14)).all()


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_palette_with_transparency_keeps_its_colours(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    content = encode(image, "PNG", transparency=transparency)
    found = pixels(decode(content))
    assert found.tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


def test_transparency_is_dropped() -> None:
    image = picture(1)
    image.putalpha(Image.new("L", image.size, 7))
    assert (pixels(decode(encode(image, "PNG"))) == np.asarray(picture(1))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_unless_asked_for(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(2, (40, 30))
    content = encode(stored, "PNG", exif=exif)
    assert (pixels(decode(content)) == np.asarray(stored)).all()
    turns = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_270],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_90],
    }
    expected = stored
    for turn in turns[orientation]:
        expected = expected.transpose(turn)
    assert ImageChops.difference(decode(content, orient=True), expected).getbbox() is None


def test_orientation_belongs_to_the_preprocessing() -> None:
    turned = Preprocess("paper", PAPER_CROP, IMAGENET_MEAN, IMAGENET_STD, orient=True)
    exif = Image.Exif()
    exif[0x0112] = 3
    content = jpeg(picture(3), exif=exif)
    assert torch.equal(turned.pixels(content), PAPER_CROP(decode(content, orient=True)))
    assert not torch.equal(turned.pixels(content), PAPER.pixels(content))
    assert turned.describe() != PAPER.describe()


def test_wrong_extension(tmp_path: Path) -> None:
    path = write(tmp_path / "photo.png", jpeg(picture(4)))
    assert (pixels(decode(read_file(path))) == np.asarray(Image.open(io.BytesIO(jpeg(picture(4)))))).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (5000, 7)])
def test_small_and_narrow_images_are_cropped(size: tuple[int, int]) -> None:
    crop = PAPER.pixels(encode(Image.new("RGB", size, (10, 200, 30)), "PNG"))
    assert tuple(crop.shape) == (3, 224, 224)
    assert (crop == torch.tensor([10, 200, 30])[:, None, None]).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "PPM"])
def test_other_formats(kind: str) -> None:
    flat = Image.new("RGB", (16, 16), (255, 0, 0))
    assert np.abs(pixels(decode(encode(flat, kind))) - (255, 0, 0)).max() <= 2


# -- pictures that are not: each a line, none a traceback ----------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated(kind: str, tmp_path: Path) -> None:
    content = encode(picture(5, (200, 150)), kind)
    found = reason(write(tmp_path / "a.jpg", content[: len(content) // 2]))
    assert found.startswith("cannot be read: ")
    assert "\n" not in found


def test_zero_bytes(tmp_path: Path) -> None:
    assert reason(write(tmp_path / "a.jpg", b"")) == "empty: 0 bytes"


@pytest.mark.parametrize(
    "content",
    [b"<html>404 Not Found</html>", b"\xff\xd8\xff", b"\0" * 500, os.urandom(99)],
    ids=["html", "header", "zeros", "noise"],
)
def test_no_image(content: bytes, tmp_path: Path) -> None:
    assert reason(write(tmp_path / "a.jpg", content)).startswith("cannot be read: ")


def test_decompression_bomb(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", png(20_000, 20_000, rows=b""))
    assert path.stat().st_size < 1000
    assert reason(path).startswith("too large: Image size (400000000 pixels) exceeds limit of ")


@pytest.mark.parametrize(("width", "height"), [(1, 20_000), (20_000, 1)])
def test_a_strip_would_fill_the_memory_when_its_short_side_is_256(
    width: int, height: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.png", png(width, height, (b"\0" + b"\0" * width) * height))
    assert reason(path).startswith(f"too narrow: {width}x{height}, ")


def test_floating_point_pixels_have_no_known_range() -> None:
    content = encode(Image.fromarray(np.random.default_rng(0).random((8, 8), dtype=np.float32)), "TIFF")
    with pytest.raises(CamkitError, match="floating-point"):
        decode(content)


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jpg", jpeg(picture(6)))
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser reads everything
        refuse(path, monkeypatch)
    assert reason(path) == "cannot be read: Permission denied"


def test_broken_links(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "b.jpg")
    assert reason(tmp_path / "a.jpg") == "cannot be read: No such file or directory"
    assert reason(tmp_path / "b.jpg") == "cannot be read: Too many levels of symbolic links"


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """Reading from a pipe would wait for ever, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    (tmp_path / "c.jpg").mkdir()
    for name in "abc":
        assert reason(tmp_path / f"{name}.jpg") == "no regular file"


def test_a_bad_file_leaves_its_neighbours_as_they_are(tmp_path: Path) -> None:
    good = [write(tmp_path / f"{seed}.jpg", jpeg(picture(seed))) for seed in (0, 1)]
    bad = write(tmp_path / "bad.jpg", jpeg(picture(7))[:300])
    batch = read(good[0], bad, good[1])
    assert [item.id for item in batch.items] == ["image 0", "image 2"]
    assert [item.id for item, _ in batch.errors] == ["image 1"]
    assert batch.pixels is not None
    for place, path in enumerate(good):
        assert torch.equal(batch.pixels[place], PAPER.pixels(path.read_bytes()))
