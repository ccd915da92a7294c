"""Class lists: where they come from, what they name, and what they are for."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import small_imagenet as small
from click.testing import CliRunner
from small_imagenet import WNIDS, labels_of, number_folders, photos, write
from tiny import silent

from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import ClassList, find_images, imagenet
from camkit.data.classfiles import read_class_file
from camkit.data.subset import take
from camkit.errors import UsageError
from camkit.runs.accuracy import measure_top1
from camkit.runs.bench import bench

# -- the list -----------------------------------------------------------------------------------------------


def test_the_digest_is_of_names_wnids_and_their_order() -> None:
    ours = ClassList("names.txt", ("cat", "dog"))
    assert ours.digest == ClassList("other.csv", ("cat", "dog")).digest
    # sha256 of "cat\0\ndog\0\n": it stands in results, and may not change.
    assert ours.digest == "5a68abc06d258827df986e7e252fe236a56514e846c12e77915c90820d2266eb"
    others = [("dog", "cat"), ("cat", "dogs"), ("cat", "dog", "ant"), ("catdog", "")]
    digests = {ClassList("names.txt", names).digest for names in others}
    digests.add(ClassList("names.txt", ("cat", "dog"), ("n00000001", "n00000002")).digest)
    assert len(digests | {ours.digest}) == len(others) + 2
    assert len(imagenet()) == len(ours) + 998


def test_names_of_classes() -> None:
    assert imagenet().short_name(628) == "liner"
    assert ClassList("names.txt", ("red, ripe", "green")).short_name(0) == "red, ripe"
    assert (imagenet().title, ClassList("names.txt", ("a", "b")).title) == ("ImageNet-1k", "names.txt")


def test_own_names_may_differ_in_case_only() -> None:
    ours = ClassList("names.txt", ("Cat", "cat", "Dog house"))
    assert [ours.index_of(name) for name in ("Cat", "cat", "dog_house", "2.0")] == [0, 1, 2, 2]
    with pytest.raises(UsageError, match=r"'CAT' is the name of classes 0 \(Cat\) and 1 \(cat\)"):
        ours.index_of("CAT")
    with pytest.raises(UsageError, match="label 3 is no class of names.txt: indices go from 0 to 2"):
        ours.index_of("3")


def test_imagenets_names_may_not() -> None:
    """The cardigan is a jacket, the Cardigan a dog."""
    for name in ("Cardigan", "cardigan"):
        with pytest.raises(UsageError, match="is the name of classes 264 .* and 474"):
            imagenet().index_of(name)


def test_a_number_that_is_also_a_name_is_refused() -> None:
    with pytest.raises(
        UsageError, match="'1' is an index of the class folders, and also the name of class 0"
    ):
        ClassList("folders", ("1", "2", "10")).index_of("1")
    assert ClassList("folders", ("0", "1", "10")).index_of("1") == 1


# -- --classes FILE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "cat\ndog\nsea lion\n"),
        ("names.txt", "\ufeffcat\r\ndog\r\nsea lion\r\n\r\n"),
        ("names", "cat\ndog\nsea lion"),
        ("names.json", '["cat", "dog", "sea lion"]'),
        ("names.json", '{"0": "cat", "2": "sea lion", "1": "dog"}'),
        ("names.json", '{"dog": 1, "cat": 0, "sea lion": 2}'),
        ("names.csv", "index,name\n2,sea lion\n0,cat\n1,dog\n"),
        ("names.csv", "name; index\ncat; 0\ndog; 1\nsea lion; 2\n"),
        ("names.tsv", "Index\tName\n0\tcat\n1.0\tdog\n2\tsea lion\n"),
    ],
)
def test_a_class_file(file: str, text: str, tmp_path: Path) -> None:
    found = read_class_file(write(tmp_path / file, text))
    assert (found.name, found.names, found.wnids) == (file, ("cat", "dog", "sea lion"), ())


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("names.csv", "index,name,wnid\n1,dog,n02084071\n0,cat,n02121620\n", ("cat", "dog")),
        ("names.json", '{"0": ["n02121620", "cat"], "1": ["n02084071", "dog"]}', ("cat", "dog")),
        ("synset_words.txt", "n02121620 cat\nn02084071 dog\n", ("cat", "dog")),
        ("wnids.txt", "n02121620\nn02084071\n", ("n02121620", "n02084071")),
    ],
)
def test_a_class_file_with_wnids(file: str, text: str, names: tuple[str, str], tmp_path: Path) -> None:
    found = read_class_file(write(tmp_path / file, text))
    assert (found.names, found.wnids) == (names, ("n02121620", "n02084071"))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.txt", "", "there is no class in it"),
        ("a.txt", "cat\n\ndog\n", "class 1 has no name"),
        ("a.json", "{", "no JSON file"),
        ("a.json", "3", "expected {index: name} or a list of names"),
        ("a.json", '["cat", 3]', "expected a class's name, or .*; found 3"),
        ("a.json", '{"a": "cat"}', "the index of 'cat' is 'a', no whole number"),
        ("a.csv", "index,name\n1,cat\n2,dog\n", "no class has the index 0; they are counted from 1"),
        ("a.csv", "index,name\n0,cat\n2,dog\n", "no class has the index 1$"),
        ("a.csv", "index,name\n0,cat\n0,dog\n", "two classes have the index 0"),
        ("a.csv", "class,name\n0,cat\n", "no 'index'; its columns: class, name"),
        ("a.csv", "index,name,wnid\n0,cat,n02121620\n1,dog,\n", "class 1 has no wnid, and others have one"),
        ("a.csv", "index,name,wnid\n0,cat,n1\n", "'n1' is no wnid"),
        ("a.csv", "index,name,wnid\n0,a,n02121620\n1,b,n02121620\n", "two classes have the wnid n02121620"),
    ],
)
def test_a_class_file_with_a_fault(file: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_class_file(write(tmp_path / file, text))


def test_a_class_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected imagenet, folders or a file of class names; there is no"):
        find_images(str(small.flat(tmp_path)), seed=0, classes="imagnet")


def own_folders(root: Path) -> Path:
    for place, name in enumerate(("cat", "Dog", "ant")):
        write(root / name / "deep" / f"{place}.jpg", photos()[place])
    return root


def test_folders_named_by_classes_of_a_file(tmp_path: Path) -> None:
    write(own_folders(tmp_path / "data") / "zebu" / "3.jpg", photos()[3])
    names = write(tmp_path / "names.txt", "dog\ncat\nant\n")
    data = find_images(str(tmp_path / "data"), seed=0, classes=str(names))
    found = {"cat/deep/0.jpg": 1, "Dog/deep/1.jpg": 0, "ant/deep/2.jpg": 2, "zebu/3.jpg": None}
    assert (data.layout, labels_of(data), data.classes.name) == ("folders", found, "names.txt")
    assert "no folder that is named as a class" in data.unlabelled["zebu/3.jpg"]


def test_wnid_folders_have_the_indices_of_the_list_named(tmp_path: Path) -> None:
    listed = list(dict.fromkeys(reversed(WNIDS)))
    path = write(tmp_path / "wnids.txt", "\n".join(listed[:-1]))  # all but the first photo's
    data = find_images(str(small.wnid_folders(tmp_path / "data")), seed=0, classes=str(path))
    assert {item.id.split("/")[0]: item.label for item in data.items} == {
        wnid: listed.index(wnid) if wnid != WNIDS[0] else None for wnid in WNIDS
    }
    assert set(data.unlabelled.values()) == {f"{WNIDS[0]} is no class of wnids.txt"}


def test_labels_of_a_file_in_a_list_of_ones_own(tmp_path: Path) -> None:
    own_folders(tmp_path / "data")
    names = write(tmp_path / "names.json", '["ant", "cat", "dog", "zebu"]')
    labels = write(tmp_path / "labels.csv", "image,label\n0.jpg,cat\n1.jpg,2\n2.jpg,0\n")
    data = find_images(str(tmp_path / "data"), seed=0, labels=labels, classes=str(names))
    assert labels_of(data) == {"cat/deep/0.jpg": 1, "Dog/deep/1.jpg": 2, "ant/deep/2.jpg": 0}


# -- --classes folders --------------------------------------------------------------------------------------


def test_folders_are_numbered_as_torchvision_numbers_them(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    root = own_folders(tmp_path)
    for number in ("10", "9", "n01440764"):
        write(root / number / "x.jpg", photos()[3])
    data = find_images(str(root), seed=0, classes="folders")
    theirs = ImageFolder(str(root))
    samples = {Path(path).relative_to(root).as_posix(): label for path, label in theirs.samples}
    assert labels_of(data) == samples
    assert data.classes.names == tuple(theirs.classes)
    assert any("0 10, 1 9, 2 Dog, 3 ant, 4 cat, 5 n01440764" in note for note in data.notes)


def test_folders_named_by_wnids_are_numbered_like_any_and_keep_their_wnids(tmp_path: Path) -> None:
    """As a network trained on Imagenette's ten folders has them."""
    data = find_images(str(small.wnid_folders(tmp_path)), seed=0, classes="folders")
    assert data.classes.wnids == tuple(sorted(set(WNIDS)))
    assert {item.id.split("/")[0]: item.label for item in data.items} == {
        wnid: index for index, wnid in enumerate(sorted(set(WNIDS)))
    }


