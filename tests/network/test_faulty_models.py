"""Models that people bring: explained as they are, or refused with the cause."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from tiny import noise
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import camkit
import camkit.methods  # noqa: F401  (fills the registry)
from camkit.cli import main
from camkit.errors import CamkitError, UsageError
from camkit.network.head import head_after
from camkit.network.inspect import expect_classes, inspect, open_network
from camkit.network.models import ModelRow
from camkit.network.numerics import numerics
from camkit.network.passes import Network

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)


class Net(nn.Module):
    """Logits (B, 4); what follows `features` can be anything."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 6, 8, stride=8)
        self.classify = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images).tanh().mean(dim=(2, 3)))


def opened(model: nn.Module, shape: tuple[int, int, int] = SHAPE, advice: str = "") -> Network:
    return open_network("net", model, shape, CPU, torch.float32, advice)


def refusal(model: nn.Module, shape: tuple[int, int, int] = SHAPE, advice: str = "") -> str:
    with pytest.raises(UsageError) as error:
        inspect("net", opened(model, shape, advice), shape, lambda line: None)
    return str(error.value)


class InPlace(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mul_(2).add_(1))


def test_a_model_that_changes_its_input_gets_a_copy() -> None:
    network = opened(InPlace().eval())
    images = noise(2, *SHAPE)
    kept = images.clone()
    first = network.logits(images)
    passed = network.trace(images, ["features"])
    head_after(network, images, "features")(passed.leaves["features"])
    assert torch.equal(images, kept)
    assert torch.equal(first, network.logits(images))
    assert network.copies_input
    assert not opened(Net().eval()).copies_input
    assert camkit.explain(InPlace(), images, method="gradcam", layer="features").target.shape == (2,)
    assert torch.equal(images, kept)


def test_one_output_is_refused() -> None:
    assert "softmax of one class is 1" in refusal(Net(classes=1))
    with pytest.raises(UsageError, match="one output"):
        camkit.explain(Net(classes=1), noise(1, *SHAPE), layer="features")


class Encoder(nn.Module):
    """torch's own transformer, whose fused path passes its layers' children by."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.classify = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.encoder(self.patches(images).flatten(2).transpose(1, 2))
        return self.classify(tokens.mean(dim=1))


@pytest.mark.parametrize("layer", ["encoder.layers.0", "encoder.layers.1.norm1", "encoder.layers.0.linear2"])
def test_transformer_encoders_children_are_seen_and_replaced(layer: str) -> None:
    shape = (3, 16, 24)  # six positions: the game of all their coalitions is short
    network = opened(Encoder().eval(), shape)
    images = noise(2, *shape)
    passed = network.trace(images, [layer])
    leaf = passed.leaves[layer]
    assert leaf.shape == (2, 16, 2, 3)
    head = head_after(network, images, layer)
    torch.testing.assert_close(head(leaf.detach()), passed.logits.detach(), rtol=0, atol=1e-5)
    assert not torch.allclose(head(torch.zeros_like(leaf)), passed.logits.detach(), atol=1e-3)
    found = [
        camkit.explain(network.model, images, method=method, layer=layer).maps
        for method in ("shapley", "aumann-1", "hirescam")
    ]
    assert all(maps is not None and maps.abs().max() > 1e-4 for maps in found)


class Stubborn(Net):
    """Computes its features a second time, behind every hook's back."""

    def forward(self, images: Tensor) -> Tensor:
        self.features(images)
        weight, bias = self.features.weight, self.features.bias
        again = nn.functional.conv2d(images, weight, bias, stride=8)
        return self.classify(again.tanh().mean(dim=(2, 3)))


def test_a_layer_whose_replacement_changes_nothing_is_refused() -> None:
    network, images = opened(Stubborn().eval()), noise(1, *SHAPE)
    with pytest.raises(CamkitError, match="do not depend on the output of layer 'features'"):
        head_after(network, images, "features")


