"""What main.py says of a mistake: one line with the option, what is wrong, and what may have been meant."""

from __future__ import annotations

import inspect
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
from commands.arguments import expand_dataset_option
from commands.cli import ZooCLI
from commands.parser import closest

Said = Callable[[str], str]
CONFIGS = {
    "option.yaml": "data: {init_args: {nm_frames: 4}}",
    "group.yaml": "model: {init_args: {learning_rates: {decodr: 1e-4}}}",
    "trainer.yaml": "trainer: {max_stps: 4}",
    "class.yaml": "model: {init_args: {camera_encoding: PROPE}}",
    "part.yaml": "data: {init_args: {source: {class_path: Rooms, init_args: {dynamic_object: true}}}}",
    "torn.yaml": "model: [\n",
    "prose.yaml": "just words",
    "empty.yaml": "",
}


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Said:
    """What main.py ends with, in a folder with CONFIGS; nothing is built."""
    monkeypatch.chdir(tmp_path)
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)

    def refuse(self: ZooCLI) -> None:
        raise AssertionError("the command line was taken for right")

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
        ("--trainr.max_steps 3", "trainr.max_steps: there is no such option; did you mean trainer.max_steps?"),
        ("--max_steps 3", "max_steps: there is no such option; did you mean trainer.max_steps?"),
        ("--seed_everythng 3", "seed_everythng: there is no such option; did you mean seed_everything?"),
        (
            "--model.learning_rate.decoder 1e-4",
            "model.learning_rate.decoder: there is no such option; did you mean model.learning_rates.decoder?",
        ),
        (
            "--model.camera_encoding.placment TemporalSection",
            "model.camera_encoding.placment: there is no such option; did you mean model.camera_encoding.placement?",
        ),
        ("--data.nm_frames 4", "data.nm_frames: there is no such option; did you mean data.num_frames?"),
        ("--data.num-frames 4", "data.num-frames: there is no such option; did you mean data.num_frames?"),
        (
            "--data.dynamic_object true",
            "data.source.dynamic_object: there is no such option; did you mean data.source.dynamic_objects?",
        ),
        ("--model.lora.rank 4", "model.lora.rank: there is no such option; known: alpha, dropout, r, targets"),
        ("--checkpoint.moniter x", "checkpoint.moniter: there is no such option; did you mean checkpoint.monitor?"),
        ("--quite.unlike 1", "quite.unlike: there is no such option; see main.py fit --help"),
        # of a wrong kind
        ("--data.num_frames four", "data.num_frames: expected int, not four"),
        ("--data.num_frames ''", "data.num_frames: expected int, not nothing"),
        ("--data.source.dynamic_objects maybe", "data.source.dynamic_objects: expected bool, not maybe"),
        ("--data.trajectory lokal", "data.source.trajectory: expected 'loop', 'local', not lokal"),
        ("--data.question_types room_size", "data.question_types: expected list[str] or null, not room_size"),
        (
            "--model.learning_rates 1e-4",
            "model.learning_rates: expected options of its own, not 1e-4; known: connector, decoder, encoding, "
            "geometry, vision",
        ),
        ("--model.lora.r four", "model.lora.r: expected int, not four"),
        # no such class
        ("--model PROPE", "model: there is no class PROPE; did you mean PRoPEMLLM?"),
        ("--model.camera_encoding PROPE", "model.camera_encoding: there is no class PROPE; did you mean PRoPE?"),
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
        ("--config option.yaml", "option.yaml: data.nm_frames: there is no such option; did you mean data.num_frames?"),
        (
            "--config group.yaml",
            "group.yaml: model.learning_rates.decodr: there is no such option; did you mean "
            "model.learning_rates.decoder?",
        ),
        ("--config trainer.yaml", "trainer.max_stps: there is no such option; did you mean trainer.max_steps?"),
        ("--config class.yaml", "class.yaml: model.camera_encoding: there is no class PROPE; did you mean PRoPE?"),
        (
            "--config part.yaml",
            "part.yaml: data.source.dynamic_object: there is no such option; did you mean data.source.dynamic_objects?",
        ),
        ("--config prose.yaml", "prose.yaml: holds no settings"),
        ("--config empty.yaml", "empty.yaml: holds no settings"),
        # words in a wrong place
        (
            "prope.yaml",
            "prope.yaml: not expected here; options start with --, configs are named by --config; see main.py fit "
            "--help",
        ),
        ("--data.num_frames", "argument --data: expected one argument; see main.py fit --help"),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_the_remedy(line: str, expected: str, said: Said) -> None:
    assert said(f"fit --config prope.yaml {line}") == f"error: {expected}"


@pytest.mark.parametrize(
    "option",
    [
        "model.learning_rates.decoder",
        "model.camera_encoding.reference",
        "model.view_mixer.encoding.reference",
        "data.source.workers",
    ],
)
def test_null_is_nothing_however_deep_the_option(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["--model.view_mixer", "ViewAttention", "--model.view_mixer.encoding", "PRoPE", f"--{option}", "null"]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "prope.yaml", *words, "--print_config"])
    with pytest.raises(SystemExit) as end:
        main.main()
    found = yaml.safe_load(capsys.readouterr().out)
    for part in option.split("."):
        found = found.get("init_args", found)[part]
    assert end.value.code == 0 and found is None


@pytest.mark.parametrize("option", ["dynamic_objects", "videos", "questions", "root", "path"])
def test_an_option_of_a_dataset_finds_it(option: str) -> None:
    assert expand_dataset_option(f"--data.{option}=x") == f"--data.source.{option}=x"
    assert expand_dataset_option(f"--data.source.{option}") == f"--data.source.{option}"