def test_a_class_folder_without_images_keeps_its_number(tmp_path: Path) -> None:
    (own_folders(tmp_path) / "bee").mkdir()
    data = find_images(str(tmp_path), seed=0, classes="folders")
    assert labels_of(data)["cat/deep/0.jpg"] == 3
    assert any("without images: bee" in note for note in data.notes)


def test_class_folders_in_a_split_and_in_an_archive(tmp_path: Path) -> None:
    for split in ("train", "val"):
        own_folders(tmp_path / "own" / split)
    write(tmp_path / "own" / "val" / "stray.jpg", photos()[5])
    found = labels_of(find_images(str(tmp_path / "own"), seed=0, classes="folders"))
    assert found.pop("val/stray.jpg") is None
    assert found == {"val/Dog/deep/1.jpg": 0, "val/ant/deep/2.jpg": 1, "val/cat/deep/0.jpg": 2}
    small.make_tar(tmp_path / "own.tar", {f"{name}/x.jpg": photos()[0] for name in ("ant", "cat")})
    found = labels_of(find_images(str(tmp_path / "own.tar"), seed=0, classes="folders"))
    assert found == {"ant/x.jpg": 0, "cat/x.jpg": 1}


def test_splits_whose_folders_differ_have_no_one_numbering(tmp_path: Path) -> None:
    for split in ("Train", "val"):
        own_folders(tmp_path / split)
    write(tmp_path / "Train" / "bee" / "x.jpg", photos()[0])
    with pytest.raises(UsageError, match=r"Train/ and val/ in .* differ in their folders \(bee\)"):
        find_images(str(tmp_path), seed=0, classes="folders")


