"""A run has the name that it was given, or one that says what was changed; reports and `latest_run` know both."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace, dict_to_namespace
from lightning.pytorch.loggers import WandbLogger

from commands.cli import build_logger
from commands.report import report
from commands.runs import newest_run, resolve_run, run_name
from tests.cli import Run
from tests.commands.made_runs import CONFIG, answers, make_run
from zoo import latest_run
from zoo.errors import InputError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "PRoPEMLLM"),
        ("--model.camera_encoding GTA", "PRoPEMLLM-GTA"),
        ("--model.camera_encoding=zoo.GTA --data.num_frames 8 --config prope.yaml", "PRoPEMLLM-GTA"),
        ("--model.fusion null --model.view_mixer null", "PRoPEMLLM-no-fusion-no-view_mixer"),
        ("--model.camera_encoding.pose_component rotation", "PRoPEMLLM-pose_component-rotation"),
        ("--model.objectives=[CameraPrediction,DepthPrediction]", "PRoPEMLLM-CameraPrediction-DepthPrediction"),
        ("--model.backbone TinyQwen3VL --model.backbone.layers 2", "PRoPEMLLM-TinyQwen3VL"),
        ("--model.learning_rates.decoder 1e-4 --model.lora.r 16", "PRoPEMLLM-lora-16"),
        ("--model.geometry_cache.folder cache/geometry", "PRoPEMLLM"),
        (" ".join(f"--model.camera_encoding.option{i} value{i}" for i in range(9)), "PRoPEMLLM"),  # too long to tell
    ],
)
def test_a_name_says_what_departs_from_the_models_config(words: str, expected: str) -> None:
    assert run_name(None, "PRoPEMLLM", words.split()) == expected
    assert run_name("prope-rms", "PRoPEMLLM", words.split()) == "prope-rms"


@pytest.mark.parametrize("name", ["a/b", "", "..", "a b"])
def test_a_name_is_one_of_a_folder(name: str) -> None:
    with pytest.raises(InputError, match=f"--name {name}: letters"):
        run_name(name, "PRoPEMLLM", [])


def test_a_named_fit_is_found_by_its_name_in_its_folder_report_and_loggers(run: Run, tmp_path: Path, capsys) -> None:
    run("fit", "--config", "qwen25_vl.yaml", "--name", "prope-rms", "--trainer.max_steps", "1")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("prope-rms-20")
    assert yaml.safe_load((folder / "config.yaml").read_text())["name"] == "prope-rms"
    assert latest_run("prope-rms") == latest_run("Qwen25VL") == latest_run() == folder.relative_to(tmp_path)
    with pytest.raises(InputError, match="no trained run of PRoPEMLLM in runs/"):
        latest_run("PRoPEMLLM")
    run("test")  # reads the run's config
    report([str(folder)])
    assert "\nprope-rms " in capsys.readouterr().out
    options: dict[str, Any] = {"save_dir": ".", "name": None, "project": "rooms"}

    class Recorded(WandbLogger):
        def __init__(self, **given: Any) -> None:
            self.given = given

    assert build_logger(folder, "prope-rms", Recorded, **options).given["name"] == "prope-rms"  # type: ignore[attr-defined]
    assert build_logger(folder, "x", Recorded, **{**options, "name": "mine"}).given["name"] == "mine"  # type: ignore[attr-defined]


def test_runs_of_one_name_are_labeled_by_what_differs(tmp_path: Path, capsys) -> None:
    others = {"num_frames": 8}, {"sampler": {"class_path": "datamodules.PoseFarthestSampler"}}
    folders = [make_run(tmp_path / "PRoPEMLLM-20261127-174300", answers(90))]
    for number, changes in enumerate(others):
        config = copy.deepcopy(CONFIG)
        config["data"]["init_args"] |= changes  # type: ignore[index]
        folders.append(make_run(tmp_path / f"PRoPEMLLM-20261127-17440{number}", answers(90, seed=number), config))
    folders.append(make_run(tmp_path / "PRoPEMLLM-GTA-20261127-174300", answers(45)))
    capsys.readouterr()
    report([*map(str, folders)])
    said = capsys.readouterr().out
    for label in (
        "PRoPEMLLM, num_frames 24, sampler null",
        "PRoPEMLLM, num_frames 8, sampler null",
        "PRoPEMLLM, num_frames 24, sampler PoseFarthestSampler",
        "PRoPEMLLM-GTA",
    ):
        assert f"\n{label}  " in said
    assert said.count("Scores by question type") == 2  # 90 questions, and 45
    assert "test set 1 of 2: 90 questions" in said and "test set 2 of 2: 45 questions" in said
    report([str(folders[0]), str(make_run(tmp_path / "PRoPEMLLM-20261127-174309", answers(90)))])
    said = capsys.readouterr().out  # equal settings
    assert "\nPRoPEMLLM-20261127-174309 " in said and "test set" not in said


def settings_of(model: Any, **more: Any) -> Namespace:
    """The parsed settings of a command."""
    parts = {"model": model, "ckpt_path": "last", "trainer": {"default_root_dir": None}, "name": None, **more}
    return dict_to_namespace({"data": CONFIG["data"], "seed_everything": 0, **parts})


def test_the_latest_run_has_the_newest_checkpoint_and_a_config(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("b", "a", "broken", "c")):
        checkpoint = make_run(tmp_path / "runs" / name, None) / "checkpoints/last.ckpt"
        if name != "c":
            checkpoint.parent.mkdir()
            checkpoint.touch()
            os.utime(checkpoint, (number, number))
    Path("runs/broken/config.yaml").write_text("model: [")

    def resolved() -> Path:
        monkeypatch.setattr("commands.runs.check_readable", lambda path: None)
        resolve_run("test", settings := settings_of(CONFIG["model"]))
        return Path(settings.ckpt_path).parent.parent

    for find in (lambda: latest_run("PRoPEMLLM"), newest_run, resolved):
        with pytest.warns(UserWarning, match="runs/broken is passed over: its config.yaml can't be read"):
            assert find() == Path("runs/a")


ENCODING = {"class_path": "zoo.PRoPE", "init_args": {"apply_to": "qk"}}


@pytest.mark.parametrize(
    ("name", "parts", "reason"),
    [
        ("Qwen25VL", {}, "model"),
        ("PRoPEMLLM", {"camera_encoding": None}, "model.camera_encoding"),
        ("PRoPEMLLM", {"camera_encoding": {"class_path": "zoo.GTA", "init_args": {}}}, "model.camera_encoding"),
        (
            "PRoPEMLLM",
            {"camera_encoding": {**ENCODING, "init_args": {"apply_to": "vo"}}},
            "model.camera_encoding.apply_to",
        ),
    ],
)
def test_a_passed_over_run_is_described_by_what_was_changed(
    name: str,
    parts: dict[str, Any],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = {"class_path": "zoo.PRoPEMLLM", "init_args": {"camera_encoding": ENCODING}}
    checkpoint = make_run(tmp_path / "runs/run", None, {"model": trained}) / "checkpoints/last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    settings = settings_of({"class_path": f"zoo.{name}", "init_args": parts})
    for command in ("fit", "test"):
        with pytest.raises(InputError, match=f"no run of this {name} under runs/ has a checkpoint: train it first"):
            resolve_run(command, settings)
    assert caplog.messages == [f"runs/run is passed over: it was trained with another {reason}"] * 2
