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
        ("--num_frames 3", "num_frames", NO_OPTION, "data.num_frames"),
        ("--model.fusion.tempral_merge mean", "model.fusion.tempral_merge", NO_OPTION, "model.fusion.temporal_merge"),
        ("--model.lora.rank 4", "model.lora", "'rank' is not accepted", ""),
        ("--quite.unlike 1", "quite", NO_OPTION, ""),
        # of a wrong kind
        ("--data.num_frames ''", "data.num_frames", "int'>. Got value:", ""),
        ("--data.source.trajectory lokal", "data.source.trajectory", "'loop', 'local'", ""),
        ("--data.source.scenes [1,2]", "data.source.scenes", "tuple with 3 elements. Got value: [1, 2]", ""),
        ("--data.source VSIBench", "data.source", "required: root", ""),
        ("--data.sampler.geometry DatasetDepth", "data.sampler", "name its class first", ""),
        # no such class
        ("--model PROPE", "model", NO_CLASS, "PRoPEMLLM"),
        ("--data.sampler Unifrom", "data.sampler", NO_CLASS, "UniformSampler"),
        ("--model.objectives+=Depht", "model.objectives", NO_CLASS, "TeacherDepth"),
        ("--model.camera_encoding zoo.AddFusion", "model.camera_encoding", "subclass of CameraEncoding", ""),
        # in a config
        ("--config group.yaml", "group.yaml: model.learning_rates.decodr", NO_OPTION, "model.learning_rates.decoder"),
        ("--config class.yaml", "class.yaml: data.sampler", NO_CLASS, "SpaceAwareSampler"),
        ("--config part.yaml", "part.yaml: data.source.dynamic_object", NO_OPTION, "data.source.dynamic_objects"),
        ("--config prose.yaml", "prose.yaml", "holds no settings", ""),
        ("--config torn.yaml", "torn.yaml", "line 2", ""),
        ("--config porpe.yaml", "no config porpe.yaml", "", "prope"),
        ("--config prope.yaml", "", "names the model ConcatSplitMLLM and prope.yaml PRoPEMLLM", ""),
        # words in a wrong place
        ("prope.yaml", "", "prope.yaml", ""),
        ("--data.num_frames", "", "expected one argument", ""),
    ],
)
def test_an_error_is_one_line_with_the_option_and_the_nearest_name(
    line: str, option: str, problem: str, meant: str, error_of: ErrorOf
) -> None:
    text = error_of(f"fit --config concat_split.yaml {line}")
    assert text.startswith(f"error: {option}") and problem in text and len(text) < 300 and "\n" not in text
    assert text.endswith(f"did you mean {meant}?") if meant else "did you mean" not in text


def test_a_path_that_is_not_utf8_is_named_by_its_option(error_of: ErrorOf) -> None:
    text = error_of("fit --config qwen25_vl.yaml --data.source SceneFolder --data.source.root b\udcff")
    assert text.startswith(r"error: --data.source.root b\udcff: it is not UTF-8, as configs are: rename it")


MODULES = {
    "lacks_a_package.py": "import no_such_package",
    "misspelled.py": "class Encoding(:\n    pass",
    "unfinished.py": "import zoo\nclass Encoding(zoo.CameraEncoding):\n    pass",
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "lacks_a_package.Encoding",
            r"can't be imported: .*no_such_package.*lacks_a_package.py:1\)",
        ),
        ("misspelled.Encoding", r"can't be imported: SyntaxError: invalid syntax \(misspelled.py, line 1\)"),
        ("unfinished.Encoding", "is abstract: it lacks symmetries"),
        ("absent.Encoding", "can't be imported: there is no absent.py in the current folder, and no package absent"),
        ("zoo.encodings.prope.PRoPe", "can't be imported: .*; did you mean PRoPE?"),
    ],
)
def test_a_class_that_cannot_be_built_is_reported_with_its_cause(
    path: str, expected: str, error_of: ErrorOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    found = error_of(f"fit --config qwen25_vl.yaml --model.camera_encoding {path}")
    assert re.match(f"error: model.camera_encoding: {path} {expected}", found) and "\n" not in found


@pytest.mark.parametrize(
    ("line", "option", "problem"),
    [
        ("test --config prope.yaml --ckpt_pth x", "ckpt_pth", "did you mean ckpt_path?"),
        ("select-frames --splt val", "splt", "did you mean split?"),
        ("select-frames --data.sampler SpaceAware", "data.sampler", "did you mean SpaceAwareSampler?"),
        ("score", "", "required: predictions"),
        ("fot", "", "did you mean fit?"),
        ("score gone.jsonl", "gone.jsonl", "can't be read"),
        ("report runs --fromat html", "fromat", "did you mean format?"),
    ],
)
def test_errors_of_other_commands(line: str, option: str, problem: str, error_of: ErrorOf) -> None:
    text = error_of(line)
    assert text.startswith(f"error: {option}") and problem in text and "\n" not in text


def test_an_invalid_trainer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZooCLI, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "qwen25_vl.yaml", "--trainer.accelerator", "gppu"])
    with pytest.raises(SystemExit, match="error: trainer: .*gppu") as end:
        main.main()
    assert "\n" not in str(end.value.code)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (
            "fit --help",
            ["usage: main.py fit [options]", "its name in configs/", "--metrics.scorer", "--trainer.max_steps"],
        ),
        ("fit --model.help PRoPEMLLM", ["--model.learning_rates.decoder", "--model.fusion"]),
        ("fit --data.source.help Rooms", [".trajectory", ".help=datamodules.Rooms"]),
        ("fit --config prope.yaml --model.view_mixer.encoding.help PRoPE", [".placement"]),
        ("select-frames --help", ["--split", "--data.help"]),
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


