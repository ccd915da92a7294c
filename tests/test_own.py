"""docs/own.md: its commands run as they are printed, on small networks whose right answers are known."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from places import ROOT
from torch import Tensor, nn

from camkit.cli import main
from camkit.data.pixels import Preprocess, crop_to
from camkit.entries import IMAGENET_MEAN, IMAGENET_STD
from camkit.network.random import calibrate

PAGE = (ROOT / "docs" / "own.md").read_text(encoding="utf-8")
FLOWERS = {
    "daisy": (240, 240, 240), "dandelion": (230, 210, 20), "rose": (220, 20, 40), "sunflower": (20, 120, 30),
    "tulip": (90, 20, 200),
}  # fmt: skip
Colour = tuple[int, int, int]


def printed(heading: str) -> list[list[str]]:
    """The words of each command below a heading of the page."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None
    blocks = re.findall(r"```console\n(.*?)```", section[1], re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    # Without processes that decode: the photos are few.
    workers = {"bench", "data"}
    words = [shlex.split(line) for line in lines]
    return [[*line, "--workers", "0"] if line[1] in workers else line for line in words]


def run(words: Sequence[str]) -> str:
    assert words[0] == "camkit"
    result = CliRunner().invoke(main, list(words[1:]))
    assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}"
    return result.output


def photo(path: Path, colour: Colour, seed: int, size: tuple[int, int] = (80, 70)) -> None:
    """A blob of a colour on grey noise."""
    stream = np.random.default_rng(seed)
    width, height = size
    pixels = np.full((height, width, 3), 128.0) + stream.normal(0, 8, (height, width, 1))
    y, x = np.mgrid[0:height, 0:width]
    middle = stream.uniform(0.35, 0.65, 2) * (height, width)
    inside = ((y - middle[0]) / height) ** 2 + ((x - middle[1]) / width) ** 2 < 0.07
    pixels[inside] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)


def probe(features: Tensor, classes: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """The linear classifier (K, C), (K,) that separates features (N, C) best: ridge regression."""
    design = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    wanted = strength * (2 * classes.double() - 1)
    ridge = 1e-3 * torch.eye(design.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(design.T @ design + ridge, design.T @ wanted).float()
    return found[:-1].T.contiguous(), found[-1]


def resnet(folder: Path, names: Sequence[str], size: tuple[int, int], outputs: int, grey: bool) -> nn.Module:
    """torchvision's ResNet-18 whose head is trained, the rest seeded, on the images of a folder.

    Its residual branches do little: what it says of a tile depends on nothing beside it.
    """
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=outputs)
    crop, mean, std = crop_to(size), IMAGENET_MEAN, IMAGENET_STD
    if grey:
        model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        crop, mean, std = (lambda one: crop_to(size)(one.convert("L"))), (0.5,), (0.25,)
    paths = sorted(folder.rglob("*.jpg"))
    with torch.no_grad():
        for block in model.modules():
            if isinstance(block, torchvision.models.resnet.BasicBlock):
                block.bn2.weight.fill_(0.02)
        crops = torch.stack([crop(Image.open(path)) for path in paths])
        images = Preprocess("", crop, mean, std).normalise(crops)
        calibrate(model, images)
        head, model.fc = model.fc, nn.Identity()
        labels = torch.tensor([names.index(path.parent.name) for path in paths])
        wanted = labels[:, None] if outputs == 1 else nn.functional.one_hot(labels, outputs)
        weight, bias = probe(model(images), wanted, strength=8)
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        model.fc = head
    return model.eval()


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, colour in FLOWERS.items():
        for number in range(2):
            photo(tmp_path / "flowers" / "val" / name / f"{number}.jpg", colour, seed=number)
    model = resnet(tmp_path / "flowers" / "val", list(FLOWERS), (64, 64), outputs=5, grey=False)
    torch.save({"state_dict": model.state_dict(), "classes": list(FLOWERS)}, tmp_path / "flowers.pth")
    return tmp_path


def test_a_fine_tuned_resnet_and_maps_of_another_program(flowers: Path) -> None:
    check, bench, report, page, explain, mosaics = printed("A fine-tuned ResNet")
    said = run(check)
    assert re.search(r"top1 percent +100\.0\n", said) and re.search(r"labelled +10\n", said), said
    run(bench)
    assert "top-1 100.00 %" in run(report)
    run(page)
    html = (flowers / "flowers.html").read_text()
    assert all(f"{name}, " in html for name in FLOWERS)
    run(explain)
    assert Image.open(flowers / "rose.png").width > 100
    run(mosaics)
    found = pd.read_csv(flowers / "results" / "mosaics" / "summary.csv").set_index("method")
    # The tile of a class covers a quarter of the mosaic, and a flat map has a quarter of its energy there.
    assert found.loc["flat", "energy"] == pytest.approx(0.25, abs=0.01)
    assert found.loc["gradcam", "energy"] > 0.8
    assert found.loc["gradcam", "pointing"] == found.loc["gradcam", "certified"] == 1

    for name in FLOWERS:
        for number in range(2):
            path = flowers / "maps" / name / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, blob_of(flowers / "flowers" / "val" / name / f"{number}.jpg"))
    score, report, compare = printed("Maps of another program")
    assert "maps of 10 of 10 images, 70x80; not signed" in run(score)
    assert "mine" in run(report) and "mine" in run(compare)
    scores = pd.read_csv(flowers / "results" / "flowers" / "summary.csv").set_index("method")
    # The map of the blob itself finds what the network looks at: without it the class is gone.
    assert scores.loc["mine", "deletion_auc"] < scores.loc["edges", "deletion_auc"]


