"""Shared by all tests: two threads, small photos, the real model, and one run on the sample photos."""

from __future__ import annotations

import os

# Read once, when torch starts its threads: without it they spin while they wait, and on a machine that has
# other work the tests take five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from camkit.config import RunConfig  # noqa: E402
from camkit.runs.bench import bench  # noqa: E402

torch.set_num_threads(2)

ALL_UTILITIES = ("rest", "logit", "softmax", "log-softmax")


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data folder of the user's, and no results in the working tree."""
    monkeypatch.delenv("CAMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def write_photo(path: Path, seed: int, size: tuple[int, int] = (96, 80)) -> Path:
    """A photo-like picture: a few smooth blobs of colour and some noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    noisy = (smooth + generator.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy).save(path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos in a folder, no labels."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(6):
        write_photo(root / f"photo_{number}.png", seed=number)
    return root


@pytest.fixture(scope="session")
def golden_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of EfficientNet-Lite0 on the sample photos: layers, utilities and the paper's methods."""
    out = tmp_path_factory.mktemp("golden")
    config = RunConfig(
        model=("tf_efficientnet_lite0",),
        method=("paper",),
        layer=("conv", "prepool"),
        utility=ALL_UTILITIES,
        metrics=("adcc",),
        batch_size=6,
        out=out,
        save_maps=True,
        device="cpu",
    )
    bench(config, say=lambda line: None)
    return out
