"""Files of weights as they are published: with the names that a library's own loader expects."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from tiny import noise
from torch import Tensor, nn

from camkit.config import RunConfig
from camkit.errors import CamkitError, UsageError
from camkit.network.loading import load_model
from camkit.network.models import PAPER_ROWS, ModelRow, find_row
from camkit.network.random import calibrate
from camkit.network.weights import published_file
from camkit.runs.bench import bench

BUFFER = "num_batches_tracked"
# Tensors in files that were made before torch had that buffer, as people report them.
COUNTED = {"resnet18": 102, "resnet50": 267, "resnet101": 522, "resnet152": 777}


def filled(model: nn.Module, seed: int = 3) -> nn.Module:
    """A model whose tensors can be told from those that any builder makes."""
    stream = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(torch.rand(1, generator=stream) + 0.5).add_(1e-4)
        elif tensor.ndim == 0:
            tensor.fill_(7)
    return model


def published_names(row: ModelRow, state: Mapping[str, Tensor], with_buffer: bool) -> OrderedDict:
    """A state dict under the names of the published file."""
    renamed = {}
    for name, tensor in state.items():
        if not with_buffer and name.endswith(BUFFER):
            continue
        if row.entry.startswith(
            "densenet"
        ):  # 2017: norm.1 and conv.2, which today's modules cannot be called
            name = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name)
        renamed[name] = tensor
    return OrderedDict(renamed)


def original_swin(state: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
    """As Microsoft's files have it: a stage ends with its downsampling, and buffers are kept."""
    names = OrderedDict()
    for name, tensor in state.items():
        name = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        names[name.replace("head.fc.", "head.")] = tensor
    names["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    names["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return {"model": names}


def save(state: object, folder: Path, name: str) -> str:
    path = folder / name
    torch.save(state, path)
    return str(path)


LARGE = 64 * 2**20


def size(state: Mapping[str, Any]) -> int:
    """Bytes of the tensors in a checkpoint."""
    return sum(size(one) if isinstance(one, Mapping) else one.nbytes for one in state.values())


@pytest.fixture(scope="module", params=PAPER_ROWS, ids=lambda row: row.name)
def published(request: pytest.FixtureRequest) -> tuple[ModelRow, nn.Module]:
    """One of the twelve, and a model whose tensors its published files might hold."""
    row = request.param
    library = torchvision.models.get_model if row.library == "torchvision" else timm.create_model
    model = filled(library(row.entry if row.library == "torchvision" else row.tagged))
    if any(isinstance(one, nn.BatchNorm2d) for one in model.modules()):
        # Else the images' part of MobileNetV2's activations is rounded away on its way to the logits.
        calibrate(model, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return row, model


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Any], str], str]:
    """Save a checkpoint, give its path; a large one stays in memory, and takes no time to read."""
    kept: dict[Path, Mapping[str, Any]] = {}
    load = torch.load

    def from_memory(path: Path, **options: Any) -> object:
        return kept[path] if path in kept else load(path, **options)

    def keep(state: Mapping[str, Any], name: str) -> str:
        path = tmp_path / name
        if size(state) < LARGE:
            return save(state, tmp_path, name)
        path.touch()
        kept[path] = state
        return str(path)

    monkeypatch.setattr(torch, "load", from_memory)
    return keep