class Drift(Net):
    """Another pass, other logits: what follows a layer is then no function of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images) + self.calls * torch.arange(4)


def test_a_layer_whose_own_output_gives_other_logits_is_refused() -> None:
    with pytest.raises(CamkitError, match="very same output"):
        head_after(Network(Drift(), CPU), noise(1, *SHAPE), "features")


class TestNotClassifiers:
    def test_features(self) -> None:
        name = "vit_small_patch14_dinov2.lvd142m"
        row = ModelRow(f"timm/{name}", "timm", "vit_small_patch14_dinov2", "lvd142m")
        model = timm.create_model("test_vit", num_classes=0)
        with pytest.raises(UsageError, match=r"384 outputs are features.*docs/extend.md"):
            expect_classes(row.name, row, model, 384)

    def test_a_clip_tower_with_its_projection(self) -> None:
        row = ModelRow("timm/x", "timm", "vit_base_patch16_clip_224", "openai")
        tower = Net(512)
        tower.pretrained_cfg = {"num_classes": 512}  # as timm has it
        with pytest.raises(UsageError, match="CLIP model: its 512 outputs are its projection"):
            expect_classes(row.name, row, tower, 512)
        tuned = ModelRow("timm/x", "timm", "vit_base_patch16_clip_224", "openai_ft_in1k")
        expect_classes(tuned.name, tuned, Net(1000), 1000)

    def test_segmentation_and_detection(self) -> None:
        class Segment(Net):
            def forward(self, images: Tensor) -> OrderedDict:
                return OrderedDict(out=self.features(images))

        class Detect(Net):
            def forward(self, images: Tensor) -> list[dict]:
                return [{"boxes": torch.zeros(1, 4)} for _ in images]

        assert "not a classifier (segmentation?)" in refusal(Segment())
        assert "not a classifier (detection?)" in refusal(Detect())

    @pytest.mark.parametrize("kind", ["tuple", "dict", "attribute"])
    def test_logits_among_other_outputs_are_taken(self, kind: str) -> None:
        class Several(Net):
            def forward(self, images: Tensor) -> object:
                logits = super().forward(images)
                if kind == "tuple":
                    return logits, None
                if kind == "dict":
                    return {"hidden": None, "logits": logits}
                return type("Output", (), {"hidden": None, "logits": logits})()

        images = noise(2, *SHAPE)
        network = opened(Several().eval())
        assert torch.equal(network.logits(images), Network(Net(), CPU).logits(images))
        plain, explained = (
            camkit.explain(model, images, method="shapley", layer="features") for model in (Net(), Several())
        )
        assert torch.equal(
            explained.saliency, camkit.explain(Net(), images, method="shapley", layer="features").saliency
        )


class TestBatches:
    def test_images_that_see_each_other_are_refused(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm2d(4, track_running_stats=False))
        model = nn.Sequential(model, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        assert "other logits in a batch than alone" in refusal(model)

    def test_what_tf32_rounds_is_not_taken_for_that(self) -> None:
        """On a GPU a batch of one may take another algorithm, which rounds otherwise."""

        class Rounding(Net):
            def forward(self, images: Tensor) -> Tensor:
                rounds = torch.backends.cudnn.allow_tf32 and len(images) == 1
                return super().forward(images) * (1.1 if rounds else 1)

        with numerics(tf32=True, deterministic=False):
            inspect("net", opened(Rounding()), SHAPE, lambda line: None)
            assert torch.backends.cudnn.allow_tf32

    def test_constant_logits_are_refused(self) -> None:
        model = Net()
        nn.init.zeros_(model.classify.weight)
        assert "same logits for every image" in refusal(model)

    @pytest.mark.parametrize("activation", [nn.Softmax(dim=1), None])
    def test_probabilities_as_outputs_are_told(self, activation: nn.Module | None) -> None:
        lines: list[str] = []
        model = nn.Sequential(Net(), activation) if activation else Net()
        inspect("net", opened(model), SHAPE, lines.append)
        assert ("softmax of a softmax" in " ".join(lines)) == (activation is not None)


class TestCauses:
    """Each failure of a forward has its own line; the size is blamed only where it can be the cause."""

    def test_a_three_dimensional_convolution_elsewhere_is_no_obstacle(self) -> None:
        class Cube(Net):
            def __init__(self) -> None:
                super().__init__()
                self.cube = nn.Conv3d(1, 1, 1)

            def forward(self, images: Tensor) -> Tensor:
                return super().forward(self.cube(images[:, None])[:, 0])

        assert opened(Cube()).logits(noise(1, *SHAPE)).shape == (1, 4)

    def test_video(self) -> None:
        model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Flatten())
        message = refusal(model, advice="Use --preprocess native")
        assert "Conv3d" in message

    def test_other_channels(self) -> None:
        message = refusal(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), advice="Use --preprocess native")
        assert "images of 1 channels" in message
        assert "native" not in message

    def test_size(self) -> None:
        message = refusal(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), advice="Use --preprocess native")
        assert "cannot take 32x32 images" in message
        assert message.endswith("Use --preprocess native")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_weights_in_another_format(self, dtype: torch.dtype) -> None:
        message = refusal(Net().to(dtype))
        assert str(dtype).removeprefix("torch.") in message
        assert "model.float()" in message

    def test_torchscript(self) -> None:
        with pytest.warns(FutureWarning):
            scripted = torch.jit.script(Net())
        assert "TorchScript" in refusal(scripted)

    def test_lazy_modules(self) -> None:
        assert "lazy modules" in refusal(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)))


class TestGradients:
    def test_checkpointing_is_switched_off(self) -> None:
        model = timm.create_model("test_vit", num_classes=5)
        model.set_grad_checkpointing(True)
        model.train()
        images = noise(1, 3, 160, 160)
        explained = camkit.explain(model, images, method="shapleycam", layer="blocks.0")
        assert explained.saliency.isfinite().all()
        assert model.grad_checkpointing  # it comes back as it was
        assert model.training

    def test_a_forward_without_gradients_is_named(self) -> None:
        class Blind(Net):
            def forward(self, images: Tensor) -> Tensor:
                features = self.features(images)
                with torch.no_grad():
                    return self.classify(features.tanh().mean(dim=(2, 3)))

        class Cut(Net):
            def forward(self, images: Tensor) -> Tensor:
                return self.classify(self.features(images).detach().tanh().mean(dim=(2, 3)))

        for model in (Blind(), Cut()):
            with pytest.raises(CamkitError, match=r"carry no gradient.*no_grad or inference_mode.*detaches"):
                camkit.explain(model, noise(1, *SHAPE), method="gradcam", layer="features")

    def test_a_forward_in_inference_mode_is_named(self) -> None:
        class Inference(Net):
            @torch.inference_mode()
            def forward(self, images: Tensor) -> Tensor:
                return super().forward(images)

        with pytest.raises(CamkitError, match="inference_mode"):
            camkit.explain(Inference(), noise(1, *SHAPE), method="gradcam", layer="features")

    def test_a_layer_that_does_not_matter_is_another_cause(self) -> None:
        class Spare(Net):
            def __init__(self) -> None:
                super().__init__()
                self.spare = nn.Conv2d(3, 2, 8, stride=8)

            def forward(self, images: Tensor) -> Tensor:
                self.spare(images)
                return super().forward(images)

        with pytest.raises(CamkitError, match="do not depend on the layer's output"):
            camkit.explain(Spare(), noise(1, *SHAPE), method="gradcam", layer="spare")

    def test_torchs_checkpoint_in_a_forward_still_works(self) -> None:
        class Saved(Net):
            def forward(self, images: Tensor) -> Tensor:
                features = self.features(images)
                pooled = checkpoint(lambda x: x.tanh().mean(dim=(2, 3)), features, use_reentrant=False)
                return self.classify(pooled)

        images = noise(1, *SHAPE)
        found = camkit.explain(Saved(), images, method="gradcam", layer="features")
        assert torch.allclose(
            found.saliency, camkit.explain(Net(), images, method="gradcam", layer="features").saliency
        )


class TestFromPython:
    def test_inside_inference_mode(self) -> None:
        model = Net()
        with torch.inference_mode():
            images = noise(2, *SHAPE) * 1
            found = camkit.explain(model, images, method="shapleycam", layer="features")
        outside = camkit.explain(model, images.clone(), method="shapleycam", layer="features")
        assert torch.equal(found.saliency, outside.saliency)

    @pytest.mark.parametrize(
        ("target", "words"),
        [(5.0, "whole numbers"), ([1, 2, 3], "one per image"), (9, "from 0 to 3"), (True, "whole numbers")],
    )
    def test_targets(self, target: object, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            camkit.explain(Net(), noise(2, *SHAPE), method="gradcam", layer="features", target=target)

    @pytest.mark.parametrize("images", [torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)])
    def test_images(self, images: Tensor) -> None:
        with pytest.raises(UsageError, match=r"expected normalised images \(B, 3, H, W\)"):
            camkit.explain(Net(), images, method="gradcam", layer="features")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"limit": "3"}, "--limit '3': expected a whole number"),
            ({"method": None}, "--method None: expected a sequence of names"),
            ({"save_maps": 1}, "--save-maps 1: expected True or False"),
            ({"steps": 2.5}, "--steps 2.5: expected a whole number"),
        ],
    )
    def test_options_of_another_type(self, options: dict, words: str) -> None:
        with pytest.raises(UsageError) as error:
            camkit.bench("resnet18", **options)
        assert words in str(error.value)


PLUGIN = """
import torch
from torch import nn
from camkit import method, model

@model("large", size=96)
def large(pretrained):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 16, stride=16), nn.ReLU())
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 1000))

@method("leaves")
def leaves(trace):
    raise SystemExit(3)

@method("zero")
def zero(trace):
    return trace.activation.sum(dim=1) * 0
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "nets, and more.py"  # a comma in its name
    path.write_text(PLUGIN)
    return path


def test_a_plugin_model_of_another_size(plugin: Path, photos: Path, tmp_path: Path) -> None:
    command = ["bench", "--model", "large", "--method", "gradcam,leaves,zero", "--metrics", "average_drop"]
    command += [
        "--data",
        str(photos),
        "--plugin",
        str(plugin),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "0",
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    # sys.exit() of a plugin costs its own rows, and the summary is there.
    assert "method 'leaves': SystemExit" in result.output
    assert "gradcam" in (tmp_path / "out" / "summary.csv").read_text()
    run = (tmp_path / "out" / "large" / "conv-rest" / "run.json").read_text()
    assert "CenterCrop(size=(96, 96))" in run
    assert "Resize(size=110" in run
    assert "every map is constant or not finite: zero" in result.output
