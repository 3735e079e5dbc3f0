"""A run has the name that it was given, or one that says what was changed; `latest_run` knows both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace, dict_to_namespace
from lightning.pytorch.loggers import WandbLogger

from commands.cli import build_logger
from commands.runs import newest_run, resolve_run, run_name, run_of
from tests.cli import Run
from tests.commands.made_runs import CONFIG, make_run
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
        ("--model.fusion.detached true", "PRoPEMLLM-detached-true"),
        ("--model.backbone TinyQwen3VL --model.backbone.layers 2", "PRoPEMLLM-TinyQwen3VL"),
        ("--model.learning_rates.decoder 1e-4 --model.lora.r 16", "PRoPEMLLM-lora-16"),
        ("--model.backbone.path Model-Org/../Y --model.lora.r -1", "PRoPEMLLM-lora-1"),
        ("--model.fusion.path Model-Org/Y", "PRoPEMLLM-Model-Org-Y"),
        ("--model.fusion /home/Me/x.Y", "PRoPEMLLM-Y"),
        ("--model.fusion ../A/B", "PRoPEMLLM-A-B"),
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


def test_a_checkpoint_is_of_the_run_around_it_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "runs/one", [])
    for folder, checkpoint, expected in (
        (tmp_path, "runs/one/checkpoints/last.ckpt", "runs/one"),
        (run, "checkpoints/last.ckpt", "."),
        (run / "checkpoints", "last.ckpt", run),
        (run / "checkpoints/deep", "../last.ckpt", run),
        (run, "last.ckpt", None),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        found = run_of(Path(checkpoint))
        assert found == (None if expected is None else Path(expected)), checkpoint


def test_a_named_fit_is_found_by_its_name_in_its_folder_and_loggers(run: Run, tmp_path: Path) -> None:
    run("fit", "--config", "qwen25_vl.yaml", "--name", "prope-rms", "--trainer.max_steps", "1")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("prope-rms-20")
    assert yaml.safe_load((folder / "config.yaml").read_text())["name"] == "prope-rms"
    assert latest_run("prope-rms") == latest_run("Qwen25VL") == latest_run() == folder.relative_to(tmp_path)
    with pytest.raises(InputError, match="no trained run of PRoPEMLLM in runs/"):
        latest_run("PRoPEMLLM")
    options: dict[str, Any] = {"save_dir": ".", "name": None, "project": "rooms"}

    class Recorded(WandbLogger):
        def __init__(self, **given: Any) -> None:
            self.given = given

    assert build_logger(folder, "prope-rms", Recorded, **options).given["name"] == "prope-rms"  # type: ignore[attr-defined]
    assert build_logger(folder, "x", Recorded, **{**options, "name": "mine"}).given["name"] == "mine"  # type: ignore[attr-defined]


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
        with pytest.warns(UserWarning, match="runs/broken is passed over"):
            assert find() == Path("runs/a")


def test_a_passed_over_run_is_described_by_what_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    encoding = {"class_path": "zoo.PRoPE", "init_args": {"apply_to": "qk"}}
    trained = {"class_path": "zoo.PRoPEMLLM", "init_args": {"camera_encoding": encoding}}
    checkpoint = make_run(tmp_path / "runs/run", None, {"model": trained}) / "checkpoints/last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    for name, encoding, reason in (
        ("Qwen25VL", None, "model"),
        ("PRoPEMLLM", None, "model.camera_encoding"),
        ("PRoPEMLLM", {"class_path": "zoo.PRoPE", "init_args": {"apply_to": "vo"}}, "model.camera_encoding.apply_to"),
    ):
        caplog.clear()
        parts = {"camera_encoding": encoding} if name == "PRoPEMLLM" else {}
        with pytest.raises(InputError, match=f"no run of this {name}"):
            resolve_run("test", settings_of({"class_path": f"zoo.{name}", "init_args": parts}))
        assert caplog.messages == [f"runs/run is passed over: it was trained with another {reason}"]