def test_where_there_are_no_class_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no folders; name the folder whose folders are the classes"):
        find_images(str(small.flat(tmp_path / "flat")), seed=0, classes="folders")
    write(tmp_path / "one" / "cat" / "x.jpg", photos()[0])
    with pytest.raises(UsageError, match="holds one folder, 'cat'"):
        find_images(str(tmp_path / "one"), seed=0, classes="folders")
    with pytest.raises(UsageError, match="imagenet-v2 numbers its classes itself"):
        find_images(
            str(number_folders(tmp_path / "v2", range(3))), 0, layout="imagenet-v2", classes="folders"
        )
    with pytest.raises(UsageError, match="the sample photos take --classes FILE"):
        find_images("sample", seed=0, classes="folders")


def test_folders_of_photos_are_no_classes_unless_that_is_said(tmp_path: Path) -> None:
    data = find_images(str(own_folders(tmp_path)), seed=0)
    assert set(labels_of(data).values()) == {None}
    assert any("--classes folders takes them so" in note for note in data.notes)


# -- what a list is for -------------------------------------------------------------------------------------


def test_a_data_set_has_imagenets_list_unless_another_is_named(tmp_path: Path) -> None:
    assert find_images("sample", seed=0).classes is imagenet()
    assert find_images(str(small.flat(tmp_path / "flat")), seed=0).classes is imagenet()
    names = write(tmp_path / "names.txt", "cat\ndog\n")
    assert find_images("sample", seed=0, classes=str(names)).classes.names == ("cat", "dog")


