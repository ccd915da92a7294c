"""The pixel cache: the same pixels with and without it, whoever builds it and however the building ends."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny import TINY
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from camkit.benchmark import bench
from camkit.cache import PixelCache
from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import Item, find_images
from camkit.pixels import PAPER_CROP, Preprocess, batches

PAPER = Preprocess("paper", PAPER_CROP, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = Preprocess("small", Compose([Resize(40), CenterCrop(32), PILToTensor()]), PAPER.mean, PAPER.std)


def items_of(folder: Path) -> list[Item]:
    return list(find_images(str(folder), seed=0).items)


def pixels(items: Sequence[Item], preprocess: Preprocess, cache: Path | None, workers: int = 0) -> Tensor:
    found = [batch.pixels for batch in batches(items, preprocess, 2, workers, cache=cache)]
    assert all(part is not None for part in found)
    return torch.cat([part for part in found if part is not None])


def entries(cache: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(cache), readonly=True) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


def refuse(image: Image.Image) -> Tensor:
    raise AssertionError("decoded although it is in the cache")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_pixels_and_no_second_decoding(photos: Path, tmp_path: Path, workers: int) -> None:
    items = items_of(photos)
    plain = pixels(items, PAPER, None)
    assert torch.equal(pixels(items, PAPER, tmp_path / "cache", workers), plain)
    # `describe` names the transforms: the copy that cannot decode asks for the same entries.
    blind = replace(PAPER, crop=_Blind(PAPER_CROP.transforms))
    assert blind.describe() == PAPER.describe()
    assert torch.equal(pixels(items, blind, tmp_path / "cache", workers), plain)
    with pytest.raises(Exception, match="decoded although"):
        pixels(items, blind, tmp_path / "another")


class _Blind:
    def __init__(self, transforms: list) -> None:
        self.transforms = transforms

    __call__ = staticmethod(refuse)


def test_the_same_scores(photos: Path, tmp_path: Path) -> None:
    texts = []
    for run, cache in (("none", None), ("filling", tmp_path / "cache"), ("filled", tmp_path / "cache")):
        out = tmp_path / run
        bench(RunConfig(**TINY, data=str(photos), cache=cache, out=out), say=lambda line: None)
        texts.append({path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*.csv"))})
    assert texts[0] == texts[1] == texts[2]
    assert len(entries(tmp_path / "cache")) == 6


def test_a_changed_file_is_decoded_anew(photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    items = items_of(folder)
    before = pixels(items, PAPER, tmp_path / "cache")
    changed = items[3].source
    assert isinstance(changed, Path)
    times = changed.stat()
    Image.new("RGB", (300, 280), (10, 200, 30)).save(changed)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # as after a copy that keeps times
    after = pixels(items, PAPER, tmp_path / "cache")
    assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == [
        place == 3 for place in range(6)
    ]
    assert torch.equal(after, pixels(items, PAPER, None))


def test_each_preprocessing_has_its_own_entries(photos: Path, tmp_path: Path) -> None:
    items = items_of(photos)
    for preprocess in (PAPER, SMALL, PAPER, SMALL):
        found = pixels(items, preprocess, tmp_path / "cache")
        assert torch.equal(found, pixels(items, preprocess, None))
    assert len(entries(tmp_path / "cache")) == 2 * len(items)


def build(photos: Path, cache: Path, times: int) -> None:
    for _ in range(times):
        pixels(items_of(photos), SMALL, cache)


def test_two_processes_build_at_once(photos: Path, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=build, args=(photos, tmp_path / "cache", 20)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    assert len(entries(tmp_path / "cache")) == 6
    assert torch.equal(
        pixels(items_of(photos), SMALL, tmp_path / "cache"), pixels(items_of(photos), SMALL, None)
    )


def fill_for_ever(cache: Path, started: multiprocessing.synchronize.Event) -> None:
    store = PixelCache(cache, "recipe")
    for number in range(1_000_000):
        store.put({store.key(b"%d" % number): torch.full((3, 64, 64), number % 256, dtype=torch.uint8)})
        if number == 5:
            started.set()


def test_killed_while_building(tmp_path: Path) -> None:
    """Whatever is there is whole, and the cache can be read and written on."""
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    writer = spawn.Process(target=fill_for_ever, args=(tmp_path, started))
    writer.start()
    assert started.wait(timeout=120)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(timeout=60)

    store = PixelCache(tmp_path, "recipe")
    keys = [store.key(b"%d" % number) for number in range(len(entries(tmp_path)))]
    crops = store.get(keys)
    assert len(crops) >= 6
    for number, crop in enumerate(crops):
        assert crop is not None
        assert crop.shape == (3, 64, 64)
        assert (crop == number % 256).all()
    new = store.key(b"new")
    store.put({new: torch.ones(3, 8, 9, dtype=torch.uint8)})
    (kept,) = store.get([new])
    assert kept is not None
    assert kept.shape == (3, 8, 9)
    store.close()


def test_a_folder_that_cannot_be_used(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    words = ["bench", "--model", "timm/camkit_tiny", "--weights", "random", "--preprocess", "native"]
    words += ["--device", "cpu", "--workers", "0", "--data", str(photos), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*words, "--cache", str(tmp_path / "file" / "cache")])
    assert result.exit_code == 1
    error = result.output.splitlines()[-1]
    assert error.startswith(f"error: --cache {tmp_path / 'file' / 'cache'}: ")
    assert "Traceback" not in result.output


ABANDONED = """
import sys
from camkit.data import find_images
from camkit.pixels import PAPER_CROP, Preprocess, batches
preprocess = Preprocess("paper", PAPER_CROP, (0.5,) * 3, (0.5,) * 3)
kept = batches(find_images(sys.argv[1], seed=0).items, preprocess, 1, workers=2)
next(kept)
"""


def test_workers_of_a_loader_that_is_left_alone_do_not_outlive_the_program(photos: Path) -> None:
    """As one is by an error, whose traceback keeps the loader."""
    subprocess.run([sys.executable, "-c", ABANDONED, str(photos)], check=True, timeout=120)