@pytest.mark.parametrize("option", ["num_frames", "num_frame", "question", "video", "sampler.candidates"])
def test_an_option_of_the_data_keeps_its_name_even_misspelled(option: str) -> None:
    assert expand_dataset_option(f"--data.{option}") == f"--data.{option}"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--model.help", "--model.help PRoPEMLLM        2D tokens to one half"),
        ("--config torn.yaml --model.help", "--model.help PRoPEMLLM        2D tokens to one half"),
        ("--config concat_split.yaml --model.help", "Help for --model.help=zoo.ConcatSplitMLLM"),
        ("--config concat_split.yaml --model.help --config prope.yaml", "Help for --model.help=zoo.PRoPEMLLM"),
        ("--config concat_split.yaml --model.help Qwen25VL", "Help for --model.help=zoo.Qwen25VL"),
        ("--config concat_split.yaml --model PRoPEMLLM --model.help", "Help for --model.help=zoo.PRoPEMLLM"),
    ],
)
def test_the_help_of_a_model_is_that_of_the_configs(
    line: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.yaml").write_text(CONFIGS["torn.yaml"])
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *line.split()])
    with pytest.raises(SystemExit) as end:
        main.main()
    said = capsys.readouterr().out
    assert end.value.code == 0 and named in said and "SpatialVLM " not in said


def test_a_class_that_has_no_such_part_or_is_of_another_kind_lists_those_that_fit(said: Said) -> None:
    models = "known: ConcatSplitMLLM, PRoPEMLLM, Qwen25VL, SpatialMLLM"
    assert said("fit --model zoo.PRoPE").startswith(
        "error: model: expected Trainable or null, not zoo.PRoPE; " + models
    )
    text = said("fit --config qwen25_vl.yaml --model.camera_encoding.scale none")
    assert text.startswith(
        "error: model.camera_encoding: no class is named yet that could have the option scale; known: CaPE, "
    )


def test_a_torn_config_is_named_with_its_line(said: Said) -> None:
    text = said("fit --config torn.yaml")
    assert text.startswith("error: torn.yaml: is no YAML: ") and "line 2" in text and "\n" not in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("test --config prope.yaml --ckpt_pth x", "ckpt_pth: there is no such option; did you mean ckpt_path?"),
        ("select-frames --splt val", "splt: there is no such option; did you mean split?"),
        (
            "select-frames --data.sampler Uniform",
            "data.sampler: there is no class Uniform; did you mean UniformSampler?",
        ),
        ("select-frames --split tst", "split: expected 'train', 'val', 'test', not tst"),
        ("score", "the following arguments are required: predictions; see main.py score --help"),
        ("score a --scorer foo", "unknown scorer 'foo'; VSIBench has spatial_mllm, thinking_in_space, lmms_eval_0.7.3"),
        ("report", "the following arguments are required: runs; see main.py report --help"),
        ("report runs --fromat html", "fromat: there is no such option; did you mean format?"),
    ],
)
def test_every_command_has_it(line: str, expected: str, said: Said) -> None:
    assert said(line) == f"error: {expected}"


def test_an_unknown_command_names_the_known(said: Said) -> None:
    known = ", ".join([*ZooCLI.subcommands(), *main.COMMANDS])
    assert said("fot") == f"error: there is no command fot, only {known}"


def test_a_trainer_that_can_not_be_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZooCLI, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "qwen25_vl.yaml", "--trainer.accelerator", "gppu"])
    with pytest.raises(SystemExit, match="error: trainer: You selected an invalid accelerator name: .*gppu") as end:
        main.main()
    assert "\n" not in str(end.value.code)


def test_the_control_lightnings_own_parser_needs_many_lines(
    said: Said, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("commands.cli.OneLineParser", LightningArgumentParser)
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", "--config", "prope.yaml", "--data.nm_frames", "4"])
    with pytest.raises(SystemExit):
        main.main()
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) > 20 and "data.num_frames?" not in printed


def test_the_most_alike_name_is_meant() -> None:
    names = ["trainer.max_steps", "trainer.min_steps", "data.num_frames"]
    assert closest("trainer.maxsteps", names)[1] == "trainer.max_steps"
    assert closest("max_steps", names) == (0.9, "trainer.max_steps")
    assert closest("data.num_frames", names) == (1.0, "data.num_frames")
    assert closest("nothing", []) == (0.0, "")


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_the_help_names_every_command(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    main.main()
    printed = capsys.readouterr().out
    assert all(command in printed for command in (*ZooCLI.subcommands(), *main.COMMANDS))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("fit --help", "--trainer.max_steps"),
        ("fit --model.help PRoPEMLLM", "--model.learning_rates.decoder"),
        ("fit --data.source.help Rooms", "--source.dynamic_objects"),
        ("fit --model.camera_encoding.help PRoPE", "--camera_encoding.placement"),
        ("select-frames --help", "--split"),
        ("score --help", "--scorer"),
        ("report --help", "--format"),
    ],
)
def test_help_helps(line: str, named: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", *shlex.split(line)])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0 and named in capsys.readouterr().out


OURS = (zoo, datamodules, callbacks)
PARTS = [part for package in OURS for part in map(vars(package).get, package.__all__) if isinstance(part, type)]


@pytest.mark.parametrize("part", [part for part in PARTS if not issubclass(part, Exception | SaveConfigCallback)])
def test_every_option_of_a_part_says_what_it_is(part: type) -> None:
    """Which `a, b: ...` in a docstring does not: the help has no text for either."""
    ours = [kind for kind in part.__mro__ if kind.__module__.split(".")[0] in [package.__name__ for package in OURS]]
    explained = {entry.arg_name for kind in ours for entry in docstring_parser.parse(kind.__doc__ or "").params}
    options = inspect.signature(part).parameters.values()
    assert {p.name for p in options if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} <= explained
