"""`--weights FILE`: what a trainer left sizes the network, is found under its key, and no head is dropped."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from tiny import noise, seeded
from torch import nn

from camkit.errors import CamkitError, UsageError
from camkit.network.checkpoints import names_in_order, read_checkpoint
from camkit.network.inspect import expect_classes
from camkit.network.loading import load_model, own_classes

RESNET, VIT = "timm/test_resnet", "timm/test_vit"


def trained(classes: int = 5, channels: int = 3, name: str = "test_resnet") -> nn.Module:
    """A network of one's own: that of a library, with another head."""
    return seeded(lambda: timm.create_model(name, num_classes=classes, in_chans=channels), seed=3)


def saved(content: Any, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


def same_outputs(name: str, file: str, model: nn.Module, channels: int = 3) -> None:
    images = noise(2, channels, 64, 64, seed=1)
    with torch.no_grad():
        assert torch.equal(load_model(name, file).model(images), model.eval()(images))


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".PTH", ".safetensors"])
def test_endings(ending: str, tmp_path: Path) -> None:
    model = trained()
    same_outputs(RESNET, saved(model.state_dict(), tmp_path / f"mine{ending}"), model)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.pth, \.pt, \.bin, \.ckpt, \.pth\.tar, \.safetensors"):
        read_checkpoint(saved({}, tmp_path / "mine.h5"))


@pytest.mark.parametrize("classes", [1, 2, 5, 1001])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_sizes_a_network_of_timm(classes: int, channels: int, tmp_path: Path) -> None:
    model = trained(classes, channels)
    file = saved(model.state_dict(), tmp_path / "mine.pth")
    same_outputs(RESNET, file, model, channels)
    assert load_model(RESNET, file).preprocess.shape == (channels, 224, 224)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_heads_elsewhere(kind: str, tmp_path: Path) -> None:
    model = trained(7, name=f"test_{kind}")
    loaded = load_model(f"timm/test_{kind}", saved(model.state_dict(), tmp_path / "mine.pth")).model
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in loaded.state_dict().items())


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_sizes_a_network_of_torchvision(name: str, channels: int, tmp_path: Path) -> None:
    """The head is a convolution in the one, the last of two linear layers in the other."""
    model = seeded(lambda: torchvision.models.get_model(name, num_classes=6))
    if channels == 1:
        first = model.get_submodule("features.0" if name.startswith("squeeze") else "features.0.0")
        first.weight = nn.Parameter(first.weight[:, :1].clone())
        first.in_channels = 1
    same_outputs(f"torchvision/{name}", saved(model.state_dict(), tmp_path / "mine.pth"), model, channels)


def test_other_channels_are_refused(tmp_path: Path) -> None:
    file = saved(trained(channels=4).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(CamkitError, match=r"mine\.pth does not fit the model: .*4 channels; camkit takes 1 "):
        load_model(RESNET, file)


def test_a_head_that_does_not_fit_is_never_dropped(tmp_path: Path) -> None:
    state = trained().state_dict()
    state["fc.weight"] = state["fc.weight"][:, :10]
    with pytest.raises(CamkitError, match=r"fc\.weight \(5, 10\) instead of \(1000, \d+\)"):
        load_model(RESNET, saved(state, tmp_path / "mine.pth"))
    state = trained().state_dict()
    state |= {"fc.1.weight": state.pop("fc.weight"), "fc.1.bias": state.pop("fc.bias")}
    with pytest.raises(
        CamkitError, match=r"2 missing \(fc\.weight, fc\.bias\); 2 unexpected \(fc\.1\.weight"
    ):
        load_model(RESNET, saved(state, tmp_path / "mine.pth"))


def test_a_plugins_model_is_not_sized_by_a_file(tmp_path: Path) -> None:
    """Its builder decides; the tensors must be those of its own network."""
    with pytest.raises(CamkitError, match=r"fc\.weight \(5, 16\) instead of \(1000, 16\)"):
        from tiny import TinyNet

        load_model("timm/camkit_tiny", saved(TinyNet(5).state_dict(), tmp_path / "mine.pth"))


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_state_dicts_under_a_key(key: str, tmp_path: Path) -> None:
    model = trained()
    content = {key: model.state_dict(), "epoch": 3, "optimizer": {"state": {}}}
    same_outputs(RESNET, saved(content, tmp_path / "last.ckpt"), model)


@pytest.mark.parametrize("key", ["ema", "state_dict_ema", "model_ema"])
def test_a_moving_average_is_taken_where_it_is_named(key: str, tmp_path: Path) -> None:
    model, average = trained(), seeded(lambda: timm.create_model("test_resnet", num_classes=5), seed=8)
    file = saved({"state_dict": model.state_dict(), key: average.state_dict()}, tmp_path / "last.pth.tar")
    same_outputs(RESNET, file, model)
    for part in ("ema", key):
        same_outputs(RESNET, f"{file}:{part}", average)
        assert load_model(RESNET, f"{file}:{part}").weights.file == f"last.pth.tar:{key}"
    note = load_model(RESNET, file).weights.note
    assert note == (
        f"the weights are those under 'state_dict'; there are others under {key!r} "
        "(--weights last.pth.tar:KEY)"
    )
    with pytest.raises(UsageError, match=rf"no 'best', but state_dict, {key}"):
        load_model(RESNET, f"{file}:best")


def test_an_average_alone_is_taken_and_said(tmp_path: Path) -> None:
    model = trained()
    file = saved({"state_dict_ema": model.state_dict()}, tmp_path / "last.pth")
    same_outputs(RESNET, file, model)
    weights = load_model(RESNET, file).weights
    assert (weights.file, weights.note) == (
        "last.pth:state_dict_ema",
        "the weights are those under 'state_dict_ema'",
    )


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "backbone.", "module._orig_mod.", "model.backbone."]
)
def test_one_prefix_before_all_names(prefix: str, tmp_path: Path) -> None:
    model = trained()
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    same_outputs(RESNET, saved(state, tmp_path / "mine.pth"), model)


