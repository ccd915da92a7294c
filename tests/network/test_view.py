"""`--size`, `--mean`, `--std`, grey images: what a network of one's own is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from pictures import jpeg, picture, write
from PIL import Image
from tiny import seeded
from torch import nn

from camkit.cli import main
from camkit.config import RunConfig
from camkit.data.pixels import PAPER_CROP, crop_to
from camkit.entries import MODELS, model
from camkit.errors import UsageError
from camkit.network.loading import load_model
from camkit.network.view import View, image_size


def view(**options: str) -> View:
    return View.of(RunConfig(model=("resnet18",), **options))


def test_what_the_options_say() -> None:
    assert view() == View(None, None, None)
    found = view(size="96x128", mean="0.5, 0.4,0.3", std="0.25")
    assert found == View((96, 128), (0.5, 0.4, 0.3), (0.25,))
    assert image_size("64") == (64, 64)


@pytest.mark.parametrize("size", ["", "0x5", "12x", "axb", "1x2x3", "-4", "123456"])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(UsageError, match=r"expected HxW in pixels, as 224x320"):
        view(size=size)


@pytest.mark.parametrize(
    ("name", "text"), [("mean", "0.5,0.5"), ("mean", "2"), ("std", "0"), ("std", "a,b,c")]
)
def test_numbers_that_are_none(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"--{name} {text}: expected three numbers from 0 to 1"):
        view(**{name: text})


def test_a_square_is_the_papers_crop() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    assert torch.equal(crop_to(224)(photo), PAPER_CROP(photo))
    assert torch.equal(crop_to((224, 224))(photo), PAPER_CROP(photo))


@pytest.mark.parametrize("sides", [(300, 400), (400, 300), (100, 700)])
def test_a_rectangle_is_covered_in_proportion(sides: tuple[int, int]) -> None:
    """A photo whose pixels say where they lie: columns in red, rows in green."""
    rows, columns = sides
    y, x = np.mgrid[0:rows, 0:columns]
    ramp = np.stack([255 * x / (columns - 1), 255 * y / (rows - 1), 0 * x], axis=2).round().astype(np.uint8)
    found = crop_to((112, 224))(Image.fromarray(ramp)).float()
    assert found.shape == (3, 112, 224)
    scale = max(128 / rows, 256 / columns)
    across = (found[0, :, -1] - found[0, :, 0]).mean() / 255
    down = (found[1, -1] - found[1, 0]).mean() / 255
    assert across == pytest.approx(223 / (scale * columns), rel=0.02)
    assert down == pytest.approx(111 / (scale * rows), rel=0.02)
    middle = found[:2, 55:57, 111:113].mean(dim=(1, 2))
    torch.testing.assert_close(middle, torch.tensor([127.5, 127.5]), atol=2, rtol=0)


@pytest.mark.parametrize("name", ["paper", "native"])
def test_a_size_stands_in_place_of_the_crop(name: str) -> None:
    loaded = load_model("timm/test_resnet", "random", name, view=View((96, 128), (0.5, 0.4, 0.3), None))
    assert loaded.preprocess.shape == (3, 96, 128)
    assert loaded.preprocess.mean == (0.5, 0.4, 0.3)
    assert loaded.preprocess.std == (0.5, 0.5, 0.5)  # its own


def test_a_vit_takes_another_size() -> None:
    found = load_model("timm/test_vit", "random", view=View((96, 128))).model
    with torch.no_grad():
        assert found(torch.zeros(1, 3, 96, 128)).shape == (1, 1000)


def test_a_grey_network_sees_grey_photos(tmp_path: Path) -> None:
    grey = seeded(lambda: timm.create_model("test_resnet", in_chans=1, num_classes=3))
    torch.save(grey.state_dict(), tmp_path / "grey.pth")
    preprocess = load_model("timm/test_resnet", str(tmp_path / "grey.pth"), view=View((64, 96))).preprocess
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8))
    expected = crop_to((64, 96))(photo.convert("L"))
    assert torch.equal(preprocess.crop(photo), expected)
    assert len(preprocess.mean) == len(preprocess.std) == 1
    images = preprocess.normalise(expected[None])
    torch.testing.assert_close(images, (expected[None] / 255 - preprocess.mean[0]) / preprocess.std[0])
    assert preprocess.rgb(images).shape == (1, 3, 64, 96)
    with pytest.raises(
        UsageError, match=r"--mean has 3 numbers; timm/test_resnet takes images of 1 channel$"
    ):
        load_model("timm/test_resnet", str(tmp_path / "grey.pth"), view=View(mean=(0.5, 0.5, 0.5)))


def test_commands_with_a_grey_network_and_oblong_images(tmp_path: Path) -> None:
    """Scores, controls that read colours, saved maps on an oblong grid, a picture and a page."""
    grey = seeded(lambda: timm.create_model("test_resnet", in_chans=1, num_classes=3))
    torch.save({"state_dict": grey.state_dict(), "classes": ["ant", "bee", "cat"]}, tmp_path / "grey.pth")
    for place, name in enumerate(("ant", "bee", "cat", "bee")):
        write(tmp_path / "data" / name / f"{place}.jpg", jpeg(picture(place, (90, 70))))
    network = ["--model", "timm/test_resnet", "--weights", str(tmp_path / "grey.pth"), "--size", "64x96"]
    network += ["--mean", "0.5", "--std", "0.25", "--device", "cpu"]
    out = str(tmp_path / "out")
    methods = ["--method", "gradcam,shapleycam,edges,flat"]
    words = ["bench", *network, *methods, "--metrics", "adcc,deletion,insertion,road", "--steps", "4"]
    words += [
        "--workers",
        "0",
        "--save-maps",
        "--data",
        str(tmp_path / "data"),
        "--target",
        "label",
        "-o",
        out,
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    with np.load(next(Path(out).glob("*/*/gradcam.npz"))) as maps:
        assert maps["maps"].shape == (4, 2, 3)
    weights = ["--weights", str(tmp_path / "grey.pth")]
    data = ["--data", str(tmp_path / "data")]
    for words in (
        [
            "verify",
            out,
            *weights,
            *data,
            "--workers",
            "0",
            "--classes",
            str(next(Path(out).glob("*/classes.csv"))),
        ],
        ["report", out, *data, "-o", str(tmp_path / "page.html")],
        ["explain", "sample", *network, *methods, "--target", "bee", "-o", str(tmp_path / "photos.png")],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text()
    assert "bee, " in page and page.count("data:image/jpeg") >= 4


def test_a_plugins_own_preprocessing() -> None:
    def crop(photo: Image.Image) -> torch.Tensor:
        return torch.full((1, 8, 12), photo.width // 4, dtype=torch.uint8)

    @model("grey-own-crop", mean=(0.5,), std=(0.5,), crop=crop)
    def build(pretrained: bool) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    try:
        loaded = load_model("grey-own-crop", "random")
    finally:
        MODELS.forget(MODELS["grey-own-crop"].source_file)
    assert loaded.preprocess.shape == (1, 8, 12)
    assert loaded.preprocess.crop(Image.new("RGB", (76, 5))).unique().tolist() == [19]


def test_a_size_that_a_model_does_not_take_is_said(tmp_path: Path) -> None:
    words = ["bench", "--model", "torchvision/vit_b_16", "--weights", "random", "--size", "64x96"]
    result = CliRunner().invoke(main, [*words, "--device", "cpu", "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "torchvision/vit_b_16 cannot take 64x96 images" in result.output
