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
from crops import PAPER, SMALL, build, fill_for_ever, items_of, pixels
from PIL import Image
from tiny import run
from torch import Tensor

from camkit.cli import main
from camkit.data.cache import PixelCache
from camkit.data.pixels import PAPER_CROP
from camkit.errors import CamkitError


def entries(cache: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(cache), readonly=True) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


def refuse(image: Image.Image) -> Tensor:
    if not any(image.getextrema()[0]):  # the blank one by which the loader learns the size of a crop
        return PAPER_CROP(image)
    raise AssertionError("decoded although it is in the cache")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_pixels_and_no_second_decoding(photos: Path, tmp_path: Path, workers: int) -> None:
    items = items_of(photos)
    plain = pixels(items, PAPER, None)
    assert torch.equal(pixels(items, PAPER, tmp_path / "cache", workers), plain)
    # The key names the transforms: the copy that cannot decode asks for the same entries.
    blind = replace(PAPER, crop=_Blind(PAPER_CROP.transforms))
    assert blind.describe_pixels() == PAPER.describe_pixels()
    assert torch.equal(pixels(items, blind, tmp_path / "cache", workers), plain)
    with pytest.raises(Exception, match="decoded although"):
        pixels(items, blind, tmp_path / "another")


def test_models_with_other_means_share_entries(photos: Path, tmp_path: Path) -> None:
    items = items_of(photos)
    other = replace(PAPER, name="native", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert torch.equal(pixels(items, PAPER, tmp_path), pixels(items, other, tmp_path))
    assert len(entries(tmp_path)) == len(items)
    pixels(items, replace(PAPER, orient=True), tmp_path)
    assert len(entries(tmp_path)) == 2 * len(items)


class _Blind:
    def __init__(self, transforms: list) -> None:
        self.transforms = transforms

    __call__ = staticmethod(refuse)


def test_the_same_scores(photos: Path, tmp_path: Path) -> None:
    texts = []
    for name, cache in (("none", None), ("filling", tmp_path / "cache"), ("filled", tmp_path / "cache")):
        out = tmp_path / name
        run(photos, out, cache=cache)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def error_of_a_run(photos: Path, tmp_path: Path, cache: Path, workers: int) -> str:
    """The last line of a run that fails."""
    words = ["bench", "--model", "timm/camkit_tiny", "--weights", "random", "--preprocess", "native"]
    words += ["--method", "flat", "--metrics", "adcc", "--device", "cpu", "--workers", str(workers)]
    words += ["--data", str(photos), "--out", str(tmp_path / "out"), "--cache", str(cache)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return result.output.splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_cannot_be_used(photos: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = tmp_path / "file" / "cache"
    assert error_of_a_run(photos, tmp_path, cache, workers).startswith(f"error: --cache {cache}: ")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_cut_short(photos: Path, tmp_path: Path, workers: int) -> None:
    cache = tmp_path / "cache"
    pixels(items_of(photos), PAPER, cache)
    data = cache / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    error = error_of_a_run(photos, tmp_path, cache, workers)
    assert error.startswith(f"error: --cache {cache}: damaged, its file is cut short: remove the folder")


def test_an_error_in_a_worker_comes_out_as_it_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cache: PixelCache, keys: Sequence[bytes]) -> list:
        raise CamkitError("the cache is no good")

    monkeypatch.setattr(PixelCache, "get", fail)  # the workers are forked, and have it too
    assert error_of_a_run(photos, tmp_path, tmp_path / "cache", 1) == "error: the cache is no good"


def test_damaged_entries_are_decoded_anew(photos: Path, tmp_path: Path) -> None:
    items = items_of(photos)
    plain = pixels(items, PAPER, tmp_path)
    data = tmp_path / "data.mdb"
    whole = data.read_bytes()
    value = entries(tmp_path)[max(entries(tmp_path))]
    place = whole.index(value[100:1000]) + 5_000
    data.write_bytes(whole[:place] + bytes(20_000) + whole[place + 20_000 :])
    damaged = entries(tmp_path)[max(entries(tmp_path))]
    assert damaged != value
    assert torch.equal(pixels(items, PAPER, tmp_path), plain)
    assert entries(tmp_path)[max(entries(tmp_path))] == value, "it was put right"


def test_an_entry_under_another_key_is_not_taken(tmp_path: Path) -> None:
    store = PixelCache(tmp_path, "recipe")
    one, other = store.key(b"one"), store.key(b"other")
    store.put({one: torch.ones(3, 8, 9, dtype=torch.uint8)})
    with store.environment.begin(write=True) as transaction:
        transaction.put(other, transaction.get(one))
    assert [crop is None for crop in store.get([one, other])] == [False, True]
    store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is not kept to elsewhere")
def test_a_limited_address_space(tmp_path: Path) -> None:
    """As by `ulimit -v`: a smaller map, which tells when it is full."""
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from camkit.data.cache import PixelCache\n"
        "from camkit.errors import CamkitError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))\n"
        "store = PixelCache(Path(sys.argv[1]), 'recipe')\n"
        "store.put({store.key(b'a'): torch.ones(3, 8, 9, dtype=torch.uint8)})\n"
        "print(store.environment.info()['map_size'] >> 30)\n"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("8\n", "")


def test_a_full_map_says_what_limits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camkit.data.cache.MAP_SIZE", 1 << 20)
    store = PixelCache(tmp_path, "recipe")
    with pytest.raises(CamkitError, match="ulimit -v"):
        store.put({store.key(b"a"): torch.ones(3, 1000, 1000, dtype=torch.uint8)})
    store.close()


ABANDONED = """
import sys
from camkit.data import find_images
from camkit.data.batches import batches
from camkit.data.pixels import PAPER_CROP, Preprocess
preprocess = Preprocess("paper", PAPER_CROP, (0.5,) * 3, (0.5,) * 3)
kept = batches(find_images(sys.argv[1], seed=0).items, preprocess, 1, workers=2)
next(kept)
"""


@pytest.mark.slow
def test_workers_of_a_loader_that_is_left_alone_do_not_outlive_the_program(photos: Path) -> None:
    """As one is by an error, whose traceback keeps the loader."""
    subprocess.run([sys.executable, "-c", ABANDONED, str(photos)], check=True, timeout=120)
