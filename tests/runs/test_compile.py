"""`--compile`: the same scores from compiled scoring passes, to the bit when a run is resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from timm.models import register_model
from tiny import TINY, TinyNet, camkit_tiny, run
from torch import Tensor

from camkit.config import RunConfig
from camkit.errors import CamkitError
from camkit.results.folder import read_run
from camkit.runs.bench import bench
from camkit.runs.dryrun import dry_run

SCORES = {
    "model": ("timm/camkit_plain",),
    "method": ("gradcam", "shapleycam"),
    "metrics": ("adcc", "deletion"),
    "steps": 4,
    "batch_size": 2,
}
CELLS = "timm__camkit_plain/conv-rest"


@register_model
def camkit_plain(**options: object) -> TinyNet:
    """TinyNet without its list of passes, which a compiler would have to look at in each."""
    model = camkit_tiny(**options)
    model.__class__ = Plain
    return model


class Plain(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(images)).flatten(1))


@pytest.fixture(autouse=True)
def nothing_compiled_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()


def scores(photos: Path, out: Path, **options: object) -> pd.DataFrame:
    run(photos, out, **SCORES | options)
    return pd.concat(pd.read_csv(path).set_index("image") for path in sorted((out / CELLS).glob("*cam.csv")))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_the_same_scores_also_of_a_resumed_run(photos: Path, tmp_path: Path) -> None:
    plain = scores(photos, tmp_path / "plain")
    compiled = scores(photos, tmp_path / "compiled", compile=True)
    assert (plain - compiled).abs().max(axis=None) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "one batch shape, one compilation"
    assert [s["compile"] for s in read_run(tmp_path / "compiled" / CELLS)["segments"]] == [True]
    torch._dynamo.reset()
    scores(photos, tmp_path / "resumed", compile=True, limit=3)
    scores(photos, tmp_path / "resumed", compile=True)
    for path in (tmp_path / "compiled").rglob("*.csv"):
        again = tmp_path / "resumed" / path.relative_to(tmp_path / "compiled")
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("work", [bench, dry_run])
def test_without_a_compiler_the_reason_is_said(photos: Path, tmp_path: Path, work: object) -> None:
    config = RunConfig(**(TINY | SCORES | {"data": str(photos), "out": tmp_path / "out", "compile": True}))
    no_compiler = torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")})
    with no_compiler, pytest.raises(CamkitError, match="--compile: torch.compile failed(.|\n)*needs a C"):
        work(config, lambda line: None)
