"""A run over data with faults: what is listed, what ends it, and what its CSV files keep."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import small_imagenet as small
from click.testing import CliRunner
from pictures import jpeg, picture, write
from small_imagenet import photos

from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import find_images
from camkit.errors import CamkitError, UsageError
from camkit.results.table import Table, csv_line
from camkit.runs import loop
from camkit.runs.bench import bench

CELL = Path("timm__test_resnet") / "conv-rest"


def config_of(data: Path, out: Path, **settings: object) -> RunConfig:
    """A run that takes a second."""
    chosen = {"model": ("timm/test_resnet",), "method": ("gradcam",), "metrics": ("adcc",), "batch_size": 2}
    return RunConfig(weights="random", device="cpu", data=str(data), out=out, **(chosen | settings))  # type: ignore[arg-type]


def run(data: Path, out: Path, **settings: object) -> list[str]:
    lines: list[str] = []
    bench(config_of(data, out, **settings), say=lines.append)
    return lines


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def images_of(out: Path) -> set[str]:
    return {row["image"] for row in read_rows(out / CELL / "gradcam.csv")}


@pytest.fixture
def some_bad(tmp_path: Path) -> Path:
    """Six good photos and two bad files."""
    root = small.flat(tmp_path / "data")
    write(root / "empty.jpg", b"")
    write(root / "text.jpg", b"no image")
    return root


def test_a_bad_file_is_a_row_in_errors_csv_and_no_end(some_bad: Path, tmp_path: Path) -> None:
    lines = run(some_bad, tmp_path / "out", max_errors=0.5)
    assert images_of(tmp_path / "out") == {path.name for path in some_bad.iterdir() if path.suffix == ".JPEG"}
    rows = read_rows(tmp_path / "out" / "timm__test_resnet" / "errors.csv")
    assert {row["image"]: (row["stage"], row["reason"]) for row in rows} == {
        "empty.jpg": ("read", "empty: 0 bytes"),
        "text.jpg": ("read", "cannot be read: no image format that PIL knows"),
    }
    assert any("2 images could not be read" in line for line in lines)


def test_few_bad_files_never_end_a_run_by_default(some_bad: Path, tmp_path: Path) -> None:
    write(some_bad / "cut.png", b"\x89PNG")
    for _ in range(2):  # the second time there is nothing to do but to try the bad files again
        run(some_bad, tmp_path / "out")
        assert len(images_of(tmp_path / "out")) == 6
    write(some_bad / "fourth.jpg", b"no image")
    with pytest.raises(CamkitError, match=r"4 of 10 images cannot be read, more than --max-errors 1%"):
        run(some_bad, tmp_path / "more")


def test_more_than_max_errors_end_the_run_and_finished_rows_are_kept(some_bad: Path, tmp_path: Path) -> None:
    with pytest.raises(CamkitError, match=r"2 of 8 images cannot be read, more than --max-errors 1%"):
        run(some_bad, tmp_path / "out", max_errors=0.01)
    before = images_of(tmp_path / "out")
    assert before
    run(some_bad, tmp_path / "out", max_errors=0.25)
    assert before < images_of(tmp_path / "out") or len(before) == 6
    assert len(images_of(tmp_path / "out")) == 6


def test_on_error_stop_ends_the_run_at_the_first(some_bad: Path, tmp_path: Path) -> None:
    order = [item.id for item in find_images(str(some_bad), 0).items]
    first_bad = next(place for place, name in enumerate(order) if name.endswith(".jpg"))
    with pytest.raises(CamkitError, match="stopped at an image that cannot be read; finished rows are kept"):
        run(some_bad, tmp_path / "out", on_error="stop", max_errors=1.0, batch_size=1)
    (row,) = read_rows(tmp_path / "out" / "timm__test_resnet" / "errors.csv")
    assert row["image"] == order[first_bad]
    assert images_of(tmp_path / "out") == set(order[:first_bad]) != set()


def test_exit_code_one(some_bad: Path, tmp_path: Path) -> None:
    command = [
        "bench",
        "--model",
        "timm/test_resnet",
        "--weights",
        "random",
        "--metrics",
        "adcc",
        "--workers",
        "0",
    ]
    command += ["--data", str(some_bad), "--out", str(tmp_path / "out"), "--batch-size", "2"]
    stopped = CliRunner().invoke(main, [*command, "--max-errors", "1%"])
    assert (stopped.exit_code, "Traceback" in stopped.output) == (1, False)
    assert "more than --max-errors 1%" in stopped.output
    assert CliRunner().invoke(main, [*command, "--max-errors", "25%"]).exit_code == 0
    assert CliRunner().invoke(main, [*command, "--max-errors", "7"]).exit_code == 2


def test_only_bad_files(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "data" / f"{name}.jpg", photos()[0])
    config = config_of(tmp_path / "data", tmp_path / "out", limit=1)
    (tmp_path / "data" / find_images(config.data, 0).items[0].id).write_bytes(b"")
    with pytest.raises(CamkitError, match="none of the 1 images could be read"):
        bench(config, say=lambda line: None)


def test_an_image_deleted_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = small.flat(tmp_path / "data")
    last = find_images(str(root), 0).items[-1]
    make = loop.load_batches

    def deleting(*details: object) -> object:
        assert isinstance(last.source, Path)
        last.source.unlink()
        return make(*details)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "load_batches", deleting)
    run(root, tmp_path / "out")
    (row,) = read_rows(tmp_path / "out" / "timm__test_resnet" / "errors.csv")
    assert (row["image"], row["reason"]) == (last.id, "cannot be read: No such file or directory")
    assert len(images_of(tmp_path / "out")) == 5


ODD_NAMES = (
    "with space.jpg",
    "comma,semicolon;.jpg",
    "double\"quote'.jpg",
    "new\nline.jpg",
    "carriage\rreturn.jpg",
    "tab\t.jpg",
    "ümläut 猫 🐈.jpg",
    "NA.jpg",
    "-1.jpg",
    "#hash.jpg",
    os.fsdecode(b"latin-1 \xe9.jpg"),
)


@pytest.mark.parametrize("fault", [False, True])
def test_odd_names_survive_the_csv(fault: bool, tmp_path: Path) -> None:
    for place, name in enumerate(ODD_NAMES):
        write(tmp_path / "data" / "ümläut, \n" / name, b"" if fault and place % 2 else jpeg(picture(place)))
    expected = {f"ümläut, \n/{name}" for name in ODD_NAMES}
    for _ in range(2):  # the second time, the first one's rows are read
        run(tmp_path / "data", tmp_path / "out", max_errors=1.0, save_maps=True)
        bad = tmp_path / "out" / "timm__test_resnet" / "errors.csv"
        found = images_of(tmp_path / "out") | ({row["image"] for row in read_rows(bad)} if fault else set())
        assert found == expected
    (summary,) = read_rows(tmp_path / "out" / "summary.csv")
    assert int(summary["images"]) == len(ODD_NAMES) - (len(ODD_NAMES) // 2 if fault else 0)


def test_a_csv_line_comes_back_as_it_was() -> None:
    values = ["a\rb", "c\nd", 'e"f', "g,h", "", " i "]
    line = csv_line(values)
    assert line.endswith("\n") and not line.endswith("\r\n")
    assert next(csv.reader([line])) == values or next(csv.reader(line.splitlines(keepends=True))) == values
    assert csv_line([None, 3]) == ",3\n"


def test_a_table_keeps_names_with_line_breaks(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv", ("image", "label"))
    table.append([{"image": name, "label": "1"} for name in ODD_NAMES])
    assert [key for (key,) in Table(tmp_path / "t.csv", ("image", "label")).known] == list(ODD_NAMES)


# -- the options ------------------------------------------------------------------------------------------


def cell_record(out: Path) -> dict:
    return json.loads((out / CELL / "run.json").read_text())


def test_run_json_says_what_the_data_were(tmp_path: Path) -> None:
    small.flat(tmp_path / "val")
    small.kaggle_solution(tmp_path)
    run(tmp_path / "val", tmp_path / "out", target="label")
    record = cell_record(tmp_path / "out")
    assert record["protocol"]["exif"] == "ignore"
    assert record["segments"][0]["layout"] == "flat"
    assert record["segments"][0]["labels"] == "LOC_val_solution.csv"


@pytest.mark.parametrize("changed", ["exif", "labels"])
def test_one_results_folder_holds_one_reading_of_the_data(changed: str, tmp_path: Path) -> None:
    root = small.named_flat(tmp_path / "val")
    run(root, tmp_path / "out")
    first = sorted(path.name for path in root.iterdir())[0]
    labels = write(tmp_path / "labels.csv", f"image,label\n{first},n01491361\n")
    settings = {"exif": {"exif": "apply"}, "labels": {"labels": labels}}[changed]
    with pytest.raises(UsageError, match="exif" if changed == "exif" else "data fingerprint"):
        run(root, tmp_path / "out", **settings)


def test_exif_apply_turns_the_photos(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "data" / "a.jpg", jpeg(picture(8, (300, 200)), exif=exif))
    write(tmp_path / "turned" / "a.jpg", jpeg(picture(8, (300, 200)).transpose(Image.Transpose.ROTATE_270)))

    def probability(data: str, exif: str) -> float:
        out = tmp_path / f"{data}-{exif}"
        run(tmp_path / data, out, exif=exif)
        (row,) = read_rows(out / CELL / "gradcam.csv")
        return float(row["complexity"])

    turned = probability("turned", "ignore")
    assert probability("data", "apply") == pytest.approx(turned, abs=0.01)
    assert abs(probability("data", "ignore") - turned) > 0.02


def test_the_layout_can_be_named_in_a_config_file(tmp_path: Path) -> None:
    write(tmp_path / "data" / "340" / "a.jpeg", photos()[0])
    lines = [
        "layout = 'imagenet-v2'",
        "max-errors = '5%'",
        "model = 'timm/test_resnet'",
        "weights = 'random'",
    ]
    lines += ["target = 'label'", "metrics = 'adcc'", "workers = 0", f"data = '{tmp_path / 'data'}'"]
    config = write(tmp_path / "run.toml", "\n".join([*lines, f"out = '{tmp_path / 'out'}'"]))
    result = CliRunner().invoke(main, ["bench", "--config", str(config), "--method", "gradcam"])
    assert result.exit_code == 0, result.output
    (row,) = read_rows(tmp_path / "out" / CELL / "gradcam.csv")
    assert (row["image"], row["label"]) == ("340/a.jpeg", "340")