def blob_of(path: Path) -> np.ndarray:
    """How far each pixel's colour is from grey, (h, w): what the other program says of a photo."""
    pixels = np.asarray(Image.open(path)).astype(np.float32)
    return np.abs(pixels - 128).max(axis=2)


def test_a_network_with_one_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, colour in (("fine", (128, 128, 128)), ("scratched", (20, 20, 20))):
        for number in range(3):
            photo(tmp_path / "parts" / name / f"{number}.jpg", colour, seed=number, size=(120, 80))
    model = resnet(tmp_path / "parts", ["fine", "scratched"], (64, 96), outputs=1, grey=True)
    torch.save(model.state_dict(), tmp_path / "scratches.pth")
    check, bench = printed("A network with one output")
    said = run(check)
    assert re.search(r"top1 percent +100\.0\n", said), said
    run(bench)
    (out,) = (tmp_path / "results" / "parts").glob("resnet18/conv-rest")
    rows = pd.read_csv(out / "gradcam.csv")
    assert set(rows["target"]) == {1} and len(rows) == 6
    scratched = rows["image"].str.startswith("scratched")
    assert (rows["probability"][scratched] > 0.9).all() and (rows["probability"][~scratched] < 0.1).all()
    predictions = pd.read_csv(out.parent / "predictions.csv").set_index("image")
    assert (predictions["predicted_name"] == predictions.index.str.split("/").str[0]).all()


def test_a_model_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    colours = {"zebra": (240, 240, 240), "ant": (30, 20, 10), "fox": (220, 90, 20)}
    for name, colour in colours.items():
        for number in range(2):
            photo(tmp_path / "animals" / name / f"{number}.jpg", colour, seed=number)
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32,
        patch_size=8, id2label=dict(enumerate(colours)), initializer_range=0.2,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    paths = sorted((tmp_path / "animals").rglob("*.jpg"))
    images = processor([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([list(colours).index(path.parent.name) for path in paths])
    with torch.no_grad():
        features = model.vit(images).last_hidden_state[:, 0]
        weight, bias = probe(features, nn.functional.one_hot(labels, 3), strength=6)
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    for one in (model, processor):
        one.save_pretrained(tmp_path / "animals-vit")
    check, bench = printed("A model of transformers")
    said = run(check)
    assert re.search(r"top1 percent +100\.0\n", said), said
    run(bench)
    (out,) = (tmp_path / "results" / "animals").glob("*/conv-rest")
    rows = pd.read_csv(out / "shapleycam.csv")
    names = rows["image"].str.split("/").str[0]
    assert (rows["target"] == names.map({name: index for index, name in enumerate(colours)})).all()
    assert (rows["probability"] > 0.9).all()


def test_the_python_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "own.md", "exec"), {})
    assert "deletion_auc" in capsys.readouterr().out


def test_the_page_has_no_other_commands() -> None:
    """What is printed is run above."""
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert [len(printed(heading)) for heading in headings] == [6, 2, 2, 3, 0, 0]
