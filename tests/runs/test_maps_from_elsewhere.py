"""`camkit score --maps`: maps of any program are scored as camkit's own; whose one is is not guessed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from pictures import write_photo
from PIL import Image
from tiny import TINY, TinyNet, calibrated_weights, noise, seeded

import camkit
from camkit.cli import main
from camkit.data.given import GivenMaps
from camkit.errors import UsageError
from camkit.runs.elsewhere import METRICS_OF_MAPS

IMAGES = ("a/1.png", "a/2.png", "b/1.png", "b/3.png")
MODEL = TINY["model"][0]
SCORES = ("average_drop", "average_gain", "deletion_auc", "insertion_auc", "single_deletion")


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, image in enumerate(IMAGES):
        write_photo(tmp_path / "data" / image, seed)
    return tmp_path / "data"


@pytest.fixture
def network(tmp_path: Path, data: Path) -> list[object]:
    weights = calibrated_weights(tmp_path)
    options = ["--model", MODEL, "--weights", weights, "--preprocess", "native", "--device", "cpu"]
    return [*options, "--steps", 4, "--data", data, "--batch-size", 3]


def bench(network: list[object], out: Path, *more: object) -> None:
    words = ["bench", *network, "--method", "gradcam,hirescam", "--workers", 0, "--save-maps", "-o", out]
    result = call(*words, *more)
    assert result.exit_code == 0, result.output


def rows(out: Path, method: str, place: str = "conv-rest") -> dict[str, dict[str, str]]:
    (path,) = out.glob(f"*/{place}/{method}.csv")
    with path.open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def random_maps(size: tuple[int, int] = (5, 7), seed: int = 0) -> dict[str, np.ndarray]:
    stream = np.random.default_rng(seed)
    return {image: stream.normal(size=size).astype(np.float32) for image in IMAGES}


ALL = ("--metrics", ",".join((*METRICS_OF_MAPS, "single_deletion")))


def test_saved_maps_come_back_with_the_same_scores(network: list[object], tmp_path: Path) -> None:
    """Round trip: signed maps on the layer's grid, from another folder, under another name."""
    out = tmp_path / "out"
    bench(network, out, *ALL, "--layer", "features.4")
    with np.load(next(out.glob("*/*/gradcam.npz"))) as saved:
        assert (saved["maps"] < 0).any()
        there = saved["maps"].shape[1:]
    copy = tmp_path / "other.npz"
    next(out.glob("*/*/gradcam.npz")).rename(copy)
    result = call("score", out, "--maps", copy, "--name", "ours", *network, *ALL)
    assert result.exit_code == 0, result.output
    assert f"maps of 4 of 4 images, {there[0]}x{there[1]}; signed: " in result.output
    expected, found = (rows(out, method, "features.4-rest") for method in ("gradcam", "ours"))
    assert found.keys() == expected.keys() == set(IMAGES)
    for image, row in expected.items():
        for column in ("label", "target", *SCORES):
            if column in row:
                assert found[image][column] == row[column], (image, column)
    summary = pd.read_csv(out / "summary.csv").set_index("method")
    assert summary.loc["ours", "deletion_auc"] == summary.loc["gradcam", "deletion_auc"]
    assert summary.loc["ours", "deletion_auc"] != summary.loc["hirescam", "deletion_auc"]
    assert "ours" in call("report", out).output
    assert "ours" in call("compare", out, "--baseline", "gradcam").output


def test_they_stand_under_every_layer_and_utility_and_bench_goes_on(
    network: list[object], tmp_path: Path
) -> None:
    out, maps = tmp_path / "out", tmp_path / "maps.npz"
    bench(
        network, out, "--metrics", "deletion", "--layer", "features.3,features.5", "--utility", "rest,logit"
    )
    np.savez(maps, names=np.array(IMAGES), maps=np.stack(list(random_maps().values())))
    words = ["score", out, "--maps", maps, "--name", "ours", *network, "--metrics", "deletion"]
    assert call(*words).exit_code == 0
    places = [f"features.{layer}-{utility}" for layer in (3, 5) for utility in ("rest", "logit")]
    found = [rows(out, "ours", place) for place in places]
    assert len(found[0]) == 4 and all(one == found[0] for one in found)
    assert "nothing to do" in call(*words).output
    bench(network, out, "--metrics", "deletion", "--layer", "features.3", "--utility", "rest")
    result = call("verify", out, "--data", network[-3], "--weights", network[3], "--workers", 0)
    assert result.exit_code == 0, result.output
    assert "ours: its maps come from elsewhere" in result.output


