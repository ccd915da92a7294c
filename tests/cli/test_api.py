"""`from camkit import bench, explain, load_model`, and the programs in examples/."""

import runpy
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from places import ROOT
from tiny import TinyNet, noise

import camkit
from camkit.entries import METHODS, Method
from camkit.errors import UsageError
from camkit.network.passes import Network

EXAMPLES = ROOT / "examples"


def test_explaining_a_module_gives_tensors() -> None:
    model, images = TinyNet(), noise(3, 3, 24, 24)
    found = camkit.explain(model, images, method="hirescam", layer="features", target=[1, 0, 1])
    assert found.saliency.shape == (3, 24, 24)
    assert found.target.tolist() == [1, 0, 1]
    passed = Network(model, torch.device("cpu")).trace(images, ["features"])
    probability = passed.logits.softmax(dim=1)[torch.arange(3), found.target]
    torch.testing.assert_close(found.probability, probability.detach())
    activation = passed.leaves["features"]
    utility = passed.logits[torch.arange(3), found.target] + probability.log()
    (gradient,) = torch.autograd.grad(utility.sum(), activation)
    torch.testing.assert_close(found.maps, (gradient * activation).sum(dim=1).detach())
    assert camkit.explain(model, images, method="centre", layer="features").maps is None


@pytest.mark.parametrize("layer", ["features", "nowhere"])
def test_a_module_comes_back_as_it_was(layer: str) -> None:
    model = TinyNet().train()
    model.features[1].eval()
    model.fc.bias.requires_grad_(False)

    def state() -> list:
        modes = [module.training for module in model.modules()]
        return modes + [
            (one.requires_grad, one.stride(), one.data_ptr(), one.tolist()) for one in model.parameters()
        ]

    before = state()
    expected = pytest.raises(UsageError) if layer == "nowhere" else nullcontext()
    with expected:
        camkit.explain(model, noise(2, 3, 24, 24), layer=layer)
    assert state() == before


def test_a_methods_edits_leave_the_callers_images_alone() -> None:
    def edits(trace):
        trace.images.zero_()
        trace.pixels().zero_()
        return trace.activation.sum(dim=1)

    METHODS._entries["edits"] = Method("edits", edits, "Edits", (), "", source_file="/mine.py")
    try:
        images = noise(2, 3, 24, 24)
        camkit.explain(TinyNet(), images, method="edits", layer="features")
        assert torch.equal(images, noise(2, 3, 24, 24))
    finally:
        del METHODS._entries["edits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "gradcm"}, "Did you mean 'gradcam'"),
        ({"utility": "rst"}, "unknown utility"),
        ({"layer": "nowhere"}, "unknown layer"),
        ({"absent": "bluurr"}, "--absent bluurr: expected one of zero, mean, blur"),
        ({"budget": 0}, "--budget 0: expected 4 or more"),
        ({"budget": -3}, "--budget -3: expected 4 or more"),
        ({"steps": 4}, "explain takes no option 'steps'. Options: budget, absent, channels"),
        ({"target": 10**6}, "expected classes from 0"),
        ({"images": "photo.png"}, "a module takes normalised images"),
        (
            {"images": torch.zeros(3, 24, 24)},
            r"shape \(3, 24, 24\), expected normalised images \(B, 3, H, W\)",
        ),
    ],
)
def test_what_cannot_be_explained_is_said(arguments: dict, message: str) -> None:
    arguments = {"images": noise(1, 3, 24, 24), "layer": "features"} | arguments
    with pytest.raises(UsageError, match=message):
        camkit.explain(TinyNet(), arguments.pop("images"), **arguments)


def test_photos_tensors_and_images_are_the_same(photos: Path) -> None:
    model = camkit.load_model("tf_efficientnet_lite0")
    path = photos / "photo_1.png"
    with Image.open(path) as image:
        pixels = model.loaded.preprocess.normalise(model.loaded.preprocess.crop(image.convert("RGB"))[None])
        for given in (str(path), path, [path], image, [image], pixels):
            found = camkit.explain(model, given, layer="prepool")
            assert found.saliency.shape == (1, 224, 224)
            torch.testing.assert_close(
                found.saliency, camkit.explain(model, pixels, layer="prepool").saliency, rtol=0, atol=1e-5
            )


def test_bench_gives_the_rows_of_this_run(photos: Path, tmp_path: Path) -> None:
    options = {"data": photos, "limit": 2, "steps": 4, "out": tmp_path, "metrics": "adcc", "layer": "prepool"}
    first = camkit.bench("tf_efficientnet_lite0", method=["gradcam", "flat"], **options)
    assert first["method"].tolist() == ["gradcam", "flat"]
    second = camkit.bench(["tf_efficientnet_lite0"], method="hirescam", **options)
    assert second["method"].tolist() == ["hirescam"]
    assert len(pd.read_csv(tmp_path / "summary.csv")) == 3
    with pytest.raises(UsageError, match="bench takes no option 'methods'"):
        camkit.bench("resnet18", methods="gradcam")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"absent": "bluurr"}, "--absent bluurr: expected one of zero, mean, blur"),
        ({"budget": 3}, "--budget 3: expected 4 or more"),
        ({"target": "labels"}, "unknown target 'labels'. Did you mean 'label'(.|\n)*predicted"),
        ({"limit": -3}, "--limit -3: expected 1 or more"),
        ({"batch_size": 0}, "--batch-size 0: expected 1 or more"),
    ],
)
def test_bench_takes_what_the_command_line_takes(option: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        camkit.bench("tf_efficientnet_lite0", out=tmp_path, **option)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a program of examples/, and give what it prints."""

    def run(name: str, *arguments: object) -> str:
        path = str(EXAMPLES / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_own_network(example: Callable[..., str]) -> None:
    found = example("own_network.py")
    assert found.startswith("saliency (4, 32, 32) maps (4, 15, 15) classes [")


def test_explain_photo(example: Callable[..., str], photos: Path, tmp_path: Path) -> None:
    assert example("explain_photo.py", photos / "photo_0.png", tmp_path / "a.png").startswith("class ")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (900, 300)


def test_compare_methods(example: Callable[..., str], tmp_path: Path, photos: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("photo_0.png", "photo_1.png"):
        (few / name).write_bytes((photos / name).read_bytes())
    table = example("compare_methods.py", few, tmp_path / "out").splitlines()
    assert table[0].split() == ["adcc", "shapley_error", "saliency_distance"]
    assert [line.split()[0] for line in table[2:]] == ["hirescam", "shapleycam-h", "aumann-2", "flat"]


def test_a_model_takes_images_of_another_size_mean_and_deviation(photos: Path) -> None:
    """Those that the command line takes; normalised by hand."""
    options = {"weights": "random", "device": "cpu", "size": "48x64", "mean": "0.5,0.4,0.3", "std": "0.2"}
    with pytest.raises(UsageError, match="--std"):
        camkit.load_model("timm/camkit_tiny", **options | {"std": "2"})
    model = camkit.load_model("timm/camkit_tiny", **options | {"std": "0.2,0.25,0.5"})
    found = camkit.explain(model, photos / "photo_0.png", layer="features")
    assert found.saliency.shape == (1, 48, 64)
    white = model.loaded.preprocess.normalise(torch.full((1, 3, 48, 64), 255, dtype=torch.uint8))
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([0.5 / 0.2, 0.6 / 0.25, 0.7 / 0.5]))
