"""Boxes and masks: a white square on a black photo is found again where the region says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from crops import PAPER, SMALL
from pictures import encode, write, write_photo
from PIL import Image
from tiny import run

from camkit.data import DataSet, find_images
from camkit.data.annotations import with_regions
from camkit.data.pixels import ORIENTATION, Preprocess
from camkit.data.regions import Boxes, MaskFile, Region, Tile
from camkit.errors import CamkitError, UsageError
from camkit.network.loading import load_preprocess
from camkit.network.models import find_row
from camkit.results.folder import read_scores

SIZE = (300, 200)
BOX = (90, 40, 169, 129)  # edges included


def square(orientation: int = 1) -> bytes:
    photo = Image.new("RGB", SIZE)
    photo.paste((255, 255, 255), (BOX[0], BOX[1], BOX[2] + 1, BOX[3] + 1))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(photo, "PNG", exif=exif)


def mask(folder: Path) -> MaskFile:
    grey = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    grey[BOX[1] : BOX[3] + 1, BOX[0] : BOX[2] + 1] = 255
    Image.fromarray(grey).save(folder / "mask.png")
    return MaskFile(folder / "mask.png")


@pytest.mark.parametrize("orient", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("preprocess", [PAPER, SMALL], ids=["paper", "small"])
def test_the_square_is_found_again(
    tmp_path: Path, preprocess: Preprocess, orientation: int, orient: bool
) -> None:
    """Through every orientation, the resize and the crop, of a photo that is not square."""
    view = replace(preprocess, orient=orient)
    data = square(orientation)
    white = view.pixels(data)[0] >= 128
    assert 0.05 < white.float().mean() < 0.5
    for region in (Boxes((BOX,)), mask(tmp_path)):
        assert torch.equal(view.region(region, data), white)


def test_the_square_is_turned() -> None:
    """What the test above compares differs between orientations: 3 is upside down, 1 is not."""
    view = replace(PAPER, orient=True)
    upright, turned = (view.region(Boxes((BOX,)), square(orientation)) for orientation in (1, 3))
    assert not torch.equal(upright, turned)
    assert torch.equal(upright, turned.rot90(2))


def test_through_a_native_transform() -> None:
    view = load_preprocess(find_row("timm/camkit_tiny"), timm.create_model("camkit_tiny"), "native")
    data = square()
    assert torch.equal(view.region(Boxes((BOX,)), data), view.pixels(data)[0] >= 128)


def drawn(region: Region, size: tuple[int, int] = SIZE) -> np.ndarray:
    found = np.asarray(region.draw(size))
    assert set(np.unique(found)) <= {0, 255}
    return found == 255


def test_the_edges_of_a_box_are_inside() -> None:
    found = drawn(Boxes((BOX, (0, 0, 0, 0))))
    assert found.sum() == 80 * 90 + 1
    assert found[40, 90]
    assert found[129, 169]
    assert found[0, 0]


def test_a_box_of_a_photo_of_another_size() -> None:
    """Drawn on half the size: it covers twice as many pixels on each side."""
    half = Boxes(((45, 20, 84, 64),), (150, 100))
    assert np.array_equal(drawn(half), drawn(Boxes((BOX,))))


def test_a_box_of_the_upright_photo_is_not_stretched_onto_the_stored_one() -> None:
    with pytest.raises(CamkitError, match="drawn on a photo of 500x375, and this one is stored as 375x500"):
        Boxes((BOX,), (500, 375)).draw((375, 500))
    assert Boxes(((0, 0, 9, 9),), (100, 75)).draw((1000, 748)).getbbox() == (0, 0, 100, 100)


def test_a_box_up_to_the_last_pixel_counted_from_one() -> None:
    assert np.array_equal(drawn(Boxes(((200, 100, 300, 200),))), drawn(Boxes(((200, 100, 299, 199),))))


@pytest.mark.parametrize("box", [(10, 10, 5, 20), (-1, 0, 5, 5), (0, 0, 301, 5), (0, 0, 5, float("nan"))])
def test_a_box_that_does_not_lie_in_the_photo(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(CamkitError, match="does not lie in the photo of 300x200"):
        Boxes((box,)).draw(SIZE)


def test_a_region_beside_the_crop() -> None:
    with pytest.raises(CamkitError, match="nothing of the region lies in the crop"):
        PAPER.region(Boxes(((0, 0, 5, 5),)), square())


@pytest.mark.parametrize("number", range(4))
def test_a_tile(number: int) -> None:
    found = drawn(Tile(2, number), (8, 6))
    assert found.sum() == 12
    assert found[3 * (number // 2), 4 * (number % 2)]


INSIDE = np.array([[0, 1, 0], [1, 1, 0]], dtype=bool)


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(Image.fromarray(np.uint8(255 * INSIDE)), id="0 and 255"),
        pytest.param(Image.fromarray(np.uint8(INSIDE)), id="0 and 1"),
        pytest.param(Image.fromarray(INSIDE), id="one bit"),
        pytest.param(Image.fromarray(np.uint8(255 * INSIDE)).convert("RGB"), id="grey as RGB"),
        pytest.param(Image.fromarray(np.uint8(255 * INSIDE)).convert("LA"), id="grey and opaque"),
        pytest.param(Image.fromarray(np.uint8(255 * INSIDE)).convert("RGBA"), id="RGB and opaque"),
        pytest.param(Image.fromarray(np.uint8(INSIDE)).convert("P"), id="palette"),
        pytest.param(
            Image.fromarray(np.stack([INSIDE * 256 % 256, INSIDE * 1, INSIDE * 0], axis=2).astype(np.uint8)),
            id="ImageNet-S, segment 256",
        ),
        pytest.param(
            Image.fromarray(
                np.where(INSIDE[..., None], [5, 0, 0], [1000 % 256, 1000 // 256, 0]).astype(np.uint8)
            ),
            id="ImageNet-S, 1000 ignored",
        ),
    ],
)
def test_encodings_of_a_mask(tmp_path: Path, encoded: Image.Image) -> None:
    encoded.save(tmp_path / "mask.png")
    assert np.array_equal(drawn(MaskFile(tmp_path / "mask.png"), (3, 2)), INSIDE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no image", "the mask mask.png cannot be read"),
        (b"", "the mask mask.png: empty: 0 bytes"),
        (encode(Image.new("L", (3, 2)), "PNG"), "the mask mask.png is empty"),
        (encode(Image.new("L", (2, 3), 255), "PNG"), "the mask mask.png has 2x3 pixels, the photo 3x2"),
        (encode(Image.new("L", (90, 90), 255), "PNG")[:70], "the mask mask.png cannot be read"),
        (None, "the mask mask.png cannot be read"),
    ],
)
def test_faulty_masks(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        write(tmp_path / "mask.png", content)
    with pytest.raises(CamkitError, match=said):
        MaskFile(tmp_path / "mask.png").draw((3, 2))


NAMES = (
    "n01440764/ILSVRC2012_val_00000001.JPEG",
    "n01440764/ILSVRC2012_val_00000002.JPEG",
    "n02391049/x.y.JPEG",
)
ONE, TWO = (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.5, 8.0)


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    for number, name in enumerate(NAMES):
        write_photo(tmp_path / "data" / name, seed=number)
    return find_images(str(tmp_path / "data"), seed=0)


def regions(data: DataSet, path: Path) -> tuple[dict[str, Region | None], tuple[str, ...]]:
    """Regions by image, and the lines that are new."""
    found = with_regions(data, path)
    assert [item.id for item in found.items] == [item.id for item in data.items]
    return {item.id: item.region for item in found.items}, found.notes[len(data.notes) :]


@pytest.mark.parametrize("image", [str, lambda name: name.partition("/")[2], lambda name: Path(name).stem])
def test_a_table_of_boxes(data: DataSet, tmp_path: Path, image: Callable[[str], str]) -> None:
    """Several rows are several boxes; images go by their path, their name, or without the ending."""
    rows = [f"{image(NAMES[0])},1,2,3,4", f"{image(NAMES[0])},5,6,7.5,8", f"{image(NAMES[2])},5,6,7.5,8"]
    path = write(tmp_path / "boxes.csv", "\n".join(["\ufeffimage, x1,y1,x2,y2", *rows]))
    found, notes = regions(data, path)
    assert found == {NAMES[0]: Boxes((ONE, TWO)), NAMES[1]: None, NAMES[2]: Boxes((TWO,))}
    assert notes == ("regions: of 2 images, from boxes.csv; 1 have none",)


def test_kaggles_table(data: DataSet, tmp_path: Path) -> None:
    text = "ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 1 2 3 4 n01440764 5 6 7.5 8 \nx.y,\n"
    found, notes = regions(data, write(tmp_path / "LOC_val_solution.csv", text))
    assert found == {NAMES[0]: None, NAMES[1]: Boxes((ONE, TWO)), NAMES[2]: None}
    assert notes == ("regions: of 1 images, from LOC_val_solution.csv; 2 have none",)


def annotation(
    *boxes: str, size: str = "<size><width>500</width><height>375</height><depth>3</depth></size>"
) -> str:
    return f"<annotation><folder>val</folder>{size}{''.join(boxes)}</annotation>"


XML_BOX = "<object><name>n01440764</name><bndbox>{}</bndbox></object>".format(
    "".join(
        f"<{side}>{value:g}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), ONE, strict=True)
    )
)


def test_annotations_in_xml(data: DataSet, tmp_path: Path) -> None:
    for name, text in {
        "val/ILSVRC2012_val_00000001.xml": annotation(XML_BOX, XML_BOX),
        "val/ILSVRC2012_val_00000002.xml": annotation(XML_BOX, size=""),
        "val/x.y.xml": annotation(),
    }.items():
        write(tmp_path / "xml" / name, text)
    found, notes = regions(data, tmp_path / "xml")
    assert found == {NAMES[0]: Boxes((ONE, ONE), (500, 375)), NAMES[1]: Boxes((ONE,)), NAMES[2]: None}
    assert notes == (
        "xml: files that cannot be read: 1, the first val/x.y.xml: no <object> with a <bndbox>",
        "regions: of 2 images, from xml; 1 have none",
    )


@pytest.mark.parametrize("text", ["<annotation>", "", annotation(XML_BOX.replace("<xmax>3</xmax>", ""))])
def test_broken_annotations_lose_nothing(data: DataSet, tmp_path: Path, text: str) -> None:
    write(tmp_path / "xml" / "ILSVRC2012_val_00000001.xml", text)
    write(tmp_path / "xml" / "ILSVRC2012_val_00000002.xml", annotation(XML_BOX))
    found, notes = regions(data, tmp_path / "xml")
    assert [name for name, region in found.items() if region] == [NAMES[1]]
    assert notes[0].startswith("xml: files that cannot be read: 1, the first ILSVRC2012_val_00000001.xml: ")


def test_tables_of_any_usual_kind(data: DataSet, tmp_path: Path) -> None:
    text = f"Image;X1;Y1;X2;Y2\r\n{NAMES[2]};1;2;3;4\r\n"
    found, _ = regions(data, write(tmp_path / "boxes.csv", text.encode("utf-16")))
    assert found[NAMES[2]] == Boxes((ONE,))


def test_a_file_name_that_several_images_have_needs_the_path(tmp_path: Path) -> None:
    for number, folder in enumerate(("n01440764", "n02391049")):
        write_photo(tmp_path / "data" / folder / "1.JPEG", seed=number)
    data = find_images(str(tmp_path / "data"), seed=0)
    found, notes = regions(data, write(tmp_path / "a.csv", "image,x1,y1,x2,y2\nn01440764/1.JPEG,1,2,3,4\n"))
    assert found == {"n01440764/1.JPEG": Boxes((ONE,)), "n02391049/1.JPEG": None}
    assert notes == ("regions: of 1 images, from a.csv; 1 have none",)
    for name in ("1.JPEG", "1", "val/1"):
        path = write(tmp_path / "b.csv", f"image,x1,y1,x2,y2\n{name},1,2,3,4\n")
        with pytest.raises(UsageError, match=f"2 images are called '{name}': give the path, as 'n0"):
            with_regions(data, path)


def test_names_of_other_photos_are_no_images(tmp_path: Path) -> None:
    """Of more images than there are: by paths, none goes to a photo of that file name in another folder."""
    for number, folder in enumerate(("n01440764", "n02391049")):
        write_photo(tmp_path / "data" / folder / f"{number}.JPEG", seed=number)
    data = find_images(str(tmp_path / "data"), seed=0)
    for key in ("n01440764/0", "n01443537/0", "n01443537/1"):
        write(tmp_path / "masks" / f"{key}.png", b"")
    found, _ = regions(data, tmp_path / "masks")
    assert found == {
        "n01440764/0.JPEG": MaskFile(tmp_path / "masks" / "n01440764" / "0.png"),
        "n02391049/1.JPEG": None,
    }
    (tmp_path / "masks" / "n01440764" / "0.png").unlink()
    write(tmp_path / "masks" / "n01484850" / "0.png", b"")
    with pytest.raises(UsageError, match="'n01443537/0' and 'n01484850/0' could both be 'n01440764/0.JPEG'"):
        with_regions(data, tmp_path / "masks")


def test_boxes_of_other_classes_are_no_part_of_the_region(data: DataSet, tmp_path: Path) -> None:
    """n01440764 and n02391049 are classes of the list; what a person is it does not know."""
    one, two, three = (Path(name).stem for name in NAMES)
    rows = [
        f"{one},n01440764 1 2 3 4 n02391049 5 6 7.5 8",
        f"{two},n02391049 5 6 7.5 8",
        f"{three},person 1 2 3 4",
    ]
    text = "\n".join(["ImageId,PredictionString", *rows])
    found, notes = regions(data, write(tmp_path / "boxes.csv", text))
    assert found == {NAMES[0]: Boxes((ONE,)), NAMES[1]: None, NAMES[2]: Boxes((ONE,))}
    assert notes[0] == f"boxes.csv: images whose boxes are all of other classes: 1, as {NAMES[1]}"
    person = XML_BOX.replace("n01440764", "person").replace("<xmax>3", "<xmax>300")
    write(tmp_path / "xml" / f"{one}.xml", annotation(XML_BOX, person))
    assert regions(data, tmp_path / "xml")[0][NAMES[0]] == Boxes((ONE,), (500, 375))


def test_masks_lie_as_the_photos_do(data: DataSet, tmp_path: Path) -> None:
    """A photo's own class folder comes first, where two have a mask of that name."""
    for folder in ("n01440764", "n02391049"):
        write(tmp_path / "masks" / folder / "x.y.png", b"")
    found, _ = regions(data, tmp_path / "masks")
    assert found[NAMES[2]] == MaskFile(tmp_path / "masks" / "n02391049" / "x.y.png")


