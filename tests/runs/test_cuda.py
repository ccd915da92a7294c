"""On a GPU: the scores are those of the CPU, but for rounding, and run.json says where they were made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from pictures import write_photo
from places import ROOT
from tiny import run, segments

sys.path.insert(0, str(ROOT / "scripts"))

import gpu_right  # noqa: E402

from camkit.config import RunConfig  # noqa: E402
from camkit.runs.verify import faults, verify  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
SETTINGS = {"method": ("paper", "flat"), "layer": ("conv", "features.2"), "batch_size": 3}


def test_what_one_device_made_the_other_verifies(photos: Path, tmp_path: Path) -> None:
    for made, checked in (("cpu", "cuda"), ("cuda", "cpu")):
        run(photos, tmp_path / made, device=made, **SETTINGS)
        config = RunConfig(model=(), data=str(photos), device=checked)
        assert not faults(verify(tmp_path / made, config, lambda line: None))


def test_run_json_names_the_card(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path, device="cuda", method=("gradcam",), metrics=("adcc",), deterministic=True)
    (segment,) = segments(tmp_path)
    assert segment["device"] == torch.cuda.get_device_name()
    assert segment["versions"]["cuda"] == torch.version.cuda


def test_auto_takes_the_gpu_and_a_batch_that_fits(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path, device="auto", batch_size="auto", method=("gradcam",), metrics=("adcc",))
    (segment,) = segments(tmp_path)
    assert segment["device"] == torch.cuda.get_device_name()
    assert segment["batch_size"] == 6


@pytest.mark.parametrize("name", list(gpu_right.CHECKS))
def test_checks_of_the_gpu_script(name: str, tmp_path: Path) -> None:
    """What scripts/gpu.py checks first, in its whole form."""
    (tmp_path / "results").mkdir()
    photos = tmp_path / "photos"
    photos.mkdir()
    if name in ("flat memory", "out of memory"):
        for number in range(500):
            write_photo(photos / f"{number}.png", seed=number % 20)
    gpu_right.CHECKS[name](gpu_right.Setting(torch.device("cuda"), photos, tmp_path / "results"))