def test_the_folder_alone(network: list[object], tmp_path: Path) -> None:
    """Without a run beside it, and with the scores that are usual for maps."""
    np.savez(tmp_path / "maps.npz", names=np.array(IMAGES), maps=np.stack(list(random_maps().values())))
    out = tmp_path / "new"
    result = call("score", out, "--maps", tmp_path / "maps.npz", "--name", "ours", *network)
    assert result.exit_code == 0, result.output
    assert {"average_drop", "deletion_auc", "insertion_auc"} <= rows(out, "ours")[IMAGES[0]].keys()
    run = json.loads(next(out.glob("*/conv-rest/run.json")).read_text())
    assert run["given"]["ours"]["maps"] == "maps.npz" and run["given"]["ours"]["negative"] == 4


def npy_by_id(folder: Path, maps: Mapping[str, np.ndarray]) -> Path:
    for image, one in maps.items():
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        np.save((folder / image).with_suffix(".npy"), one)
    return folder


def npy_beside_the_ending(folder: Path, maps: Mapping[str, np.ndarray]) -> Path:
    for image, one in maps.items():
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{image}.npy", one[None, ..., None])  # (1, h, w, 1)
    return folder


def npz_each(folder: Path, maps: Mapping[str, np.ndarray]) -> Path:
    for image, one in maps.items():
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        np.savez((folder / image).with_suffix(".npz"), attribution=one)
    return folder


def tif(folder: Path, maps: Mapping[str, np.ndarray]) -> Path:
    for image, one in maps.items():
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save((folder / image).with_suffix(".tif"))
    return folder


def array_with_list(folder: Path, maps: Mapping[str, np.ndarray]) -> Path:
    folder.mkdir()
    np.save(folder / "all.npy", np.stack(list(maps.values())))
    (folder / "all.txt").write_text("\n".join(maps) + "\n")
    return folder / "all.npy"


def named_arrays(folder: Path, maps: Mapping[str, np.ndarray]) -> Path:
    folder.mkdir()
    np.savez(folder / "all.npz", **maps)
    return folder


FORMS = [npy_by_id, npy_beside_the_ending, npz_each, tif, array_with_list, named_arrays]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_each_image_its_own_map(form: Callable, tmp_path: Path) -> None:
    maps = random_maps()
    found = GivenMaps(form(tmp_path / "maps", maps), IMAGES)
    assert found.names == set(IMAGES) and not found.others
    for image, one in maps.items():
        np.testing.assert_array_equal(found[image], one)
    summary = found.summary()
    assert (summary.sizes, summary.negative) == ({(5, 7)}, 4)


def test_grey_pictures(tmp_path: Path) -> None:
    eight = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
    Image.fromarray(eight).save(tmp_path / "3.png")  # no other image is called 3
    (tmp_path / "a").mkdir()
    Image.fromarray(eight.astype(np.uint16) * 200).save(tmp_path / "a" / "1.png")
    found = GivenMaps(tmp_path, IMAGES)
    assert found.names == {"a/1.png", "b/3.png"}
    np.testing.assert_array_equal(found["b/3.png"], eight)
    np.testing.assert_array_equal(found["a/1.png"], eight.astype(float) * 200)
    assert found.summary().negative == 0