@pytest.fixture
def quick_builders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models begin with zeros, not with random numbers, where all tensors come from a file."""
    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor.zero_())
    monkeypatch.setattr(torch.Tensor, "erfinv_", lambda tensor: tensor)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_builders")
class TestTheTwelve:
    def test_published_files_load(self, published: tuple[ModelRow, nn.Module], keep: Callable) -> None:
        row, model = published
        (every_entry_loads if row.library == "torchvision" else both_files_load)(row, model, keep)

    def test_bench_runs_with_a_file(
        self, published: tuple[ModelRow, nn.Module], keep: Callable, tmp_path: Path, photos: Path
    ) -> None:
        row, model = published
        config = RunConfig(
            model=(row.name,), method=("gradcam",), metrics=("average_drop",), data=str(photos), limit=1,
            weights=keep(published_names(row, model.state_dict(), with_buffer=False), "published.pth"),
            out=tmp_path / "out",
        )  # fmt: skip
        summary = bench(config, say=lambda line: None)
        assert summary["images"].tolist() == [1]
        assert summary["average_drop"].notna().all()


def every_entry_loads(row: ModelRow, model: nn.Module, keep: Callable) -> None:
    """Of torchvision, with and without the buffer."""
    own = model.state_dict()
    without = [name for name in own if not name.endswith(BUFFER)]
    assert row.name not in COUNTED or len(without) == COUNTED[row.name]
    for entry in torchvision.models.get_model_weights(row.entry):
        assert sum(one.numel() for one in model.parameters()) == entry.meta["num_params"]
        for with_buffer in {True, len(without) == len(own)}:
            state = published_names(row, own, with_buffer)
            path = keep(state, Path(entry.url).name)
            loaded = load_model(f"torchvision/{row.entry}.{entry.name}", path)
            for name in without:
                assert torch.equal(loaded.model.state_dict()[name], own[name])
            assert loaded.weights.file == published_file(loaded.row) == Path(entry.url).name
            assert loaded.preprocess.mean == tuple(entry.transforms().mean)
    assert load_model(row.name, path).row is row


def both_files_load(row: ModelRow, model: nn.Module, keep: Callable) -> None:
    """Of a Swin, timm's and Microsoft's."""
    own = model.state_dict()
    for content in (dict(own), original_swin(own)):
        loaded = load_model(row.name, keep(content, "swin.pth")).model.state_dict()
        assert loaded.keys() == own.keys()
        assert all(torch.equal(loaded[name], own[name]) for name in own)
    assert published_file(row) == f"timm/{row.entry}.{row.tag}/model.safetensors"


class TestWhatTheBuilderDoes:
    def test_densenets_old_names(self, tmp_path: Path) -> None:
        row = find_row("torchvision/densenet121")
        own = filled(torchvision.models.densenet121()).state_dict()
        old = published_names(row, own, with_buffer=False)
        assert len(old) == 606
        assert len(old.keys() - own.keys()) == 580
        loaded = load_model(row.name, save(old, tmp_path, "densenet121-a639ec97.pth")).model.state_dict()
        assert all(torch.equal(loaded[name], own[name]) for name in own if not name.endswith(BUFFER))

    @pytest.mark.parametrize(
        ("entry", "with_aux"), [("inception_v3", True), ("googlenet", True), ("googlenet", False)]
    )
    def test_the_input_is_transformed_as_for_the_published_weights(
        self, entry: str, with_aux: bool, tmp_path: Path
    ) -> None:
        model = filled(torchvision.models.get_model(entry, init_weights=False, aux_logits=True))
        model.transform_input = True
        calibrate(model.eval(), noise(4, 3, 128, 128))
        state = {n: t for n, t in model.state_dict().items() if with_aux or not n.lower().startswith("aux")}
        assert with_aux or len(state) < len(model.state_dict())
        loaded = load_model(f"torchvision/{entry}", save(state, tmp_path, "file.pth")).model
        images = noise(2, 3, 128, 128)
        with torch.no_grad():
            expected = model(images)
            assert torch.equal(loaded(images), getattr(expected, "logits", expected))
            model.transform_input = False
            other = model(images)
            assert not torch.allclose(loaded(images), getattr(other, "logits", other))

    @pytest.mark.usefixtures("quick_builders")
    def test_the_size_is_the_entrys(self, tmp_path: Path) -> None:
        model = torchvision.models.vit_b_16(image_size=384)
        path = save(model.state_dict(), tmp_path, "vit.pth")
        loaded = load_model("torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1", path, "native")
        assert loaded.preprocess.shape == (3, 384, 384)
        assert loaded.model.image_size == 384
        with pytest.raises(
            CamkitError, match=r"encoder.pos_embedding \(1, 577, 768\) instead of \(1, 197, 768\)"
        ):
            load_model("torchvision/vit_b_16", path)

    def test_modules_see_the_version_that_they_were_saved_with(self, tmp_path: Path) -> None:
        """MNASNet refuses a file that does not say its version; `module.` is in the versions' names too."""
        model = nn.Module()
        model.module = filled(torchvision.models.mnasnet0_5())
        loaded = load_model("torchvision/mnasnet0_5", save(model.state_dict(), tmp_path, "m.pth")).model
        assert torch.equal(loaded.state_dict()["classifier.1.bias"], model.module.classifier[1].bias)
        with pytest.raises(CamkitError, match="does not fit the model; .*version"):
            load_model("torchvision/mnasnet0_5", save(dict(model.state_dict()), tmp_path, "m.pth"))

    def test_the_missing_buffer_is_no_fault(self, tmp_path: Path) -> None:
        own = load_model("timm/test_resnet", "random").model.state_dict()
        state = {name: tensor for name, tensor in own.items() if not name.endswith(BUFFER)}
        first = next(iter(state))
        del state[first]
        with pytest.raises(CamkitError, match=re.escape(f"tensors: 1 missing ({first})")):
            load_model("timm/test_resnet", save(state, tmp_path, "less.pth"))