PARTS = {
    part
    for package in (zoo, datamodules, callbacks)
    for part in (getattr(package, name) for name in package.__all__)
    if isinstance(part, type) and not issubclass(part, Exception | SaveConfigCallback)
}


def test_every_option_has_a_description() -> None:
    missing = {}
    for part in PARTS:
        ours = [kind for kind in part.__mro__ if kind.__module__.startswith(("zoo.", "datamodules.", "callbacks."))]
        explained = {entry.arg_name for kind in ours for entry in docstring_parser.parse(kind.__doc__ or "").params}
        options = inspect.signature(part).parameters.values()
        names = {option.name for option in options if option.kind not in (option.VAR_KEYWORD, option.VAR_POSITIONAL)}
        missing[part.__name__] = names - explained
    assert len(missing) > 50 and not {name: each for name, each in missing.items() if each}


Printed = Callable[..., dict[str, object]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Printed:
    """The settings that --print_config prints, by dotted name."""

    def call(*words: str) -> dict[str, object]:
        monkeypatch.setattr(sys, "argv", ["main.py", "fit", *words, "--print_config"])
        with pytest.raises(SystemExit) as end:
            main.main()
        assert end.value.code == 0
        return flatten(yaml.safe_load(capsys.readouterr().out))

    return call


NULLS = ("model.learning_rates.decoder", "model.view_mixer.encoding.reference", "data.source.workers")


def test_options_are_read_as_they_are_written(printed: Printed) -> None:
    given = {
        "data.prompt_prefix": "Which is closer: a or b? \U0001f600",  # a text stays a text
        "model.fusion.class_path": "AddFusion",
        "data.source.dynamic_objects": "true",
        "model.lora.targets": "[q_proj]",
        "model.learning_rates.vision": "0",
        "trainer.gradient_clip_val": ".inf",
        "model.time_index": "ConstantIndex",
        "model.objectives": "[CameraPrediction]",
        "model.objectives.layer": "2",  # of the last in the list
        "model.objectives+": "DepthPrediction",
        "data.sampler": "PoseFarthestSampler",
        "data.sampler.seed": "3",
        "model.view_mixer": "ViewAttention",
        "model.view_mixer.encoding": "PRoPE",
        **dict.fromkeys(NULLS, "null"),
    }
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    configs = ("--config", "prope.yaml", "--config", "data_rooms.yaml")
    found = printed(*configs, "--data.num_frames=4", "--data.num_frames", "6", *words)
    expected = {
        "data.prompt_prefix": given["data.prompt_prefix"],
        "model.fusion.class_path": "zoo.AddFusion",
        "data.source.dynamic_objects": True,
        "model.lora.targets": ["q_proj"],
        "model.learning_rates.vision": 0.0,
        "model.learning_rates.connector": 8e-4,  # prope.yaml's
        "trainer.gradient_clip_val": float("inf"),
        "model.time_index.class_path": "zoo.ConstantIndex",
        "model.objectives.0.layer": 2,
        "model.objectives.1.class_path": "zoo.DepthPrediction",
        "data.sampler.seed": 3,
        "data.num_frames": 6,  # the later of two
        **dict.fromkeys(NULLS),
    }
    assert {name: found[name] for name in expected} == expected


def test_configs_may_hold_dates_infinity_and_a_class_by_its_name(tmp_path: Path, printed: Printed) -> None:
    (tmp_path / "a.yaml").write_text(
        "name: 2026-11-30\ntrainer: {gradient_clip_val: .inf}\ndata: {init_args: {sampler: PoseFarthestSampler}}"
    )
    (tmp_path / "b.yaml").write_text("data: {init_args: {sampler: {init_args: {seed: 3}}}}")
    names = ("prope.yaml", tmp_path / "a.yaml", tmp_path / "b.yaml")
    found = printed(*(word for name in names for word in ("--config", str(name))))
    assert str(found["name"]) == "2026-11-30" and found["trainer.gradient_clip_val"] == float("inf")
    assert found["data.sampler.class_path"] == "datamodules.PoseFarthestSampler" and found["data.sampler.seed"] == 3
