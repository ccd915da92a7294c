"""The HTML page: what it holds, and that it works in a browser."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner
from pictures import write_photo
from PIL import Image
from report_data import blind, made_up, write_results

from camkit.cli import main
from camkit.data import class_name, find_images
from camkit.report.gallery import MOST_PHOTOS, agreement, select, small_map, within_limit
from camkit.report.grid import Entry
from camkit.report.study import load_study

IMAGES = 8
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write_maps(out, methods, names, seed=0):
    rng = np.random.default_rng(seed)
    for method in methods:
        path = out / "resnet18" / "conv-rest" / f"{method}.npz"
        np.savez(path, images=np.array(names), maps=rng.normal(size=(len(names), 3, 4)).astype(np.float32))


@pytest.fixture
def study(tmp_path):
    """Results with maps, and the folder of their photos."""
    names = [f"photo_{place}.png" for place in range(IMAGES)]
    for place, name in enumerate(names):
        write_photo(tmp_path / "photos" / name, seed=place)
    cells = {
        "gradcam": made_up(IMAGES, 0),
        "layercam": made_up(IMAGES, 1),
        "flat": blind(IMAGES, 0.3, 0.2),
    }
    fingerprint = find_images(str(tmp_path / "photos"), seed=0).fingerprint
    protocol = {"data_fingerprint": fingerprint}
    out = write_results(tmp_path / "results", cells, names=names, protocol=protocol)
    write_maps(out, ("gradcam", "layercam"), names)
    return out, tmp_path / "photos"


def page(out, *arguments, to):
    found = CliRunner().invoke(main, ["report", *map(str, (out, "-o", to, *arguments))])
    assert found.exit_code == 0, found.output
    return to.read_text(encoding="utf-8"), found.output


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_the_page_is_one_file_that_asks_for_nothing(study, tmp_path):
    text, output = page(study[0], "--data", study[1], to=tmp_path / "page.html")
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:|//|(?!#|data:)[\w.])", text)
    assert "@import" not in text and "url(" not in text and "fetch(" not in text
    assert text.count("data:image/jpeg;base64,") == IMAGES
    assert re.search(r"page.html \(0\.\d MB\)", output)


def test_the_page_has_the_tables_the_meanings_and_the_provenance(study, tmp_path):
    text, _ = page(study[0], "--no-photos", to=tmp_path / "page.html")
    assert "resnet18 · conv · rest (8 images, top-1 75.00 %)" in text
    assert "Only 8 images" in text
    assert "Average drop: share of the probability lost" in text and "Lower is better." in text
    assert "camkit bench --model x" in text and "data fingerprint" in text


def test_the_page_has_milliseconds_per_image_over_all_segments(study, tmp_path):
    """Two segments of 6 and 2 images: (0.012 + 0.004) s / 8 and (0.1 + 0.06) s / 8; layercam has none."""
    text, _ = page(study[0], "--no-photos", to=tmp_path / "page.html")
    assert 'id="cost"' not in text, "a run that did not measure it has no such section"
    path = study[0] / "resnet18" / "conv-rest" / "run.json"
    run = json.loads(path.read_text())
    took = [(6, 0.012, 0.1), (2, 0.004, 0.06)]
    names = ("images", "explaining_seconds", "scoring_seconds")
    run["segments"] = [
        {"command": "x", "device": "cpu", "costs": {"gradcam": dict(zip(names, one, strict=True))}}
        for one in took
    ]
    path.write_text(json.dumps(run))
    text, _ = page(study[0], "--no-photos", to=tmp_path / "page.html")
    section = text[text.index('<section id="cost">') : text.index('<section id="provenance">')]
    assert "conv · rest (cpu)" in section
    assert re.findall(r'<th scope="row">(.*?)</th>', section) == ["GradCAM"]
    assert re.findall(r"<td.*?>([\d.]+)</td>", section) == ["2.0", "20.0", "22.0"]


def test_without_photos_there_are_none_but_maps(study, tmp_path):
    text, _ = page(study[0], "--no-photos", "--data", study[1], to=tmp_path / "page.html")
    assert "data:image" not in text
    gallery = data_of(text)["blocks"][0]["gallery"]
    assert len(gallery["images"]) == IMAGES and gallery["shapes"] == {"gradcam": [3, 4], "layercam": [3, 4]}
    one = gallery["images"]["0"]["maps"]["gradcam"]
    assert len(base64.b64decode(one)) == 12


def test_photos_that_are_not_named_are_asked_for(study, tmp_path):
    _, output = page(study[0], to=tmp_path / "page.html")
    assert "--data PATH says where they lie" in output


def test_other_data_get_a_warning(study, tmp_path):
    write_photo(tmp_path / "other" / "photo_0.png", seed=3, size=(300, 200))
    _, output = page(study[0], "--data", tmp_path / "other", to=tmp_path / "page.html")
    assert "is not what these results were made with" in output
    assert "7 of 8 photos are not in" in output


def test_odd_names_cannot_break_the_page(tmp_path):
    names = ["</script><script>alert(1)</script>.png", "\udcff.png", "a&b<i>.png"]
    out = write_results(tmp_path / "r", {"gradcam": made_up(3, 0), "layercam": made_up(3, 1)}, names=names)
    text, _ = page(out, "--no-photos", to=tmp_path / "page.html")
    assert "<script>alert" not in text and "<i>.png" not in text
    shown = {one["id"] for one in data_of(text)["blocks"][0]["gallery"]["images"].values()}
    assert shown == {names[0], "\ufffd.png", names[2]}


def test_agreement_is_the_mean_correlation_of_all_pairs():
    maps = [np.random.default_rng(seed).random((5, 2, 3)) for seed in range(4)]
    maps[0][2] = 0.5  # constant: correlates with nothing
    expected = np.zeros(5)
    for image in range(5):
        one = [maps[method][image].ravel() for method in range(4)]
        pairs = [(first, second) for first in range(4) for second in range(first + 1, 4)]
        varied = [pair for pair in pairs if not (image == 2 and 0 in pair)]
        expected[image] = sum(np.corrcoef(one[a], one[b])[0, 1] for a, b in varied) / len(pairs)
    np.testing.assert_allclose(agreement(maps), expected, atol=1e-12)


def test_the_gallery_shows_where_a_method_wins_and_loses(tmp_path):
    first, second = made_up(30, 0), made_up(30, 1)
    first["adcc"], second["adcc"] = np.full(30, 0.5), np.full(30, 0.5)
    first["adcc"][7], second["adcc"][9] = 0.9, 0.8
    (block,) = load_study([write_results(tmp_path, {"gradcam": first, "layercam": second})])
    lists = select(block).lists
    assert lists["GradCAM wins"][0] == 7 and lists["LayerCAM loses"][0] == 7
    assert lists["LayerCAM wins"][0] == 9
    assert lists["methods agree least"][0] == 7 and set(lists["methods agree most"]).isdisjoint({7, 9})


def test_a_page_never_holds_more_photos_than_the_limit(tmp_path):
    for number, model in enumerate(("resnet18", "resnet50", "vgg16")):
        cells = {f"m{place}": made_up(400, 10 * number + place) for place in range(8)}
        write_results(tmp_path, cells, model=model)
    selections = within_limit([select(block) for block in load_study([tmp_path])])
    shown = {one.block.images[place] for one in selections for place in one.images}
    assert len(shown) == MOST_PHOTOS
    assert [len(one.lists) for one in selections] == [18] * 3


def test_many_models_have_short_lists_each_and_none_has_none(tmp_path):
    for number in range(20):
        cells = {f"m{place}": made_up(2000, 10 * number + place) for place in range(8)}
        write_results(tmp_path, cells, model=f"model_{number:02}")
    selections = within_limit([select(block) for block in load_study([tmp_path])])
    assert sum(len(one.images) for one in selections) >= MOST_PHOTOS
    assert min(len(one.lists) for one in selections) >= 8
    assert all("methods agree least" in one.lists for one in selections)


def test_images_without_a_map_of_every_method_neither_agree_nor_disagree(tmp_path):
    names = [f"{place}.png" for place in range(IMAGES)]
    cells = {"gradcam": made_up(IMAGES, 0), "layercam": made_up(IMAGES, 1)}
    out = write_results(tmp_path, cells, names=names)
    write_maps(out, ("gradcam",), names)
    write_maps(out, ("layercam",), names[:3], seed=1)
    found = select(load_study([out])[0])
    assert set(found.lists["methods agree least"]) == set(found.lists["methods agree most"]) == {0, 1, 2}
    assert set(found.maps["layercam"]) == {0, 1, 2} and set(found.maps["gradcam"]) == set(range(IMAGES))


def test_the_class_shown_is_the_one_that_the_maps_explain(study, tmp_path):
    """The rows of the made-up results explain class 7, the model predicts 8 in every fourth."""
    text, _ = page(study[0], "--no-photos", to=tmp_path / "page.html")
    images = data_of(text)["blocks"][0]["gallery"]["images"].values()
    assert {one["text"] for one in images} == {f"{class_name(7, 1000)}, 50.0 %"}


def test_photos_are_those_that_each_model_saw(tmp_path):
    """One run turned its photos by EXIF, the other did not: the page has both."""
    path = tmp_path / "photos" / "tall.jpg"
    write_photo(path, seed=0, size=(400, 300))
    with Image.open(path) as photo:
        exif = photo.getexif()
        exif[0x0112] = 3  # upside down
        photo.save(path, exif=exif)
    for model, exif_option in (("resnet18", "ignore"), ("resnet50", "apply")):
        cells = {"gradcam": made_up(1, 0), "layercam": made_up(1, 1)}
        write_results(
            tmp_path / model, cells, names=["tall.jpg"], model=model, protocol={"exif": exif_option}
        )
    folders = (tmp_path / "resnet18", tmp_path / "resnet50")
    text, _ = page(*folders, "--data", tmp_path / "photos", to=tmp_path / "page.html")
    data = data_of(text)
    numbers = [block["gallery"]["images"]["0"]["photo"] for block in data["blocks"]]
    straight, turned = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data["photos"][number].split(",")[1])))).astype(
            float
        )
        for number in numbers
    )
    assert np.abs(straight - turned).mean() > 10
    assert np.abs(straight - turned[::-1, ::-1]).mean() < 5


def test_sample_photos_are_found_without_being_named(tmp_path):
    pytest.importorskip("skimage")
    cells = {"gradcam": made_up(2, 0), "layercam": made_up(2, 1)}
    out = write_results(tmp_path / "r", cells, names=["astronaut.png", "rocket.jpg"])
    path = out / "resnet18" / "conv-rest" / "run.json"
    run = json.loads(path.read_text())
    run["segments"][0] |= {"data": "sample", "layout": "sample"}
    path.write_text(json.dumps(run))
    text, _ = page(out, to=tmp_path / "page.html")
    assert text.count("data:image/jpeg") == 2


def test_the_triples_beside_the_paper_cannot_be_sorted_apart(tmp_path):
    out = write_results(tmp_path / "r", {"gradcam": made_up(40, 0)})
    text, _ = page(out, "--against", "paper", "--no-photos", to=tmp_path / "page.html")
    assert "· difference" in text and 'class="sortable"' not in text and "A heading sorts" not in text


def test_only_numbers_are_sorted_by():
    assert [Entry("", value).key for value in (None, float("nan"), float("inf"), 0.5)] == [None] * 3 + [0.5]


def test_both_ends_of_an_interval_stand_in_the_page_as_text(study, tmp_path):
    text, _ = page(study[0], "--no-photos", to=tmp_path / "page.html")
    assert re.search(r'<span class="ends">\d+\.\d\d to \d+\.\d\d</span>', text)


def test_a_small_map_is_min_max_scaled():
    encoded = base64.b64decode(small_map(np.array([[0.0, 1.0], [3.0, 4.0]])))
    assert list(encoded) == [0, 64, 191, 255]


PROBE_BEFORE = """<script>
window.faults = [];
addEventListener("error", (event) => faults.push(event.message));
addEventListener("unhandledrejection", (event) => faults.push(String(event.reason)));
console.error = (...words) => faults.push(words.join(" "));
</script>"""
PROBE_AFTER = """<script>
setTimeout(async () => {
  const table = document.querySelector("table");
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const heading = [...table.tHead.rows[0].cells].find((one) => one.textContent.includes("Com"));
  heading.querySelector("button").click();
  const once = names(), sorted = heading.getAttribute("aria-sort");
  heading.querySelector("button").click();
  const twice = names();
  document.getElementById("scatter-x").value = 2;
  document.getElementById("scatter-x").dispatchEvent(new Event("change"));
  const list = document.getElementById("gallery-list");
  list.value = 2;
  list.dispatchEvent(new Event("change"));
  await new Promise((done) => setTimeout(done, 1500));
  const painted = [...document.querySelectorAll("#gallery-images canvas")].filter((canvas) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(pixels).size > 8;
  }).length;
  const result = {
    faults, once, twice, sorted, painted,
    points: document.querySelectorAll("#scatter-figure circle").length,
    squares: document.querySelectorAll("#scatter-figure rect").length,
    photos: [...document.querySelectorAll("#gallery-images img")].map((one) => one.naturalWidth),
    images: document.querySelectorAll("#gallery-images .image").length,
    hidden: getComputedStyle(document.getElementById("block-choice")).display,
    sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify(result);
  document.body.append(pre);
}, 1500);
</script>"""


def in_browser(path, *, width: int = 1200) -> dict:
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
        "--virtual-time-budget=20000", f"--user-data-dir={path.parent / 'profile'}",
        # What a browser asks of the network at its start hangs where there is none.
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-quic", "--no-first-run",
        "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    probe = re.search(r'<pre id="probe">(.*?)</pre>', found.stdout, re.S)
    assert probe, found.stderr[-2000:]
    return json.loads(html.unescape(probe[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.browser
def test_the_page_works_in_a_browser(study, tmp_path, width):
    text, _ = page(study[0], "--data", study[1], to=tmp_path / "page.html")
    probed = tmp_path / "probed.html"
    text = text.replace("<head>", "<head>" + PROBE_BEFORE).replace("</body>", PROBE_AFTER + "</body>")
    probed.write_text(text, encoding="utf-8")
    result = in_browser(probed, width=width)
    assert result["faults"] == []
    titles = ("GradCAM", "LayerCAM")
    complexity = {title: made_up(IMAGES, seed)["complexity"].mean() for seed, title in enumerate(titles)}
    best_first = sorted(complexity, key=complexity.__getitem__)
    assert result["once"] == best_first and result["sorted"] == "ascending"
    assert result["twice"] == best_first[::-1]
    assert (result["points"], result["squares"]) == (2, 1)
    assert result["images"] == IMAGES and result["photos"] == [160] * IMAGES
    assert result["painted"] == 2 * IMAGES
    assert result["sideways"] <= 0
    assert result["hidden"] == "none"  # one block: nothing to choose
