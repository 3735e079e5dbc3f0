"""Errors of the command line are one line with the option, the problem and a suggestion; help names options in full."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import docstring_parser
import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

import callbacks
import datamodules
import main
import zoo
from commands.cli import ZooCLI
from zoo.benchmarks import VSIBench
from zoo.configuration import from_config

ErrorOf = Callable[[str], str]
CONFIGS = {
    "group.yaml": "model: {init_args: {learning_rates: {decodr: 1e-4}}}",
    "trainer.yaml": "trainer: {max_stps: 4}",
    "class.yaml": "data: {init_args: {sampler: SpaceAware}}",
    "part.yaml": "data: {init_args: {source: {class_path: Rooms, init_args: {dynamic_object: true}}}}",
    "torn.yaml": "model: [\n",
    "prose.yaml": "just words",
}


@pytest.fixture
def error_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> ErrorOf:
    """Runs main.py in a folder with CONFIGS, where nothing is built, and returns its error."""
    monkeypatch.chdir(tmp_path)
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)

    def refuse(self: ZooCLI) -> None:
        raise AssertionError("the command line was accepted")

    monkeypatch.setattr(ZooCLI, "before_instantiate_classes", refuse)

    def call(line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["main.py", *shlex.split(line)])
        with pytest.raises(SystemExit) as end:
            main.main()
        assert capsys.readouterr() == ("", "")
        return str(end.value.code)

    return call


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # misspelled, at every level
        ("--trainer.maxsteps 3", "trainer.maxsteps: there is no such option; did you mean trainer.max_steps?"),
        ("--max_steps 3", "max_steps: there is no such option; did you mean trainer.max_steps?"),
        (
            "--model.camera_encoding.placment TemporalSection",
            "model.camera_encoding.placment: there is no such option; did you mean model.camera_encoding.placement?",
        ),
        ("--data.nm_frames 4", "data.nm_frames: there is no such option; did you mean data.num_frames?"),
        (  # the options of a dataset have no shorter name
            "--data.trajectory local",
            "data.trajectory: there is no such option",
        ),
        ("--model.lora.rank 4", "model.lora.rank: there is no such option; known: alpha, dropout, r, targets"),
        ("--quite.unlike 1", "quite.unlike: there is no such option"),
        # of a wrong kind
        ("--data.num_frames four", "data.num_frames: expected int, not four"),
        ("--data.num_frames ''", "data.num_frames: expected int, not an empty text"),
        (
            "--data.source.trajectory lokal",
            "data.source.trajectory: expected 'loop' or 'local', not lokal; did you mean local?",
        ),
        (
            "--data.question_types room_size",
            "data.question_types: expected list[str], 'default' or null, not room_size; a list is written [room_size]",
        ),
        (
            "--data.question_types defualt",
            "data.question_types: expected list[str], 'default' or null, not defualt; did you mean default?",
        ),
        ("--data.source.scenes [1,2]", "data.source.scenes: expected tuple with 3 elements, not [1, 2]"),
        ("--data.source VSIBench", "data.source.root: no value is given, and it has no default"),
        # no such class
        ("--model PROPE", "model: there is no class PROPE; did you mean PRoPEMLLM?"),
        ("--data.sampler SpaceAware", "data.sampler: there is no class SpaceAware; did you mean SpaceAwareSampler?"),
        (
            "--model.camera_encoding.placement TemporalSecton",
            "model.camera_encoding.placement: there is no class TemporalSecton; did you mean TemporalSection?",
        ),
        (
            "--model.optimizer Addam",
            "model.optimizer: there is no class Addam; give its name or its import path",
        ),
        ("--model.help PROPEMLLM", "model.help: there is no class PROPEMLLM; did you mean PRoPEMLLM?"),
        # in a config
        (
            "--config group.yaml",
            "group.yaml: model.learning_rates.decodr: there is no such option; did you mean "
            "model.learning_rates.decoder?",
        ),
        ("--config trainer.yaml", "trainer.max_stps: there is no such option; did you mean trainer.max_steps?"),
        (
            "--config class.yaml",
            "class.yaml: data.sampler: there is no class SpaceAware; did you mean SpaceAwareSampler?",
        ),
        (
            "--config part.yaml",
            "part.yaml: data.source.dynamic_object: there is no such option; did you mean data.source.dynamic_objects?",
        ),
        ("--config prose.yaml", "prose.yaml: holds no settings"),
        # words in a wrong place
        (
            "prope.yaml",
            "prope.yaml: not expected here; options start with --, configs are named by --config; see main.py fit "
            "--help",
        ),
        ("--data.num_frames", "argument --data: expected one argument; see main.py fit --help"),
    ],
)
def test_errors_are_one_line_with_the_option_and_the_remedy(line: str, expected: str, error_of: ErrorOf) -> None:
    model = "prope.yaml" if "encoding" in line else "qwen25_vl.yaml"  # whose options are read in half the time
    assert error_of(f"fit --config {model} {line}") == f"error: {expected}"


def test_null_at_any_depth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    options = ("model.learning_rates.decoder", "model.view_mixer.encoding.reference", "data.source.workers")
    words = ["--model.view_mixer", "ViewAttention", "--model.view_mixer.encoding", "PRoPE"]
    words += [word for option in options for word in (f"--{option}", "null")]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "prope.yaml", *words, "--print_config"])
    with pytest.raises(SystemExit) as end:
        main.main()
    config = yaml.safe_load(capsys.readouterr().out)
    assert end.value.code == 0
    for option in options:
        found = config
        for part in option.split("."):
            found = found.get("init_args", found)[part]
        assert found is None


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--model.help", "--model.help ConcatSplitMLLM  2D tokens to one half"),
        ("--model.help --config prope.yaml", "Help for --model.help=zoo.PRoPEMLLM"),
        ("--config concat_split.yaml --model.help Qwen25VL", "Help for --model.help=zoo.Qwen25VL"),
        ("--config concat_split.yaml --model PRoPEMLLM --model.help", "Help for --model.help=zoo.PRoPEMLLM"),
    ],
)
def test_model_help_uses_the_model_of_the_configs(
    line: str, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *line.split()])
    with pytest.raises(SystemExit) as end:
        main.main()
    printed = capsys.readouterr().out
    assert end.value.code == 0 and named in printed and "VideoQATask " not in printed


def test_errors_list_the_classes_of_the_expected_type(error_of: ErrorOf) -> None:
    found = re.search(r"zoo.PRoPE is no Task; known: (.*)", error_of("fit --model zoo.PRoPE"))
    assert found is not None and {"BaselineVLM", "PRoPEMLLM", "VGGTPretraining"} <= set(found[1].split(", "))
    for value, problem in (
        ("Depth", "expected list[Objective] or null, not Depth; a list is written [Depth]"),
        ("'[{class_path: zoo.AddFusion}]'", "zoo.AddFusion is no Objective"),
    ):
        text = error_of(f"fit --config qwen25_vl.yaml --model.objectives {value}")
        assert text.startswith(f"error: model.objectives: {problem}; known: CameraPrediction, DepthPrediction, ")
    text = error_of("fit --config qwen25_vl.yaml --model.camera_encoding.scale none")
    assert text.startswith("error: model.camera_encoding: ") and "; known: CaPE, Compose, " in text


MODULES = {
    "lacks_a_package.py": "import no_such_package",
    "misspelled.py": "class Encoding(:\n    pass",
    "unfinished.py": "import zoo\nclass Encoding(zoo.CameraEncoding):\n    pass",
    "own.yaml": "data: {init_args: {sampler: {class_path: misspelled.Sampler}}}",
}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "--model.camera_encoding lacks_a_package.Encoding",
            "model.camera_encoding: lacks_a_package.Encoding can't be imported: ModuleNotFoundError: No module named "
            "'no_such_package' (FOLDER/lacks_a_package.py:1)",
        ),
        (
            "--model.camera_encoding misspelled.Encoding",
            "model.camera_encoding: misspelled.Encoding can't be imported: SyntaxError: invalid syntax "
            "(misspelled.py, line 1)",
        ),
        (
            "--config own.yaml",
            "own.yaml: data.sampler: misspelled.Sampler can't be imported: SyntaxError: invalid syntax "
            "(misspelled.py, line 1)",
        ),
        (
            "--model.camera_encoding unfinished.Encoding",
            "model.camera_encoding: unfinished.Encoding is abstract: it lacks symmetries",
        ),
        (
            "--model.optimizer no_such_package.Adam",
            "model.optimizer: no_such_package.Adam can't be imported: there is no no_such_package.py in the current "
            "folder, and no package no_such_package is installed",
        ),
        (
            "--model.camera_encoding zoo.encodings.prope.PRoPe",
            "model.camera_encoding: zoo.encodings.prope.PRoPe can't be imported: module 'zoo.encodings.prope' has no "
            "attribute 'PRoPe'; did you mean PRoPE?",
        ),
        (
            "--trainer.callbacks misspelled.Stop",
            "trainer.callbacks: misspelled.Stop can't be imported: SyntaxError: invalid syntax (misspelled.py, line 1)",
        ),
        # negative control: what can be built, but is no encoding
        (
            "--model.camera_encoding zoo.AddFusion",
            "model.camera_encoding: zoo.AddFusion is no CameraEncoding; known: ",
        ),
        ("--data.question_types a.b", "data.question_types: expected list[str], 'default' or null, not a.b"),
    ],
)
def test_a_class_that_cannot_be_built_is_reported_with_its_cause(
    line: str, expected: str, error_of: ErrorOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    found = error_of(f"fit --config qwen25_vl.yaml {line}")
    assert found.startswith(f"error: {expected.replace('FOLDER', str(tmp_path))}")


def test_invalid_yaml_names_file_and_line(error_of: ErrorOf) -> None:
    text = error_of("fit --config torn.yaml")
    assert text.startswith("error: torn.yaml: cannot be read as YAML: ") and "line 2" in text and "\n" not in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("test --config prope.yaml --ckpt_pth x", "ckpt_pth: there is no such option; did you mean ckpt_path?"),
        ("select-frames --splt val", "splt: there is no such option; did you mean split?"),
        ("select-frames --split tst", "split: expected 'train', 'val' or 'test', not tst; did you mean test?"),
        ("score", "the following arguments are required: predictions; see main.py score --help"),
        ("score a --scorer foo", "unknown scorer 'foo'; VSIBench has " + ", ".join(VSIBench.scorers)),
        ("report runs --fromat html", "fromat: there is no such option; did you mean format?"),
        (
            "check-encoding PRoPE --apply_to vo",
            "apply_to: there is no such option; did you mean encoding.apply_to?",
        ),
    ],
)
def test_errors_of_other_commands(line: str, expected: str, error_of: ErrorOf) -> None:
    assert error_of(line) == f"error: {expected}"


def test_an_unknown_command_lists_the_commands(error_of: ErrorOf) -> None:
    assert error_of("fot") == f"error: there is no command fot, only {', '.join(main.COMMANDS)}; did you mean fit?"


def test_an_invalid_trainer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZooCLI, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "qwen25_vl.yaml", "--trainer.accelerator", "gppu"])
    with pytest.raises(SystemExit, match="error: trainer: You selected an invalid accelerator name: .*gppu") as end:
        main.main()
    assert "\n" not in str(end.value.code)


def test_negative_control_lightnings_parser_prints_many_lines(
    error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("commands.cli.ZooParser", LightningArgumentParser)
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "qwen25_vl.yaml", "--data.nm_frames", "4"])
    with pytest.raises(SystemExit):
        main.main()
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) > 20 and "data.num_frames?" not in printed


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (
            "fit --help",
            ["usage: main.py fit [options]", "by its name in configs/", "--metrics.scorer", "--trainer.max_steps"],
        ),
        ("fit --model.help PRoPEMLLM", ["--model.learning_rates.decoder", "--model.fusion"]),
        ("fit --data.source.help Rooms", ["--data.source.trajectory", "--data.source.help=datamodules.Rooms"]),
        ("fit --model.camera_encoding.help PRoPE", ["--model.camera_encoding.placement.help"]),
        ("fit --config prope.yaml --model.view_mixer.encoding.help PRoPE", ["--model.view_mixer.encoding.placement"]),
        ("select-frames --help", ["--split", "--data.help"]),
        ("cache-geometry --help", ["--split", "--model.geometry"]),
    ],
)
def test_help_names_options_in_full(line: str, names: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", *(words := shlex.split(line))])
    with pytest.raises(SystemExit) as end:
        main.run(words[0])
    printed = capsys.readouterr().out
    assert end.value.code == 0 and all(name in printed for name in names)
    short = re.findall(r"--(?:source|placement|encoding|camera_encoding|fusion)\b", printed)
    assert not short


OURS = (zoo, datamodules, callbacks)
EXPORTS = [getattr(package, name) for package in OURS for name in package.__all__]


def test_layers_of_encoder_and_decoder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    words = shlex.split(
        "fit --config spatial_mllm.yaml --model.geometry TinyVGGT --model.geometry.path null --model.geometry.layers "
        "'[1, 2, 3]' --model.fusion DeepFusion --model.fusion.decoder_layers '[0, 1, 2]' --print_config"
    )
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    with pytest.raises(SystemExit):
        main.main()
    config = yaml.safe_load(capsys.readouterr().out)["model"]
    model = from_config(zoo.VideoQATask, config).model
    assert model.geometry.layers == (1, 2, 3) and model.fusion.decoder_layers == [0, 1, 2]
    config["init_args"]["geometry"]["init_args"]["layers"] = [1, 3]
    with pytest.raises(zoo.InputError, match="3D tokens of 2 layers: name 3 --model.geometry.layers"):
        from_config(zoo.VideoQATask, config)


PARTS = [part for part in EXPORTS if isinstance(part, type)]


@pytest.mark.parametrize("part", [part for part in PARTS if not issubclass(part, Exception | SaveConfigCallback)])
def test_every_option_has_a_description(part: type) -> None:
    ours = [kind for kind in part.__mro__ if kind.__module__.split(".")[0] in [package.__name__ for package in OURS]]
    explained = {entry.arg_name for kind in ours for entry in docstring_parser.parse(kind.__doc__ or "").params}
    options = inspect.signature(part).parameters.values()
    assert {p.name for p in options if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} <= explained


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fit --config qwen25_vl.yaml --data.num_frames null", "data.num_frames: .*None"),
        ("fit --config qwen25_vl.yaml --data.source.size null", "data.source.size: .*None"),
        ("fit --config spatial_mllm.yaml --model.fusion.temporal_merge null", "model.fusion.temporal_merge: .*None"),
        ("select-frames --data.num_frames null", "data.num_frames: .*None"),
        ("fit --config qwen25_vl.yaml --model.learning_rates null", "model.learning_rates: .*null"),
        ("fit --config qwen25_vl.yaml --checkpoint null", "checkpoint: .*null"),
    ],
)
def test_null_of_a_type_without_null(line: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py", *line.split()])
    with pytest.raises(SystemExit, match=f"^error: {expected}"):
        main.main()
