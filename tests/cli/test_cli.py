"""The command line: options and where they come from, exit codes, messages and help."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import TINY, call, wrong
from places import ROOT

import camkit.runs.bench
from camkit.cli import main
from camkit.config import RunConfig, deciding_options
from camkit.errors import CamkitError
from camkit.option import GROUPS


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


def test_all_that_decides_numbers_can_be_said_again_of_maps_from_elsewhere() -> None:
    taken = {option.name for option in main.commands["score"].params}
    assert {option.name for option in deciding_options()} <= taken
