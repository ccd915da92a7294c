"""The command line: options and where they come from, exit codes, messages, help, and what is printed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from pictures import write_photo
from PIL import Image
from places import ROOT
from tiny import TINY as TINY_OPTIONS

import camkit.runs.bench
from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import find_images
from camkit.entries import METHODS, UTILITIES
from camkit.errors import CamkitError
from camkit.option import GROUPS

MODEL = (
    *("--model", TINY_OPTIONS["model"][0], "--weights", "random", "--preprocess", "native"),
    *("--device", "cpu"),
)
TINY = (*MODEL, "--steps", "3", "--workers", "0")
PAPER = (
    "gradcam", "gradcam++", "xgradcam", "layercam", "gradcam-e", "hirescam", "shapleycam", "shapleycam-h",
    "shapleycam-e", "randomcam",
)  # fmt: skip


def call(*arguments: object, **settings: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **settings)


def wrong(result: Result, code: int = 2) -> str:
    """The message of a failed command: one or two lines (below click's own usage), no traceback."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    message = re.split(r"^error: |^Error: ", result.stderr, maxsplit=1, flags=re.MULTILINE)[1]
    assert len(message.strip().splitlines()) <= 2
    return message


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = [(path, group)]
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
        else:
            found.append(((*path, name), command))
    return found


CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
COMMANDS = commands()
NAMES = [" ".join(("camkit", *path)) for path, _ in COMMANDS]


@pytest.fixture
def config_of(monkeypatch: pytest.MonkeyPatch):
    """What `camkit bench` asks for, without doing it."""

    class Asked(CamkitError):
        def __init__(self, config: RunConfig) -> None:
            super().__init__("asked")
            self.config = config

    def ask(config: RunConfig, say: object) -> None:
        raise Asked(config)

    monkeypatch.setattr(camkit.runs.bench, "bench", ask)

    def read(*arguments: object) -> RunConfig:
        kept: list[RunConfig] = []
        monkeypatch.setattr("camkit.cli._message", lambda error: kept.append(error.config) or "asked")
        result = call("bench", *arguments)
        assert kept, result.output
        return kept[0]

    return read


class TestHelp:
    @pytest.mark.parametrize(("path", "command"), COMMANDS, ids=NAMES)
    def test_every_help_text_has_an_example(self, path: tuple[str, ...], command: click.Command) -> None:
        result = call(*path, "--help")
        assert result.exit_code == 0
        assert re.search(rf"Examples?:\n +camkit {' '.join(path)}", result.stdout), result.stdout
        assert (command.help or "").strip()

    @pytest.mark.parametrize(("path", "command"), COMMANDS, ids=NAMES)
    def test_every_option_is_explained(self, path: tuple[str, ...], command: click.Command) -> None:
        options = [p for p in command.params if isinstance(p, click.Option)]
        unexplained = [p.name for p in options if not p.help and not isinstance(p.type, click.Choice)]
        assert not unexplained

    def test_the_examples_of_bench_parse(self, config_of) -> None:
        help_text = call("bench", "--help").stdout
        lines = [
            line.split() for line in help_text.splitlines() if line.strip().startswith("camkit bench --model")
        ]
        assert len(lines) >= 2
        for words in lines:
            assert config_of(*words[2:]).model

    def test_help_and_version_import_no_torch(self) -> None:
        code = (
            "import sys\n"
            "from camkit.cli import main\n"
            "for arguments in (['--help'], ['bench', '--help'], ['explain', '-h'], ['--version']):\n"
            "    main(arguments, standalone_mode=False)\n"
            "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'pandas', 'scipy', 'matplotlib', 'PIL'}\n"
            "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def flags(command: click.Command) -> list[str]:
    """The options of a command as its help shows them: by their groups, the long name only."""
    options = [one for one in command.params if isinstance(one, click.Option)]
    grouped = [one for title in (*GROUPS, "") for one in options if getattr(one, "group", "") == title]
    return [max(one.opts, key=len) for one in grouped]


class TestDocuments:
    def test_readmes_table_has_the_options_of_bench_in_the_order_of_its_help(self) -> None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        assert re.findall(r"^\| `(--[a-z0-9-]+)`", text, re.MULTILINE) == flags(main.commands["bench"])

    @pytest.mark.parametrize(("path", "command"), COMMANDS, ids=NAMES)
    def test_the_changelog_has_every_commands_options(
        self, path: tuple[str, ...], command: click.Command
    ) -> None:
        if isinstance(command, click.Group):
            return
        text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("\n  ", " ")
        line = next(line for line in text.splitlines() if line.startswith(f"- `camkit {' '.join(path)}"))
        named = re.findall(r"--[a-z0-9-]+", line.partition("`: ")[2])
        assert sorted(set(named) - {"--slurm-"}) == sorted(flags(command))


class TestOptions:
    def test_a_plugin_whose_path_has_a_comma_is_one_file(self, config_of, tmp_path: Path) -> None:
        mine = tmp_path / "mine, first.py"
        mine.write_text("")
        assert config_of("--model", "resnet50", "--plugin", mine).plugin == (str(mine),)
        assert config_of("--model", "resnet50", "--plugin", "a.py,b.py").plugin == ("a.py", "b.py")

    def test_out_is_a_link_to_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "out").symlink_to(tmp_path / "gone")
        result = call("bench", "--model", "tf_efficientnet_lite0", "-o", tmp_path / "out")
        assert result.exit_code == 2
        assert f"out is a link to {tmp_path / 'gone'}, which does not exist" in result.stderr

    def test_defaults(self, config_of) -> None:
        config = config_of("--model", "resnet50")
        assert config.model == ("resnet50",)
        assert config.method == ("shapleycam",)
        assert config.layer == ("conv",)
        assert config.utility == ("rest",)
        assert config.target == "predicted"
        assert config.metrics == ("adcc", "deletion", "insertion")
        assert config.steps == 224
        assert config.data == "sample"
        assert config.weights == "pretrained"
        assert config.preprocess == "paper"
        assert config.dtype == "float32"
        assert config.out == Path("results/local")
        assert config.limit is None
        assert not config.save_maps

    def test_lists_by_comma_and_by_repetition(self, config_of) -> None:
        config = config_of(
            *("--model", "resnet18,vgg16", "--model", "swin_t", "--method", "gradcam, layercam,"),
            *("--method", "gradcam", "--layer", "conv", "--layer", "prepool,layer4[-1].conv2"),
            *("--utility", "logit,rest", "--metrics", "adcc", "--metrics", "deletion"),
        )
        assert config.model == ("resnet18", "vgg16", "swin_t")
        assert config.method == ("gradcam", "layercam")
        assert config.layer == ("conv", "prepool", "layer4[-1].conv2")
        assert config.utility == ("logit", "rest")
        assert config.metrics == ("adcc", "deletion")

    def test_data_from_the_environment(self, config_of, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CAMKIT_DATA", "/data/imagenet/val")
        assert config_of("--model", "resnet18").data == "/data/imagenet/val"
        assert config_of("--model", "resnet18", "--data", "sample").data == "sample"

    def test_config_file_and_what_wins(self, config_of, tmp_path: Path) -> None:
        path = tmp_path / "run.toml"
        path.write_text(
            'model = ["resnet18", "vgg16"]\nmethod = "gradcam,layercam"\nsteps = 28\nbatch-size = 8\n'
            'save_maps = true\nlimit = 100\nout = "elsewhere"\ndata = "photos"\n'
        )
        config = config_of("--config", path)
        assert config.model == ("resnet18", "vgg16")
        assert config.method == ("gradcam", "layercam")
        assert (config.steps, config.batch_size, config.limit) == (28, 8, 100)
        assert config.save_maps
        assert (config.out, config.data) == (Path("elsewhere"), "photos")
        assert config.utility == ("rest",)
        for order in (("--config", path, "--steps", 7), ("--steps", 7, "--config", path)):
            assert config_of(*order, "--model", "swin_t").steps == 7
            assert config_of(*order, "--model", "swin_t").model == ("swin_t",)

    def test_a_config_file_stands_above_the_environment(
        self, config_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CAMKIT_DATA", "/data/imagenet/val")
        (tmp_path / "run.toml").write_text('data = "photos"\n')
        assert config_of("--model", "resnet18", "--config", tmp_path / "run.toml").data == "photos"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('modell = "resnet18"', "unknown option 'modell'"),
            ("model = ", "not valid TOML"),
            ('model = "resnet18"\nsteps = "many"', "'many' is not a valid integer"),
            ('model = "resnet18"\ntarget = "nearest"', "unknown target 'nearest'"),
        ],
    )
    def test_faults_in_a_config_file(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "run.toml").write_text(text)
        assert message in wrong(call("bench", "--config", tmp_path / "run.toml"))

    def test_a_config_file_that_is_not_there(self) -> None:
        assert "No such file" in wrong(call("bench", "--config", "nowhere.toml"))

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
    def test_the_projects_own_configs(self, config_of, path: Path) -> None:
        config = config_of("--config", path)
        assert config.model
        assert path.read_text().startswith("#")

    def test_the_commands_own_record_makes_the_same_run(self, config_of) -> None:
        given = ("--model", "resnet18,vgg16", "--steps", 7, "--save-maps", "--limit", 3, "--layer", "prepool")
        given += ("--data", "my photos", "--weights", "it's.pth")
        config = config_of(*given, "--workers", 0)
        words = shlex.split(config.command())
        assert words[:2] == ["camkit", "bench"]
        assert config_of(*words[2:], "--workers", 0) == config


class TestWrongUsage:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("--model", "resnet5"), ("'resnet5'", "Did you mean 'resnet50'?", "mobilenet_v2")),
            (
                ("--model", "resnet18", "--method", "gradcan"),
                ("'gradcan'", "'gradcam'", "shapleycam-h", "paper"),
            ),
            (("--model", "resnet18", "--utility", "logits"), ("'logits'", "'logit'", "log-softmax")),
            (("--model", "resnet18", "--metrics", "adc"), ("'adc'", "'adcc'", "insertion")),
            (("--model", "resnet18", "--target", "top"), ("'top'", "correct")),
            (("--model", "resnet18", "--device", "cuda:77"), ("cuda:77",)),
            (("--model", "resnet18", "--device", "gpu"), ("gpu",)),
            (("--model", "resnet18", "--data", "nowhere"), ("nowhere", "no such")),
            (("--model", "resnet18", "--limit", "0"), ("--limit",)),
            (("--model", "resnet18", "--batch-size", "-1"), ("--batch-size",)),
            ((), ("--model",)),
            (("--model", "resnet18", "--modell", "x"), ("--modell", "--model")),
        ],
    )
    def test_names_and_numbers(self, arguments: tuple[str, ...], expected: tuple[str, ...]) -> None:
        message = wrong(call("bench", "--weights", "random", *arguments))
        for words in expected:
            assert words in message

    @pytest.mark.parametrize(
        ("layer", "expected"),
        [
            ("features.9", "'features.9'"),
            ("feature", "Did you mean 'features'?"),
            ("pool", "gives (1, 16, 1, 1)"),
            ("fc", "gives (1, 1000)"),
        ],
    )
    def test_layers(self, photos: Path, tmp_path: Path, layer: str, expected: str) -> None:
        message = wrong(call("bench", *TINY, "--data", photos, "--layer", layer))
        assert expected in message
        assert not list(tmp_path.glob("results/local/*/*/*.csv"))

    @pytest.mark.parametrize("steps", [0, -3, 64 * 64 + 1])
    def test_steps(self, photos: Path, steps: int) -> None:
        message = wrong(call("bench", *TINY, "--data", photos, "--steps", steps))
        assert "4096, the number of pixels" in message

    def test_a_folder_without_images(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "notes.txt").write_text("no image")
        message = wrong(call("bench", *TINY, "--data", tmp_path / "data"))
        assert "no images" in message

    @pytest.mark.parametrize("target", ["label", "correct"])
    def test_targets_that_need_labels(self, photos: Path, target: str) -> None:
        message = wrong(call("bench", *TINY, "--data", photos, "--target", target))
        assert f"--target {target} needs labels" in message

    def test_a_weights_file_that_does_not_fit(self, photos: Path, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "weights.pth"
        torch.save({"weight": torch.zeros(2)}, path)
        result = call("bench", *TINY, "--data", photos, "--weights", path)
        assert "1 unexpected (weight)" in wrong(result, code=1)

    def test_an_unknown_command(self) -> None:
        assert "benhc" in wrong(call("benhc"))


class TestFailures:
    def test_a_fault_of_its_own_is_no_traceback_unless_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise ZeroDivisionError("oh")

        monkeypatch.setattr(camkit.runs.bench, "bench", fail)
        message = wrong(call("bench", "--model", "resnet18"), code=1)
        assert "unexpected ZeroDivisionError: oh" in message
        assert "--debug" in message
        result = call("bench", "--model", "resnet18", "--debug")
        assert result.exit_code == 1
        assert "Traceback" in result.stderr

    def test_ctrl_c(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(camkit.runs.bench, "bench", stop)
        message = wrong(call("bench", "--model", "resnet18"), code=1)
        assert "the same command goes on" in message

    def test_a_results_folder_that_cannot_be_made(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        result = call("bench", *TINY, "--data", photos, "-o", tmp_path / "file" / "out")
        message = wrong(result, code=1)
        assert "Not a directory" in message


@pytest.fixture(scope="module")
def result(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A run through the command line, and its results folder."""
    out = tmp_path_factory.mktemp("cli")
    methods = ("--method", "shapleycam,gradcam", "--method", "flat,randomcam")
    result = call("bench", *TINY, "--data", photos, *methods, "-o", out, "--utility", "rest,logit")
    assert result.exit_code == 0, result.output
    return result, out


class TestBench:
    def test_the_table(self, result: tuple[Result, Path]) -> None:
        """In percent, arrows to the better side, the controls below a line."""
        lines = result[0].stdout.splitlines()
        assert {line for line in lines if "(6 images)" in line} == {
            "timm/camkit_tiny · conv · rest (6 images)",
            "timm/camkit_tiny · conv · logit (6 images)",
        }
        heading = lines[1].split("  ")
        for name in (
            "method",
            "AD ↓",
            "Coh ↑",
            "Com ↓",
            "ADCC ↑",
            "IC ↑",
            "ADD ↑",
            "Deletion ↓",
            "Insertion ↑",
        ):
            assert name in [cell.strip() for cell in heading]
        names = [line.split()[0] if line.strip("- ") else "line" for line in lines[3:8]]
        assert names == ["gradcam", "shapleycam", "line", "flat", "randomcam"]
        flat = next(line.split() for line in lines if line.startswith("flat"))
        assert "100.00" in flat  # its coherency

    def test_it_says_where_the_results_are(self, result: tuple[Result, Path]) -> None:
        assert f"{result[1] / 'summary.csv'}: 8 cells" in result[0].stdout

    def test_progress_goes_to_stderr(self, result: tuple[Result, Path]) -> None:
        assert "6/6" in result[0].stderr
        assert "img/s" in result[0].stderr or "s/img" in result[0].stderr
        assert "6/6" not in result[0].stdout

    def test_only_the_runs_own_cells_are_shown(self, result: tuple[Result, Path], photos: Path) -> None:
        again = call("bench", *TINY, "--data", photos, "-o", result[1], "--method", "gradcam")
        assert again.exit_code == 0
        assert "nothing to do" in again.stderr
        assert "shapleycam" not in again.stdout
        assert "logit" not in again.stdout
        assert ": 8 cells" in again.stdout

    def test_the_default_folder(self, photos: Path, tmp_path: Path) -> None:
        result = call("bench", *TINY, "--data", photos, "--limit", 1, "--metrics", "adcc")
        assert result.exit_code == 0
        assert (tmp_path / "results" / "local" / "summary.csv").exists()

    def test_without_data_the_sample_photos_are_taken_and_that_is_said(self) -> None:
        result = call("bench", *TINY, "--limit", 1, "--metrics", "adcc")
        assert result.exit_code == 0
        assert "a demonstration, not a benchmark" in result.stderr

    def test_a_broken_file_is_listed_and_the_run_goes_on(self, tmp_path: Path) -> None:
        for number in range(3):
            write_photo(tmp_path / "data" / f"photo {number}, “ü”.png", seed=number)
        (tmp_path / "data" / "bad.png").write_bytes(b"no image")
        cut = (tmp_path / "data" / "photo 0, “ü”.png").read_bytes()[:-700]
        (tmp_path / "data" / 'cut "off",\nhere.png').write_bytes(cut)
        result = call(
            "bench", *TINY, "--data", tmp_path / "data", "--metrics", "adcc", "-o", tmp_path / "out"
        )
        assert result.exit_code == 0, result.output
        assert "2 images could not be read" in result.stderr
        folder = tmp_path / "out" / "timm__camkit_tiny"
        with (folder / "errors.csv").open(newline="", encoding="utf-8") as file:
            errors = {row["image"]: row["reason"] for row in csv.DictReader(file)}
        assert errors.keys() == {"bad.png", 'cut "off",\nhere.png'}
        assert str(tmp_path) not in "".join(errors.values())
        with (folder / "conv-rest" / "shapleycam.csv").open(newline="", encoding="utf-8") as file:
            assert {row["image"] for row in csv.DictReader(file)} == {
                f"photo {number}, “ü”.png" for number in range(3)
            }


class TestLimit:
    def test_it_is_spread_out_over_classes(self, tmp_path: Path) -> None:
        for wnid in ("n01440764", "n01443537", "n02123045", "n02124075"):
            for number in range(5):
                write_photo(tmp_path / wnid / f"{number}.png", seed=number, size=(8, 8))
        orders = {seed: [item.id for item in find_images(str(tmp_path), seed).items] for seed in (0, 0, 1)}
        for order in orders.values():
            assert len(order) == 20
            for start in range(0, 20, 4):
                assert len({name.split("/")[0] for name in order[start : start + 4]}) == 4
        assert orders[0] == [item.id for item in find_images(str(tmp_path), 0).items]
        assert orders[0] != orders[1]


class TestExplain:
    def test_a_picture(self, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "pictures" / "two.png"
        arguments = (*MODEL, "--method", "gradcam,flat", "-o", out)
        result = call("explain", photos / "photo_0.png", photos / "photo_1.png", *arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(out)
        with Image.open(out) as picture:
            assert picture.width > picture.height  # three columns, two rows

    def test_budget_and_absent_decide_the_maps(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = []
        # A layer whose 64 positions mix further on.
        tiny = ("--model", "timm/camkit_tiny", "--weights", "random", "--preprocess", "native")
        real = (*tiny, "--layer", "features.2")
        monkeypatch.setattr("camkit.report.figures.save_figure", lambda figure, path: None)
        monkeypatch.setattr(
            "camkit.report.figures.saliency_figure", lambda rows, *_, **__: drawn.append(rows[0].saliency)
        )

        def maps(*options: object) -> dict:
            words = (*real, "--method", "aumann-1,shapley", "--utility", "softmax", "-o", tmp_path / "a.png")
            assert call("explain", photos / "photo_0.png", *words, *options).exit_code == 0
            return drawn[-1]

        few, more, blurred = maps("--budget", 4), maps("--budget", 8), maps("--budget", 4, "--absent", "blur")
        assert (few["aumann-1"] == more["aumann-1"]).all()
        assert (few["shapley"] != more["shapley"]).any()
        assert (few["aumann-1"] != blurred["aumann-1"]).any()
        assert "--budget" in wrong(
            call("explain", photos / "photo_0.png", *MODEL, "-o", "a.png", "--budget", 3)
        )

    def test_a_plugin_that_fails_ends_it_with_1(self, photos: Path, tmp_path: Path) -> None:
        plugin, out = tmp_path / "fails.py", tmp_path / "out.png"
        plugin.write_text(
            "from camkit import method\n@method('fails')\ndef fails(trace):\n    return 1 / 0\n"
        )
        arguments = (photos / "photo_0.png", *MODEL, "--plugin", plugin, "-o", out)
        result = call("explain", *arguments, "--method", "fails")
        assert result.exit_code == 1
        assert not out.exists()
        result = call("explain", *arguments, "--method", "gradcam,fails")
        assert result.exit_code == 1
        assert "error: plugin fails.py: method 'fails': ZeroDivisionError" in result.output
        assert "(photo_0.png)" in result.output
        assert out.exists()  # with all that did not fail

    def test_wrong_usage(self, photos: Path, tmp_path: Path) -> None:
        arguments = (*MODEL, "-o", tmp_path / "out.png")
        assert "nowhere.jpg" in wrong(call("explain", "nowhere.jpg", *arguments))
        assert "gradcan" in wrong(call("explain", photos / "photo_0.png", *arguments, "--method", "gradcan"))
        (tmp_path / "bad.jpg").write_bytes(b"no image")
        result = call("explain", tmp_path / "bad.jpg", *arguments)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert not (tmp_path / "out.png").exists()


class TestList:
    def listed(self, what: str) -> dict[str, dict[str, str]]:
        result = call("list", what, "--format", "csv")
        assert result.exit_code == 0
        return {row["name"]: row for row in csv.DictReader(io.StringIO(result.stdout))}

    def test_models(self) -> None:
        models = self.listed("models")
        assert len(models) >= 15
        assert models["swin_t"]["conv"] == "layers[-1].blocks[-1].norm1"
        assert models["resnet50"]["top1_paper"] == "76.13"

    def test_methods(self) -> None:
        methods = self.listed("methods")
        assert set(methods) >= set(METHODS)
        assert tuple(name for name, row in methods.items() if "paper" in row["groups"].split(",")) == PAPER
        for name in [name for name, entry in METHODS.items() if not entry.origin]:  # not other tests' plugins
            assert methods[name]["map"]
            assert methods[name]["source"]
            assert "partial(" not in methods[name]["map"]

    def test_metrics_and_utilities(self) -> None:
        metrics = call("list", "metrics").stdout
        assert all(name in metrics for name in ("average_drop", "coherency", "deletion_auc", "insertion_auc"))
        assert list(self.listed("utilities")) == list(UTILITIES)

    @pytest.mark.parametrize("what", ["models", "methods", "metrics", "utilities"])
    def test_formats(self, what: str) -> None:
        rows = json.loads(call("list", what, "--format", "json").stdout)
        table, *_ = call("list", what).stdout.split("\n\n")  # of methods, groups follow
        assert len(table.splitlines()) == len(rows) + 2
        assert all(row["name"] in table for row in rows)

    def test_methods_fit_a_terminal_with_their_names_needs_costs_and_groups(self) -> None:
        """In a process of its own, where no other test's plugin is registered."""
        listed = subprocess.run(
            [sys.executable, "-m", "camkit", "list", "methods"], capture_output=True, text=True, check=True
        )
        table, costs, groups = listed.stdout.split("\n\n")
        assert max(map(len, listed.stdout.splitlines())) <= 100
        titles, *_ = table.splitlines()
        assert titles.split() == ["name", "title", "uses", "cost"]
        (row,) = [line for line in table.splitlines() if line.startswith("smoothgradcam++ ")]
        assert re.split(r" {2,}", row.strip()) == [
            "smoothgradcam++", "Smooth GradCAM++", "activation, gradient, passes", "4 passes, 4 grads",
        ]  # fmt: skip
        assert "C channels, P positions" in costs
        members = dict(line.split(": ", 1) for line in groups.replace("\n  ", " ").splitlines())
        assert members["perturbation"] == "shapley, ablationcam, scorecam, reciprocam, rise, occlusion"
        assert members["all"] == "all but perturbation"

    def test_wrong_usage(self) -> None:
        assert "'model'" in wrong(call("list", "model"))


@pytest.mark.slow
class TestProcess:
    """The real thing, in a process of its own."""

    def run(self, *arguments: str, **settings: object) -> subprocess.CompletedProcess:
        environment = {**os.environ, "COLUMNS": "200", "PYTHONUTF8": "1"}
        command = [sys.executable, "-m", "camkit", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, **settings)

    def test_a_run(self, photos: Path, tmp_path: Path) -> None:
        arguments = [
            *("bench", "--model", "timm/test_resnet", "--weights", "random", "--preprocess", "native"),
            *("--data", str(photos), "--limit", "2", "--steps", "2", "--device", "cpu", "--workers", "1"),
        ]
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert "shapleycam" in done.stdout
        assert (
            tmp_path / "results" / "local" / "timm__test_resnet" / "conv-rest" / "shapleycam.csv"
        ).exists()

    def test_exit_codes(self) -> None:
        assert self.run("--version").returncode == 0
        wrong_usage = self.run("bench", "--model", "resnet5", "--weights", "random")
        assert wrong_usage.returncode == 2
        assert wrong_usage.stderr.startswith("error: unknown model 'resnet5'. Did you mean 'resnet50'?")
        assert wrong_usage.stdout == ""
