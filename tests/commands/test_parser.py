"""Errors of the command line are one line with the option, the problem and a suggestion; help names options in full."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import docstring_parser
import pytest
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.cli import SaveConfigCallback

import callbacks
import datamodules
import main
import zoo
from commands.cli import ZooCLI
from zoo.configuration import flatten, from_config

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


NO_OPTION, NO_CLASS = "there is no such option", "Expected a dot import path string"


@pytest.mark.parametrize(
    ("line", "option", "problem", "meant"),  # the option or file, what is wrong, and the nearest name
    [
        # misspelled, at every level
        ("--trainer.maxsteps 3", "trainer.maxsteps", NO_OPTION, "trainer.max_steps"),
        ("--max_steps 3", "max_steps", NO_OPTION, "trainer.max_steps"),
        ("--num_frames 3", "num_frames", NO_OPTION, "data.num_frames"),
        (
            "--model.camera_encoding.placment TemporalSection",
            "model.camera_encoding.placment",
            NO_OPTION,
            "model.camera_encoding.placement",
        ),
        ("--data.nm_frames 4", "data.nm_frames", NO_OPTION, "data.num_frames"),
        ("--model.lora.rank 4", "model.lora", "'rank' is not accepted", ""),
        ("--quite.unlike 1", "quite", NO_OPTION, ""),
        # of a wrong kind
        ("--data.num_frames four", "data.num_frames", "int'>. Got value: four", ""),
        ("--data.num_frames ''", "data.num_frames", "int'>. Got value:", ""),
        ("--data.source.trajectory lokal", "data.source.trajectory", "'loop', 'local'", ""),
        ("--data.question_types room_size", "data.question_types", "list'>. Got value: room_size", ""),
        ("--data.source.scenes [1,2]", "data.source.scenes", "tuple with 3 elements. Got value: [1, 2]", ""),
        ("--model.learning_rates.decoder high", "model.learning_rates.decoder", "float'>. Got value: high", ""),
        ("--model.camera_encoding.placement.stop five", "model.camera_encoding.placement.stop", "five", ""),
        ("--data.source VSIBench", "data.source", "required: root", ""),
        ("--data.sampler.geometry DatasetDepth", "data.sampler", "name its class first", ""),
        # no such class
        ("--model PROPE", "model", NO_CLASS, "PRoPEMLLM"),
        ("--data.sampler Unifrom", "data.sampler", NO_CLASS, "UniformSampler"),
        ("--model.objectives+=Depht", "model.objectives", NO_CLASS, "TeacherDepth"),
        ("--data.sampler SpaceAware", "data.sampler", NO_CLASS, "SpaceAwareSampler"),
        (
            "--model.camera_encoding.placement TemporalSecton",
            "model.camera_encoding.placement",
            NO_CLASS,
            "TemporalSection",
        ),
        ("--model.optimizer Addam", "model.optimizer", NO_CLASS, ""),
        ("--model.camera_encoding zoo.AddFusion", "model.camera_encoding", "subclass of CameraEncoding", ""),
        ("--model.objectives '[{class_path: zoo.AddFusion}]'", "model.objectives", "subclass of Objective", ""),
        # in a config
        (
            "--config group.yaml",
            "group.yaml: model.learning_rates.decodr",
            NO_OPTION,
            "model.learning_rates.decoder",
        ),
        ("--config trainer.yaml", "trainer.yaml: trainer.max_stps", NO_OPTION, "trainer.max_steps"),
        ("--config class.yaml", "class.yaml: data.sampler", NO_CLASS, "SpaceAwareSampler"),
        ("--config part.yaml", "part.yaml: data.source.dynamic_object", NO_OPTION, "data.source.dynamic_objects"),
        ("--config prose.yaml", "prose.yaml", "holds no settings", ""),
        ("--config torn.yaml", "torn.yaml", "line 2", ""),
        ("--config porpe.yaml", "no config porpe.yaml", "", "prope"),
        # words in a wrong place
        ("prope.yaml", "", "prope.yaml", ""),
        ("--data.num_frames", "", "expected one argument", ""),
    ],
)
def test_an_error_is_one_line_with_the_option_and_the_nearest_name(
    line: str, option: str, problem: str, meant: str, error_of: ErrorOf
) -> None:
    text = error_of(f"fit --config {'prope.yaml' if 'encoding' in line else 'qwen25_vl.yaml'} {line}")
    assert text.startswith(f"error: {option}") and problem in text and len(text) < 300 and "\n" not in text
    assert text.endswith(f"did you mean {meant}?") if meant else "did you mean" not in text


def test_configs_that_name_two_models_are_an_error(error_of: ErrorOf) -> None:
    text = error_of("fit --config prope.yaml --config qwen25_vl.yaml")
    assert "prope.yaml names the model PRoPEMLLM and qwen25_vl.yaml Qwen25VL" in text


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


@pytest.mark.parametrize(
    ("line", "option", "problem"),
    [
        ("test --config prope.yaml --ckpt_pth x", "ckpt_pth", "did you mean ckpt_path?"),
        ("select-frames --splt val", "splt", "did you mean split?"),
        ("select-frames --split tst", "split", "'train', 'val', 'test'"),
        ("select-frames --data.sampler SpaceAware", "data.sampler", "did you mean SpaceAwareSampler?"),
        ("score", "", "required: predictions"),
        ("score gone.jsonl", "gone.jsonl", "can't be read"),
        ("report runs --fromat html", "fromat", "did you mean format?"),
        ("check-encoding PRoPE --apply_to vo", "apply_to", NO_OPTION),
    ],
)
def test_errors_of_other_commands(line: str, option: str, problem: str, error_of: ErrorOf) -> None:
    text = error_of(line)
    assert text.startswith(f"error: {option}") and problem in text and "\n" not in text


def test_an_unknown_command_lists_the_commands(error_of: ErrorOf) -> None:
    assert error_of("fot") == f"error: there is no command fot, only {', '.join(main.COMMANDS)}; did you mean fit?"


def test_an_invalid_trainer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZooCLI, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "qwen25_vl.yaml", "--trainer.accelerator", "gppu"])
    with pytest.raises(SystemExit, match="error: trainer: You selected an invalid accelerator name: .*gppu") as end:
        main.main()
    assert "\n" not in str(end.value.code)


def test_negative_control_jsonargparse_nests_an_error_once_per_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.parser.explained", lambda error, *_: ArgumentError(None, str(error)))
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "qwen25_vl.yaml", "--data.nm_frames", "4"])
    with pytest.raises(ArgumentError) as raised:
        main.main()
    assert len(str(raised.value).splitlines()) > 5 and "did you mean" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (
            "fit --help",
            ["usage: main.py fit [options]", "its name in configs/", "--metrics.scorer", "--trainer.max_steps"],
        ),
        ("fit --model.help PRoPEMLLM", ["--model.learning_rates.decoder", "--model.fusion"]),
        ("fit --data.source.help Rooms", [".trajectory", ".help=datamodules.Rooms"]),
        ("fit --model.camera_encoding.help PRoPE", [".placement", "ChannelRange"]),
        ("fit --config prope.yaml --model.view_mixer.encoding.help PRoPE", [".placement"]),
        ("select-frames --help", ["--split", "--data.help"]),
        ("cache-geometry --help", ["--split", "--model.geometry"]),
    ],
)
def test_help_explains_a_command_and_a_part(
    line: str, names: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", *(words := shlex.split(line))])
    with pytest.raises(SystemExit) as end:
        main.run(words[0])
    printed = capsys.readouterr().out
    assert end.value.code == 0 and all(name in printed for name in names)


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
    ("options", "name", "expected"),
    [
        # texts stay texts
        (["--data.prompt_prefix", "Which is closer: a or b?"], "data.prompt_prefix", "Which is closer: a or b?"),
        (["--data.prompt_prefix", "12 \U0001f600"], "data.prompt_prefix", "12 \U0001f600"),
        # one rule for a part of another class, however it is named
        (["--model.fusion", "AddFusion"], "model.fusion.class_path", "zoo.AddFusion"),
        (["--model.fusion.class_path", "AddFusion"], "model.fusion.class_path", "zoo.AddFusion"),
        (["--data.sampler", "PoseFarthestSampler", "--data.sampler.seed", "3"], "data.sampler.seed", 3),
        # lists
        (["--model.lora.targets", "[q_proj]"], "model.lora.targets", ["q_proj"]),
        (
            ["--model.objectives", "[CameraPrediction]", "--model.objectives+=DepthPrediction"],
            "model.objectives.1.class_path",
            "zoo.DepthPrediction",
        ),
        (["--model.objectives=[CameraPrediction]", "--model.objectives.layer=2"], "model.objectives.0.layer", 2),
        (["--trainer.gradient_clip_val", ".inf"], "trainer.gradient_clip_val", float("inf")),
        # of an option that is given twice the later one
        (["--data.num_frames=4", "--data.num_frames", "6"], "data.num_frames", 6),
    ],
)
def test_options_are_read_as_they_are_written(
    options: list[str], name: str, expected: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "prope.yaml", *options, "--print_config"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0
    assert flatten(yaml.safe_load(capsys.readouterr().out))[name] == expected


def test_configs_may_hold_dates_infinity_and_a_class_by_its_name(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "a.yaml").write_text(
        "name: 2026-11-30\ntrainer: {gradient_clip_val: .inf}\ndata: {init_args: {sampler: PoseFarthestSampler}}"
    )
    (tmp_path / "b.yaml").write_text("data: {init_args: {sampler: {init_args: {seed: 3}}}}")
    configs = [word for name in ("prope.yaml", "a.yaml", "b.yaml") for word in ("--config", name)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *configs, "--print_config"])
    with pytest.raises(SystemExit):
        main.main()
    found = flatten(yaml.safe_load(capsys.readouterr().out))
    assert str(found["name"]) == "2026-11-30" and found["trainer.gradient_clip_val"] == float("inf")
    assert found["data.sampler.class_path"] == "datamodules.PoseFarthestSampler" and found["data.sampler.seed"] == 3