def test_boxes_that_are_none_lose_nothing(data: DataSet, tmp_path: Path) -> None:
    """Of an image with one that cannot be read, the others would be a part of its region."""
    rows = ["x.y.JPEG,1,2,3,4", "x.y.JPEG,1,two,3,4", "ILSVRC2012_val_00000001,,,,", "x.y.JPEG,1,2"]
    rows += ["ILSVRC2012_val_00000002,1,2,3,4"]
    path = write(tmp_path / "boxes.csv", "\n".join(["image,x1,y1,x2,y2", *rows]))
    found, notes = regions(data, path)
    assert found == {NAMES[0]: None, NAMES[1]: Boxes((ONE,)), NAMES[2]: None}
    assert notes[0] == (
        "boxes.csv: images with a box that cannot be read, which are left without: 2, the first 'x.y.JPEG' "
        "(1,two,3,4)"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "image,left,top\na,1,2\n",
            "expected a CSV file with the columns image,x1,y1,x2,y2; no 'x1'; its columns: image, left, top",
        ),
        ("", "it is empty"),
        ("image,x1,y1,x2,y2\nother,1,2,3,4\n", "names none of the images: it has 'other', they are like"),
        ("image,x1,y1,x2,y2\n", "names none of the images$"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "expected a CSV file with the columns"),
    ],
)
def test_tables_that_are_refused(data: DataSet, tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        with_regions(data, write(tmp_path / "boxes.csv", text))


def test_paths_that_are_refused(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        with_regions(data, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \.xml and no \.png files there"):
        with_regions(data, tmp_path / "empty")


def test_the_fingerprint_is_of_the_regions_and_not_of_their_place(data: DataSet, tmp_path: Path) -> None:
    def boxes(name: str, sides: str) -> str:
        path = write(tmp_path / name, f"image,x1,y1,x2,y2\nx.y,{sides}\n")
        return with_regions(data, path).regions

    assert boxes("a.csv", "1,2,3,4") == boxes("b.csv", "1,2,3,4.0")
    assert boxes("a.csv", "1,2,3,4") != boxes("b.csv", "1,2,3,5")

    def masks(folder: str, content: bytes) -> str:
        write(tmp_path / folder / "x.y.png", content)
        return with_regions(data, tmp_path / folder).regions

    assert masks("one", b"12") == masks("two", b"34")
    assert masks("three", b"123") != masks("one", b"12")


def energies(out: Path) -> pd.Series:
    (table,) = out.glob("*/*/gradcam.csv")
    return read_scores(table)["energy"]


def test_a_run_says_what_is_wrong_with_a_region_and_scores_all_else(photos: Path, tmp_path: Path) -> None:
    """Six photos of 96 x 80: a mask, an empty one, a broken one, one of another size, and none of two."""
    good = np.zeros((80, 96), dtype=np.uint8)
    good[20:60, 30:70] = 255
    folder = tmp_path / "masks"
    write(folder / "photo_0.png", encode(Image.fromarray(good), "PNG"))
    write(folder / "photo_1.png", encode(Image.new("L", (96, 80)), "PNG"))
    write(folder / "photo_2.png", b"no image")
    write(folder / "photo_3.png", encode(Image.new("L", (80, 96), 255), "PNG"))
    lines = run(
        photos, tmp_path / "out", method=("gradcam", "region"), metrics=("localisation",), regions=folder,
        batch_size=4,
    )  # fmt: skip
    for said in (
        "regions: of 4 images, from masks; 2 have none",
        "photo_1.png: the mask photo_1.png is empty: no localisation",
        "photo_2.png: the mask photo_2.png cannot be read: it is no image",
        "photo_3.png: the mask photo_3.png has 80x96 pixels, the photo 96x80: no localisation",
    ):
        assert sum(line.startswith(said) for line in lines) == 1, lines
    energy = energies(tmp_path / "out")
    assert len(energy) == 6
    assert list(energy.dropna().index) == ["photo_0.png"]


def test_another_class_than_lies_there_has_no_region(tmp_path: Path) -> None:
    """The regions are of the labels: of class 5 nobody says where it is."""
    for number in range(2):
        write_photo(tmp_path / "data" / "n01440764" / f"{number}.png", seed=number)
    path = write(tmp_path / "boxes.csv", "image,x1,y1,x2,y2\n0,20,20,70,60\n1,20,20,70,60\n")
    for target, known in (("label", 2), ("5", 0)):
        out = tmp_path / target
        run(
            tmp_path / "data",
            out,
            method=("gradcam",),
            metrics=("localisation",),
            regions=path,
            target=target,
        )
        assert energies(out).count() == known
