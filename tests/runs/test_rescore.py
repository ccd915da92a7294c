"""`camkit score`: scores from saved maps are those of one run, for the images that have a map."""

from pathlib import Path

import pandas as pd
from click.testing import CliRunner
from pictures import write_photo

from camkit.cli import main
from camkit.config import RunConfig
from camkit.runs.rescore import rescore

Files = dict[str, Path]


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    return result.exit_code, result.output


def test_scores_from_saved_maps_are_those_of_one_run(
    plugin_files: Files, tmp_path: Path, photos: Path
) -> None:
    words = [
        "--model", "tiny", "--method", "gradcam,shapleycam", "--layer", "prepool", "--steps", 8,
        "--data", photos, "--plugin", plugin_files["mymodel.py"], "--batch-size", 4,
    ]  # fmt: skip
    assert run("bench", *words, "--metrics", "adcc,deletion,shapley", "-o", tmp_path / "one")[0] == 0
    two = tmp_path / "two"
    assert run("bench", *words, "--metrics", "adcc", "--save-maps", "-o", two)[0] == 0
    again = ("--data", photos, "--plugin", plugin_files["mymodel.py"], "--batch-size", 4)
    code, output = run("score", two, "--metrics", "deletion,shapley,average_drop", *again)
    assert code == 0, output
    one, scored = (pd.read_csv(out / "summary.csv") for out in (tmp_path / "one", two))
    assert scored["deletion_auc"].notna().all()
    pd.testing.assert_frame_equal(one, scored[one.columns])


def test_score_says_what_saved_maps_cannot_give(plugin_files: Files, tmp_path: Path, photos: Path) -> None:
    words = [
        "--model",
        "tiny",
        "--data",
        photos,
        "--limit",
        2,
        "--plugin",
        plugin_files["mymodel.py"],
        "-o",
        tmp_path / "a",
    ]
    assert run("bench", *words, "--metrics", "deletion", "--steps", 4, "--save-maps")[0] == 0
    again = ("--data", photos, "--plugin", plugin_files["mymodel.py"])
    code, output = run("score", tmp_path / "a", "--metrics", "adcc", *again)
    assert code == 2
    assert "a changed network: use camkit bench" in output
    write_photo(tmp_path / "other" / "x.png", seed=9)
    elsewhere = ("--data", tmp_path / "other", *again[2:])
    code, output = run("score", tmp_path / "a", "--metrics", "insertion", *elsewhere)
    assert code == 2
    assert "is not the data of this run" in output
    words[-1] = tmp_path / "b"
    assert run("bench", *words, "--metrics", "deletion", "--steps", 4)[0] == 0
    code, output = run("score", tmp_path / "b", "--metrics", "insertion", *again)
    assert code == 2
    assert "no saved maps" in output


def test_scores_from_saved_maps_are_for_the_images_of_each_method(
    plugin_files: Files, tmp_path: Path, photos: Path
) -> None:
    out = tmp_path / "out"
    labels = tmp_path / "labels.csv"
    labels.write_text("image,label\n" + "".join(f"photo_{n}.png,{n}\n" for n in range(6)))
    data = ("--data", photos, "--plugin", plugin_files["mymodel.py"], "--batch-size", 4, "--labels", labels)
    data = (*data, "--classes", "imagenet")
    words = [
        "--model",
        "tiny",
        "--layer",
        "prepool",
        "--steps",
        4,
        "--metrics",
        "deletion",
        "--save-maps",
        *data,
    ]
    assert run("bench", *words, "--method", "gradcam,edges", "--limit", 2, "-o", out)[0] == 0
    assert run("bench", *words, "--method", "layercam", "--limit", 5, "-o", out)[0] == 0
    lines: list[str] = []
    again = {
        "model": (),
        "out": out,
        "metrics": ("insertion",),
        "data": str(photos),
        "labels": labels,
        "plugin": (str(plugin_files["mymodel.py"]),),
        "batch_size": 4,
        "classes": "imagenet",
    }
    summary = rescore(RunConfig(**again, layout="flat"), lines.append)
    found = summary.set_index("method")
    assert found["images"].to_dict() == {"gradcam": 2, "layercam": 5, "edges": 2}
    assert found["insertion_auc"].notna().to_dict() == {"gradcam": True, "layercam": True, "edges": False}
    for method, images in (("gradcam", 2), ("layercam", 5)):
        rows = pd.read_csv(out / "tiny" / "prepool-rest" / f"{method}.csv")
        assert rows["insertion_auc"].count() == images
    assert f"{out / 'tiny' / 'prepool-rest'}: no saved maps of edges (saliency methods have none)" in lines
    rescore(RunConfig(**again), lines.append)
    assert "tiny: nothing to do, all maps have these scores" in lines


WRONG = """
from camkit import metric

@metric("bad", columns={"bad": "higher"})
def bad(subject):
    return {"good": subject.probability}

@metric("explains-again", columns={"same": "higher"})  # and does not say so
def explains_again(subject):
    return {"same": subject.explain_again(subject.images)[0]}

@metric("says-so", columns={"again": "higher"}, explains_again=True)
def says_so(subject):
    return {"again": subject.explain_again(subject.images)[0]}
"""


def test_score_reports_a_metric_that_fails(plugin_files: Files, tmp_path: Path, photos: Path) -> None:
    out, wrong = tmp_path / "out", tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    data = ("--data", photos, "--plugin", plugin_files["mymodel.py"], "--plugin", wrong)
    words = ["--model", "tiny", "--layer", "prepool", "--limit", 2, "--steps", 4, "--metrics", "deletion"]
    assert run("bench", *words, "--method", "gradcam", "--save-maps", *data, "-o", out)[0] == 0
    code, output = run("score", out, "--metrics", "bad,insertion,explains-again", *data)
    assert code == 1
    assert "error: plugin wrong.py: metric 'bad': gives 'good', expected 'bad' (image photo_" in output
    reasons = pd.read_csv(out / "tiny" / "failures.csv")["reason"]
    assert reasons.str.contains("'explains-again': needs maps of changed images, other").sum() == 2
    assert pd.read_csv(out / "summary.csv")["insertion_auc"].notna().all()
    code, output = run("score", out, "--metrics", "says-so", *data)
    assert code == 2 and "a changed network: use camkit bench" in output