def test_wrappers_of_torch(tmp_path: Path) -> None:
    model = trained()
    average = torch.optim.swa_utils.AveragedModel(model)
    same_outputs(RESNET, saved(average.state_dict(), tmp_path / "mine.pth"), model)


def test_a_prefix_before_some_names_is_none(tmp_path: Path) -> None:
    state = trained().state_dict()
    mixed = {(name if name.startswith("fc") else f"module.{name}"): one for name, one in state.items()}
    with pytest.raises(CamkitError, match=r"unexpected \(module\.conv1"):
        load_model(RESNET, saved(mixed, tmp_path / "mine.pth"))


def test_a_prefix_that_the_model_has_itself_is_kept() -> None:
    from camkit.network.checkpoints import without_prefix

    state = {"backbone.weight": torch.ones(1), "backbone.bias": torch.ones(1)}
    assert without_prefix(state, ["backbone.weight", "backbone.bias"]) is state
    assert list(without_prefix(state, ["weight", "bias"])) == ["weight", "bias"]


def test_code_is_refused_and_how_to_convert_is_said(tmp_path: Path) -> None:
    content = {"state_dict": trained().state_dict(), "args": argparse.Namespace(lr=0.1)}
    file = saved(content, tmp_path / "last.pth.tar")
    with pytest.raises(
        CamkitError, match=r"refused: it holds more than tensors.*\n.*convert it once: "
    ) as said:
        load_model(RESNET, file)
    assert "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth')" in str(said.value)


@pytest.mark.parametrize(
    "names",
    [
        lambda names: {"label_names": names},
        lambda names: {"id2label": dict(enumerate(names))},
        lambda names: {"id2label": {str(index): name for index, name in enumerate(names)}},
        lambda names: {"classes": tuple(names)},
        lambda names: {"class_to_idx": {name: index for index, name in enumerate(names)}},
        lambda names: {"pretrained_cfg": {"label_names": names}},
        lambda names: {"hyper_parameters": {"class_names": names}},
    ],
)
def test_class_names_in_a_checkpoint(names: Callable[[list[str]], dict], tmp_path: Path) -> None:
    listed = ["zebra", "ant", "cat", "dog", "owl"]
    file = saved({"state_dict": trained().state_dict(), **names(listed)}, tmp_path / "last.pth")
    found = own_classes(RESNET, file)
    assert found is not None and (found.names, found.title) == (tuple(listed), "last.pth")
    assert len(load_model(RESNET, file).model.fc.bias) == 5


def test_class_names_in_safetensors_and_beside_them(tmp_path: Path) -> None:
    state = {name: one.contiguous() for name, one in trained().state_dict().items()}
    listed = ["ant", "bee", "cat", "dog", "owl"]
    save_file(state, tmp_path / "a.safetensors", metadata={"classes": json.dumps(listed)})
    assert own_classes(RESNET, str(tmp_path / "a.safetensors")).names == tuple(listed)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_classes": 5, "label_names": listed[::-1]}))
    assert own_classes(RESNET, str(tmp_path / "model.safetensors")).names == tuple(listed[::-1])
    save_file(state, tmp_path / "other.safetensors")
    assert own_classes(RESNET, str(tmp_path / "other.safetensors")) is None


def test_imagenets_names_are_imagenet(tmp_path: Path) -> None:
    from camkit.data import imagenet

    names = list(imagenet().names)
    file = saved({"state_dict": {"fc.weight": torch.ones(1)}, "label_names": names}, tmp_path / "a.pth")
    assert own_classes(RESNET, file) is imagenet()
    names[3], names[5] = names[5], names[3]
    file = saved({"state_dict": {"fc.weight": torch.ones(1)}, "label_names": names}, tmp_path / "b.pth")
    assert own_classes(RESNET, file).names == tuple(names)


@pytest.mark.parametrize(
    "found",
    [
        None, 5, [], [1, 2], ["a", ""], {0: "a", 2: "b"}, {"a": 1, "b": 2}, {"0": "LABEL_0", "1": "LABEL_1"},
        {"a": 0, "b": 0},
    ],
)  # fmt: skip
def test_what_is_no_list_of_class_names(found: Any) -> None:
    assert names_in_order(found) == ()


def test_a_fine_tuned_clip_is_a_classifier(tmp_path: Path) -> None:
    """Its published head gives coordinates of an embedding; one of five outputs was trained to be classes."""
    from camkit.network.models import find_row

    row = find_row("timm/vit_base_patch16_clip_224.openai")

    class Tower(nn.Module):
        pretrained_cfg = timm.models.get_pretrained_cfg(row.tagged).to_dict()

    expect_classes(row.name, row, Tower(), 5)
    with pytest.raises(UsageError, match="image tower"):
        expect_classes(row.name, row, Tower(), Tower.pretrained_cfg["num_classes"])


def test_no_state_dict_in_it(tmp_path: Path) -> None:
    for content in ({"epoch": 3}, {"state_dict": {"a": 1}}, torch.ones(3), {}):
        with pytest.raises(CamkitError, match="holds no state dict"):
            read_checkpoint(saved(content, tmp_path / "x.pth"))