def test_check_names_the_classes_of_the_list(tmp_path: Path) -> None:
    words = [
        "data",
        "check",
        str(own_folders(tmp_path)),
        "--classes",
        "folders",
        "--workers",
        "0",
        "--format",
    ]
    report = json.loads(CliRunner().invoke(main, [*words, "json"]).stdout)
    assert report["classes"] == [
        {"class": index, "wnid": None, "name": name, "images": 1}
        for index, name in enumerate(("Dog", "ant", "cat"))
    ]
    assert "class,0 Dog,1" in CliRunner().invoke(main, [*words, "csv"]).stdout


def test_top1_is_refused_where_model_and_list_differ(tmp_path: Path) -> None:
    data = find_images(str(own_folders(tmp_path)), seed=0, classes="folders")
    config = RunConfig(model=("timm/test_resnet",), weights="random", device="cpu")
    with pytest.raises(UsageError, match="has 1000 classes, the class folders 3"):
        measure_top1("timm/test_resnet", data, config, 4, silent)


def test_a_sample_has_folders_named_by_the_classes(tmp_path: Path) -> None:
    names = write(tmp_path / "names.txt", "dog\n../cat\nant\n")
    labels = write(tmp_path / "labels.csv", "image,label\n0.jpg,../cat\n1.jpg,dog\n2.jpg,ant\n")
    data = find_images(str(own_folders(tmp_path / "own")), seed=0, labels=labels, classes=str(names))
    taken = take(data, 1, tmp_path / "out", seed=0, copy=True, say=silent)
    assert sorted(file for _, file, _ in taken) == ["_._cat/0.jpg", "ant/2.jpg", "dog/1.jpg"]


def test_a_run_takes_the_list_and_one_folder_holds_one(tmp_path: Path) -> None:
    data, out = str(own_folders(tmp_path / "own")), tmp_path / "out"
    # As many as the model has outputs.
    names = ["Dog", "ant", "cat", *(f"thing {number}" for number in range(997))]
    listed = str(write(tmp_path / "names.txt", "\n".join(reversed(names))))
    config = RunConfig(
        model=("timm/test_resnet",), method=("gradcam",), weights="random", metrics=("adcc",), target="label",
        data=data, classes=listed, batch_size=3, out=out, device="cpu",
        save_maps=True,
    )  # fmt: skip
    bench(config, say=silent)
    with (out / "timm__test_resnet" / "conv-rest" / "gradcam.csv").open(newline="") as file:
        found = {row["image"]: row["target"] for row in csv.DictReader(file)}
    assert found == {"Dog/deep/1.jpg": "999", "ant/deep/2.jpg": "998", "cat/deep/0.jpg": "997"}
    for command, words in (("verify", ["--workers", "0"]), ("score", ["--metrics", "insertion"])):
        words = [command, str(out), "--data", data, *words]
        assert "another fingerprint" in CliRunner().invoke(main, words).output
        result = CliRunner().invoke(main, [*words, "--classes", listed])
        assert result.exit_code == 0, result.output
    words = ["report", str(out), "--data", data, "-o", str(tmp_path / "page.html")]
    said = "is not what these results were made with"
    assert said not in CliRunner().invoke(main, words).output  # the results keep the list
    assert said not in CliRunner().invoke(main, [*words, "--classes", listed]).output
    assert said in CliRunner().invoke(main, [*words, "--classes", "imagenet"]).output
    with (out / "timm__test_resnet" / "predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert row["predicted_name"] == names[999 - int(row["predicted"])]


def test_the_command_of_a_run_shows_a_files_name_only(tmp_path: Path) -> None:
    config = RunConfig(model=("resnet18",), classes=str(tmp_path / "names.txt"), image_column="jpg")
    assert config.command() == "camkit bench --model resnet18 --classes names.txt --image-column jpg"
    for word in ("folders", "imagenet"):
        assert f"--classes {word}" in RunConfig(model=("resnet18",), classes=word).command()
