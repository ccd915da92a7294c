"""`--model transformers/FOLDER`: a seeded model with its own image processor and class list; no network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pictures import jpeg, picture, write
from PIL import Image

from camkit.cli import main
from camkit.errors import CamkitError, UsageError
from camkit.network.loading import load_model, own_classes
from camkit.network.models import find_row

transformers = pytest.importorskip("transformers")
NAMES = ("zebra", "ant", "cat")


def vit(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """A small ViT for images of 32 x 48, seeded, as `save_pretrained` leaves it."""
    torch.manual_seed(3)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=(32, 48), patch_size=8, id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 48}, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.25, 0.3)
    )
    processor.save_pretrained(folder)
    return folder


def photo(seed: int = 0, size: tuple[int, int] = (90, 70)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["paper", "native"])
def test_its_own_processor_makes_the_images(name: str, tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    loaded = load_model(f"transformers/{folder}", preprocess=name)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    expected = processor(photo(), return_tensors="pt")["pixel_values"]
    found = loaded.preprocess.normalise(loaded.preprocess.crop(photo())[None])
    assert loaded.preprocess.shape == (3, 32, 48)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert "ViTImageProcessor" in loaded.preprocess.describe()


def test_the_model_is_that_of_the_library(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    expected = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.randn(2, 3, 32, 48)
    found = load_model(f"transformers/{folder}").model
    with torch.no_grad():
        assert torch.equal(found(images).logits, expected(images).logits)
    assert find_row(f"transformers/{folder}").library == "transformers"


def test_its_labels_are_the_class_list(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    found = own_classes(f"transformers/{folder}", "pretrained")
    assert found is not None and found.names == NAMES
    unnamed = vit(tmp_path / "unnamed", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert own_classes(f"transformers/{unnamed}", "pretrained") is None


def test_a_run_of_it(tmp_path: Path) -> None:
    """Folders are read by the names in `id2label`, whose order is not the folders'."""
    folder = vit(tmp_path / "vit")
    for name in NAMES:
        write(tmp_path / "data" / name / "1.jpg", jpeg(picture(len(name), (60, 60))))
    words = [
        *("bench", "--model", f"transformers/{folder}", "--method", "gradcam,shapleycam", "--steps", "4"),
        *("--data", str(tmp_path / "data"), "--target", "label", "--device", "cpu", "--workers", "0"),
        *("--out", str(tmp_path / "out")),
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    (run,) = (tmp_path / "out").glob("*/*/run.json")
    rows = (run.parent / "gradcam.csv").read_text().splitlines()[1:]
    targets = {row.split(",")[0].split("/")[0]: row.split(",")[2] for row in rows}
    assert targets == {"zebra": "0", "ant": "1", "cat": "2"}
    assert json.loads(run.read_text())["protocol"]["library_name"].startswith("transformers/")
    assert (run.parent.parent / "classes.csv").read_text() == "index,name,wnid\n0,zebra,\n1,ant,\n2,cat,\n"


def test_random_weights_and_a_file_of_weights(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    first, second = (load_model(f"transformers/{folder}", "random", seed=2).model for _ in range(2))
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    torch.save(first.state_dict(), tmp_path / "mine.pth")
    third = load_model(f"transformers/{folder}", str(tmp_path / "mine.pth")).model
    assert torch.equal(first.classifier.weight, third.classifier.weight)


def test_what_is_no_classifier_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model in the hub's cache"):
        load_model(f"transformers/{tmp_path / 'nothing'}")
    transformers.BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match=r"no image classifier of transformers: BertConfig"):
        load_model(f"transformers/{tmp_path / 'bert'}")
    headless = vit(tmp_path / "headless")
    model = transformers.ViTForImageClassification.from_pretrained(headless)
    model.vit.save_pretrained(headless)
    with pytest.raises(CamkitError, match=r"lack 2 tensors \(classifier\.bias, classifier\.weight\)"):
        load_model(f"transformers/{headless}")
    (vit(tmp_path / "blind") / "preprocessor_config.json").unlink()
    with pytest.raises(CamkitError, match="has no image processor"):
        load_model(f"transformers/{tmp_path / 'blind'}")
