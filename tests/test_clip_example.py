"""examples/clip_prompts.py: CLIP's image tower and prompts are a classifier; random weights, no network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from pictures import write_photo
from places import ROOT

from camkit.cli import main
from camkit.entries import MODELS
from camkit.network.loading import load_model
from camkit.plugins import load_plugins

open_clip = pytest.importorskip("open_clip")
PLUGIN = ROOT / "examples" / "clip_prompts.py"
# As small as a CLIP can be: a ViT of two blocks, a text tower of one.
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    monkeypatch.setenv("CLIP_MODEL", "tiny")


@pytest.mark.usefixtures("tiny_clip")
def test_the_logits_are_clips_own(tmp_path: Path) -> None:
    load_plugins([str(PLUGIN)])
    loaded = load_model("clip-prompts", "random", seed=4)
    torch.manual_seed(4)
    clip = open_clip.create_model("tiny", force_quick_gelu=True).eval()
    names = (ROOT / "examples" / "clip_prompts.txt").read_text().split("\n")[:-1]
    texts = open_clip.get_tokenizer("tiny")([f"a photo of a {name}" for name in names])
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = clip.get_logits(images, texts)[0]
        torch.testing.assert_close(loaded.model(images), expected, rtol=1e-4, atol=1e-4)
    assert loaded.preprocess.shape == (3, 64, 64)
    assert loaded.preprocess.mean == tuple(open_clip.OPENAI_DATASET_MEAN)
    MODELS.forget(MODELS["clip-prompts"].source_file)


@pytest.mark.usefixtures("tiny_clip")
def test_it_is_explained_by_the_names_of_the_prompts(tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "photo.png", seed=1)
    words = [
        *("explain", str(photo), "--model", "clip-prompts", "--plugin", str(PLUGIN), "--weights", "random"),
        *("--classes", str(PLUGIN.with_suffix(".txt")), "--target", "rocket", "--method", "gradcam"),
        *("--device", "cpu", "-o", str(tmp_path / "photo.pdf")),
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "photo.pdf").stat().st_size > 1000
    words[words.index("rocket")] = "spaceship"
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "spaceship" in result.output
    MODELS.forget(MODELS["clip-prompts"].source_file)
