"""Figures: which files, that they can be read, and the groups of the critical-difference picture."""

import numpy as np
from click.testing import CliRunner
from PIL import Image, ImageSequence
from report_data import blind, made_up, write_results

from camkit.cli import main
from camkit.report.figures import Explained, saliency_figure, save_figure
from camkit.report.plots import alike


def test_plot_writes_every_figure_in_every_format(tmp_path):
    for number, model in enumerate(("resnet18", "vgg16")):
        cells = {"gradcam": made_up(40, number), "layercam": made_up(40, 9), "flat": blind(40, 0.3, 0.2)}
        write_results(tmp_path / "r", cells, model=model)
    found = CliRunner().invoke(main, ["plot", str(tmp_path / "r"), "-o", str(tmp_path / "figures")])
    assert found.exit_code == 0, found.output
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    stems = {f"{model}-conv-rest-{kind}" for model in ("resnet18", "vgg16") for kind in ("scores", "scatter")}
    stems |= {f"ranks-conv-rest-{column}" for column in ("adcc", "average_drop", "coherency", "complexity", "drop_in_deletion", "increase")}  # fmt: skip # noqa: E501
    assert written == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg", "pdf")}
    for path in (tmp_path / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
    svg = (tmp_path / "figures" / "vgg16-conv-rest-scatter.svg").read_text()
    assert ">LayerCAM<" in svg and ">Flat<" in svg
    assert (tmp_path / "figures" / "vgg16-conv-rest-scores.pdf").read_bytes().startswith(b"%PDF")


def test_figures_of_folders_with_the_same_name_do_not_overwrite_each_other(tmp_path):
    for folder in ("a/run", "b/run"):
        for model in ("resnet18", "vgg16"):
            cells = {"gradcam": made_up(20, 0), "layercam": made_up(20, 1)}
            write_results(tmp_path / folder, cells, model=model)
    arguments = [
        "plot",
        tmp_path / "a/run",
        tmp_path / "b/run",
        "-o",
        tmp_path / "figures",
        "--format",
        "svg",
    ]
    found = CliRunner().invoke(main, list(map(str, arguments)))
    assert found.exit_code == 0, found.output
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert len(written) == len(found.output.splitlines()) == 2 * (2 * 2 + 6)
    assert {"a__run-vgg16-conv-rest-scores.svg", "ranks-conv-rest-b__run-adcc.svg"} <= written


def test_groups_that_cannot_be_told_apart():
    # 1 and 2 are within 1.5 of each other, 2 and 3.2 too, 5 of none.
    assert alike(np.array([3.2, 1.0, 5.0, 2.0]), 1.5) == [(1.0, 2.0), (2.0, 3.2)]
    assert alike(np.array([1.0, 2.0, 3.0]), 9.0) == [(1.0, 3.0)]
    assert alike(np.array([1.0, 3.0]), 1.5) == []


def test_scores_stand_below_the_maps_and_colours_are_as_asked(tmp_path):
    photo = np.zeros((8, 8, 3), dtype=np.uint8)
    maps = {"gradcam": np.ones((8, 8))}
    figures = []
    for scores, colours in (
        ({}, "inferno"),
        ({"gradcam": {"average_drop": 0.138, "probability": 1.0}}, "jet"),
    ):
        figure = saliency_figure([Explained(photo, photo, photo, "cat, 40.0 %", maps, scores)], colours)
        figures.append(figure)
        save_figure(figure, tmp_path / f"{colours}.svg")
    assert figures[1].get_figheight() > figures[0].get_figheight()
    words = [text.get_text() for axis in figures[1].axes for text in axis.texts]
    assert words == ["AD ↓ 13.8"]
    assert figures[1].axes[1].images[1].get_cmap().name == "jet"


def test_many_maps_of_a_photo_take_several_lines(tmp_path):
    photo = np.zeros((8, 8, 3), dtype=np.uint8)
    maps = {f"method-{number}": np.full((8, 8), number / 23) for number in range(23)}
    rows = [Explained(photo, photo, photo, title, maps) for title in ("cat, 40.0 %", "dog, 9.0 %")]
    figure = saliency_figure(rows)
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) == 2 * 3 * (1 + 8)
    for place, row in enumerate(rows):
        lines = [titles[9 * line : 9 * line + 9] for line in range(3 * place, 3 * place + 3)]
        assert [line[0] for line in lines] == [row.title, "", ""]
        assert [title for line in lines for title in line[1:]] == [*maps, ""]
    shown = [axis.images[1].get_array().flat[0] for axis in figure.axes if len(axis.images) > 1]
    assert shown == 2 * [number / 23 for number in range(23)]


def test_a_moving_picture_of_deletion_and_insertion(tmp_path, photos):
    model = ["--model", "timm/resnet10t", "--weights", "random", "--device", "cpu"]
    written = ["-o", str(tmp_path / "x.png"), "--gif", str(tmp_path / "x.gif")]
    command = ["explain", str(sorted(photos.iterdir())[0]), *model, *written, "--method", "gradcam"]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0, found.output
    with Image.open(tmp_path / "x.gif") as moving:
        frames = [np.asarray(frame.convert("L"), float) for frame in ImageSequence.Iterator(moving)]
    assert len(frames) == 29
    deletion = [frame[:, : frame.shape[1] // 3] for frame in frames]
    left = [np.abs(picture - deletion[-1]).mean() for picture in deletion]
    assert left[0] > left[14] > left[-2] > 0

    found = CliRunner().invoke(main, ["explain", str(photos), *model, *written, "--method", "paper"])
    assert found.exit_code == 2 and "60 maps, at most 24" in found.output


def test_explain_takes_a_folder_and_scores_it(tmp_path, photos):
    out = tmp_path / "picture.png"
    arguments = (
        "--model timm/resnet10t --weights random --method gradcam,flat --scores --cmap viridis --device cpu"
    )
    found = CliRunner().invoke(main, ["explain", str(photos), *arguments.split(), "-o", str(out)])
    assert found.exit_code == 0, found.output
    with Image.open(out) as image:
        width, height = image.size
    assert height > 6 * 1.9 * 110 and width > 3 * 1.5 * 110