def test_whose_a_map_is_is_never_guessed(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", np.ones((2, 2)))  # a/1.png or b/1.png?
    np.save(tmp_path / "9.npy", np.ones((2, 2)))
    with pytest.raises(UsageError, match=r"none of its 2 maps .* \(maps: 1\.npy, 9\.npy; images: "):
        GivenMaps(tmp_path, IMAGES)
    np.save(tmp_path / "2.npy", np.ones((2, 2)))
    found = GivenMaps(tmp_path, IMAGES)
    assert found.names == {"a/2.png"} and found.others == ["1.npy", "9.npy"]
    Image.fromarray(np.ones((2, 2), dtype=np.uint8)).save(tmp_path / "2.png")
    with pytest.raises(UsageError, match=r"2\.(npy|png) and 2\.(npy|png) could both be a/2\.png's"):
        GivenMaps(tmp_path, IMAGES)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a/1.png", Image.new("RGB", (3, 3)), r"a picture in colours \(RGB\) is no map"),
        ("a/1.npy", np.zeros((3, 4, 5)), r"float64 of the shape \(3, 4, 5\), expected a map \(h, w\)"),
        ("a/1.npy", np.array([["x"]]), r"expected a map \(h, w\) of numbers"),
        ("a/1.npy", b"nothing", r"no \.npy file of numbers"),
        ("a/1.png", b"nothing", "it cannot be read"),
    ],
)
def test_what_is_no_map_is_said(name: str, content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    if isinstance(content, Image.Image):
        content.save(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(UsageError, match=message):
        GivenMaps(tmp_path, IMAGES).summary()


def test_arrays_whose_names_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        GivenMaps(tmp_path / "nothing.npz", IMAGES)
    np.save(tmp_path / "all.npy", np.zeros((3, 2, 2)))
    with pytest.raises(UsageError, match=r"list them in all\.txt, one per line"):
        GivenMaps(tmp_path / "all.npy", IMAGES)
    (tmp_path / "all.txt").write_text("a/1.png\na/2.png\n")
    with pytest.raises(UsageError, match=r"2 names, and an array \(3, 2, 2\)"):
        GivenMaps(tmp_path / "all.npy", IMAGES)
    (tmp_path / "all.txt").write_text("a/1.png\na/2.png\na/1.png\n")
    with pytest.raises(UsageError, match=r"two maps have the name a/1\.png"):
        GivenMaps(tmp_path / "all.npy", IMAGES)


def test_maps_of_different_sizes_and_of_some_images(network: list[object], tmp_path: Path) -> None:
    """Of each size alone the scores are the same as together."""
    small, large = random_maps((5, 7), 1), random_maps((40, 50), 2)
    mixed = {IMAGES[0]: small[IMAGES[0]], IMAGES[3]: large[IMAGES[3]]}
    out = tmp_path / "out"
    for name, maps in (("small", small), ("large", large), ("mixed", mixed)):
        folder = npy_by_id(tmp_path / name, maps)
        result = call("score", out, "--maps", folder, "--name", name, *network, *ALL)
        assert result.exit_code == 0, result.output
    assert "maps of 2 of 4 images, 5x7, 40x50" in result.output
    found = rows(out, "mixed")
    assert found.keys() == set(mixed)
    for image, name in ((IMAGES[0], "small"), (IMAGES[3], "large")):
        for column, text in rows(out, name)[image].items():
            if text and column not in ("image", "label", "target"):
                assert float(found[image][column]) == pytest.approx(float(text), abs=1e-6), column


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--metrics", "adcc"], "adcc needs maps of changed images"),
        (["--name", "gradcam"], "this is a method of camkit's or of a plugin"),
        (["--name", "paper"], "this is a method of camkit's or of a plugin"),
        (["--name", "a b"], "expected a name without spaces"),
        (["--target", "runner-up"], "holds results with another target rule"),
        (["--model", "all"], "maps from elsewhere are of one model"),
    ],
)
def test_what_is_refused(changes: list[str], message: str, network: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    bench(network, out, "--metrics", "deletion")
    out.joinpath("summary.csv").write_text("as it was")
    folder = npy_by_id(tmp_path / "maps", random_maps())
    result = call(
        "score", out, "--maps", folder, "--name", "ours", *network, "--metrics", "deletion", *changes
    )
    assert result.exit_code == 2 and message in result.output, result.output
    assert out.joinpath("summary.csv").read_text() == "as it was"


def test_one_name_is_one_set_of_maps(network: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for seed, expected in ((0, 0), (1, 2)):
        folder = npy_by_id(tmp_path / f"maps{seed}", random_maps(seed=seed))
        result = call("score", out, "--maps", folder, "--name", "ours", *network, "--metrics", "deletion")
        assert result.exit_code == expected, result.output
    assert "holds scores of other maps by this name" in result.output


def test_options_that_belong_to_the_one_or_the_other(tmp_path: Path) -> None:
    tmp_path.joinpath("out").mkdir()
    for words, message in (
        (["--maps", tmp_path], "--maps needs --model NAME"),
        (["--metrics", "deletion", "--target", "label"], "--target goes with --maps"),
        (["--metrics", "deletion", "--name", "x"], "--name goes with --maps"),
        ([], "which scores are to be added?"),
    ):
        result = call("score", tmp_path / "out", *words)
        assert result.exit_code == 2 and message in result.output, result.output


def test_in_python(tmp_path: Path) -> None:
    """The same as camkit's own method: maps of explain() come back with the scores of a run of them."""
    model = seeded(lambda: TinyNet(6))
    images = noise(3, 3, 64, 64)
    made = camkit.explain(model, images, method="hirescam", layer="features")
    metrics = ("average_drop", "deletion", "insertion", "single_deletion")
    found = camkit.score(model, images, made.maps, metrics=metrics, steps=8)
    assert list(found["target"]) == made.target.tolist()
    np.testing.assert_allclose(found["probability"], made.probability, rtol=1e-5)
    masked = model(images * made.saliency[:, None]).softmax(dim=1).gather(1, made.target[:, None])[:, 0]
    drop = (made.probability - masked).clamp(min=0) / made.probability
    np.testing.assert_allclose(found["average_drop"], drop.detach(), atol=1e-5)
    again = camkit.score(model, images, [one.numpy() for one in made.saliency], metrics=metrics, steps=8)
    np.testing.assert_allclose(again["deletion_auc"], found["deletion_auc"], atol=1e-5)
    mean, least = {"fill": ("mean",), "order": ("least",)}, ("deletion-mean-least", "insertion-mean-least")
    named = camkit.score(model, images, made.maps, metrics=least, steps=8)
    every = {"metrics": ("deletion", "insertion"), **mean, "steps": 8}
    all_drawn, some = (camkit.score(model, images, made.maps, **every, sample=count) for count in (7, 2))
    pd.testing.assert_frame_equal(all_drawn, named)
    assert not some.equals(named)
    other = camkit.score(model, images, made.maps, target=2, metrics=("deletion",), steps=8)
    assert list(other["target"]) == [2, 2, 2]
    assert model.training is False and all(one.requires_grad for one in model.parameters())
    for wrong, message in (
        ({"maps": made.maps[:2]}, "2 maps .* of 3 images"),
        ({"maps": made.maps[:, None]}, r"expected one \(h, w\) each"),
        ({"metrics": ("adcc",)}, "adcc needs maps of changed images"),
        ({"metrics": ("shapley",)}, "shapley depends on a layer"),
        ({"budget": 3}, "no option 'budget'"),
        ({"sample": 0}, "--sample 0: expected 1 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            camkit.score(model, images, **({"maps": made.maps} | wrong))


def test_a_folder_of_sampled_curves_gets_sampled_curves(network: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    bench(network, out, "--metrics", "deletion", "--steps", 8, "--sample", 3)
    words = ["--maps", npy_by_id(tmp_path / "maps", random_maps()), "--name", "ours", *network, "--steps", 8]
    for sample, code in (([], 2), (["--sample", 3], 0)):
        result = call("score", out, *words, "--metrics", "deletion", *sample)
        assert result.exit_code == code, result.output