def all_tags() -> list[str]:
    """Tags of timm whose mean, deviation, transform or number of classes is not the default tag's."""
    return [
        "tf_efficientnet_b5.ap_in1k",  # ImageNet's mean and deviation, Inception's, as JFT had it
        "tf_efficientnetv2_b0.in1k",
        "vit_tiny_patch16_224.augreg_in21k",  # 21,843 classes
        "test_vit.r160_in1k",
        "mobilenetv3_small_100.lamb_in1k",
        "resnet18.fb_swsl_ig1b_ft_in1k",
    ]


class TestTags:
    @pytest.mark.parametrize("tagged", all_tags())
    @pytest.mark.parametrize("weights", ["random", "file"])
    def test_a_tag_decides_classes_mean_and_transform(
        self, tagged: str, weights: str, tmp_path: Path
    ) -> None:
        published = timm.models.get_pretrained_cfg(tagged)
        if weights == "file":
            weights = save(timm.create_model(tagged).state_dict(), tmp_path, "tag.pth")
        loaded = load_model(f"timm/{tagged}", weights, "native")
        assert loaded.preprocess.mean == published.mean
        assert loaded.preprocess.std == published.std
        assert loaded.preprocess.shape == (3, *published.input_size[1:])
        assert loaded.model.num_classes == published.num_classes
        assert loaded.model.pretrained_cfg["tag"] == published.tag

    def test_tags_do_differ(self) -> None:
        """Where they do not, the test above tests nothing."""
        tags = [timm.models.get_pretrained_cfg(tagged) for tagged in all_tags()]
        defaults = [timm.models.get_pretrained_cfg(one.architecture) for one in tags]
        for name in ("num_classes", "mean", "crop_pct"):
            pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(tags, defaults, strict=True)]
            assert any(tag != default for tag, default in pairs), name

    def test_torchvisions_tags(self) -> None:
        second = load_model("torchvision/resnet50.IMAGENET1K_V2", "random", "native")
        assert second.row.tag == "IMAGENET1K_V2"
        assert "size=[232]" in second.preprocess.describe_pixels()
        with pytest.raises(UsageError, match=r"Nearest: .*resnet50\.IMAGENET1K_V[12]"):
            find_row("torchvision/resnet50.IMAGENET1K_V3")


class TestDownloads:
    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("resnet50", "resnet50-0676ba61.pth"),
            ("swin_b", "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k/model.safetensors"),
            ("timm/test_resnet", "timm/test_resnet.r160_in1k/model.safetensors"),
        ],
    )
    def test_a_failed_one_names_the_file(
        self, name: str, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))

        def no_network(*_: object, **__: object) -> None:
            raise OSError("Name or service not known")

        monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
        monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", no_network)
        with pytest.raises(CamkitError, match=rf"a copy of {re.escape(file)} with --weights FILE"):
            load_model(name)

    def test_a_librarys_cached_file_is_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Published ResNets lack the buffer, and need no download where the cache has them."""
        own = filled(torchvision.models.resnet18()).state_dict()
        cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
        cached.parent.mkdir(parents=True)
        torch.save(published_names(find_row("resnet18"), own, with_buffer=False), cached)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        loaded = load_model("resnet18")
        assert torch.equal(loaded.model.fc.bias, own["fc.bias"])
        assert (loaded.weights.kind, loaded.weights.tag) == ("pretrained", "IMAGENET1K_V1")

    def test_code_in_timms_cache_is_not_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        left = tmp_path / "left_behind"

        class Trap:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(left),)

        published = timm.models.get_pretrained_cfg("legacy_seresnet18.in1k")
        assert published.url
        assert not published.hf_hub_id
        cached = tmp_path / "hub" / "checkpoints" / Path(published.url).name
        cached.parent.mkdir(parents=True)
        torch.save({"conv1.weight": Trap()}, cached)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        with pytest.raises(CamkitError, match="pretrained weights is refused: .*\n.*cache"):
            load_model("timm/legacy_seresnet18.in1k")
        assert not left.exists()
        assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
        assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
