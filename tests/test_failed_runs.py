"""What a run prints and leaves: no noise, no empty folder, one line per fault, and the command that goes on."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from datamodules import VideoQADataModule, datamodule
from tests.cli import Run, Trained, the_run
from zoo import VideoQATask

QWEN = ("fit", "--config", "qwen25_vl.yaml")
EVERY_STEP = ("--checkpoint.every_n_train_steps", "1", "--trainer.limit_val_batches", "0")


def fail_at(step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    training_step = VideoQATask.training_step

    def failing(self: VideoQATask, batch: dict, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == step:
            raise error
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(VideoQATask, "training_step", failing)


def runs() -> list[str]:
    return sorted(path.name for path in Path("runs").glob("*"))


def test_a_fit_that_is_ended_while_data_is_prepared_leaves_no_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_: VideoQADataModule) -> None:
        assert runs() and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(VideoQADataModule, "prepare_data", ended)
    with pytest.raises(SystemExit) as error:
        run(*QWEN)
    assert error.value.code == 128 + signal.SIGTERM and not runs()


def test_a_fit_that_fails_before_its_first_step_leaves_no_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as failing:
        fail_at(1, KeyboardInterrupt(), failing)  # before anything is saved
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit):
            run(*QWEN, "--trainer.limit_val_batches", "0")
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    assert not runs()
    fail_at(0, KeyError("a bug"), monkeypatch)
    Path("given").mkdir()
    for given, is_kept in (("runs/made", False), ("given", True)):  # what was there before is the user's
        with pytest.raises(SystemExit, match="^error: KeyError: 'a bug' "):
            run(*QWEN, *EVERY_STEP, "--trainer.default_root_dir", given)
        assert Path(given, "config.yaml").exists() == is_kept
    assert not runs()


@pytest.mark.slow
def test_a_test_says_first_that_a_newer_training_failed(
    run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained()
    with monkeypatch.context() as failing:
        fail_at(0, KeyError("a bug"), failing)
        with pytest.raises(SystemExit, match="^error: KeyError: 'a bug' "):
            run(*QWEN, *EVERY_STEP)
    assert runs() == [".failed", folder.name]
    said = f"a newer training than runs/{folder.name} failed: KeyError: 'a bug' "
    monkeypatch.setattr("commands.cli.ZooCLI.instantiate_classes", None)
    for retrained in (False, True):
        if retrained:  # the control
            os.utime(folder / "checkpoints/last.ckpt")
        with pytest.raises(TypeError):
            run("test")
        assert (said in caplog.text) is not retrained


@pytest.mark.slow
def test_a_score_that_is_not_logged_and_an_absent_logger_are_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = ("--trainer.val_check_interval", "1", "--trainer.callbacks", "EarlyStopping")
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    for words, error in (
        ((*stopping, "--trainer.callbacks.monitor", "val/acuracy"), "trainer: .*val/acuracy.*val/acc/micro"),
        (("--trainer.logger", "WandbLogger"), "WandbLogger can't be built: ModuleNotFoundError: "),
    ):
        with pytest.raises(SystemExit, match=f"^error: {error}") as end:
            run(*QWEN, *words)
        assert "\n" not in str(end.value.code) and "site-packages" not in str(end.value.code)


def test_a_folder_is_no_checkpoint(run: Run, trained: Trained, tmp_path: Path) -> None:
    folder = trained()
    for given in (folder, folder / "checkpoints"):
        with pytest.raises(SystemExit, match=f"^error: {given} is a folder: give a file, {folder}/checkpoints/last.ck"):
            run("test", "--ckpt_path", str(given))
    with pytest.raises(SystemExit, match="^error: .* is a folder: give a file, such as last.ckpt$"):
        run(*QWEN, "--ckpt_path", str(tmp_path))


@pytest.mark.slow
def test_a_full_disk_is_one_line(run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    save, limits = Trainer.save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(self: Trainer, *words: object, **options: object) -> None:
        if self.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk: a real failed write
        try:
            save(self, *words, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(Trainer, "save_checkpoint", on_a_full_disk)
    with pytest.raises(SystemExit, match="^error: .* can't be written: "):
        run(*QWEN, *EVERY_STEP)
    assert "to go on: python main.py fit --config runs/" in caplog.text


def test_an_interrupted_fit_names_the_command_that_goes_on(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, interruptible: None
) -> None:
    handler, training_step = signal.getsignal(signal.SIGINT), VideoQATask.training_step

    def interrupted(self: VideoQATask, batch: dict, batch_idx: int) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)  # Ctrl-C in the first step, which is completed and saved
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as failing:
        failing.setattr(VideoQATask, "training_step", interrupted)
        with pytest.raises(SystemExit) as end:
            run(*QWEN, "--trainer.limit_val_batches", "0")
    assert end.value.code == 128 + signal.SIGINT and "Detected KeyboardInterrupt" not in caplog.text
    signal.signal(signal.SIGINT, handler)
    assert torch.load(the_run(tmp_path) / "checkpoints/last.ckpt", weights_only=False)["global_step"] == 1
    (line,) = (text for text in caplog.messages if text.startswith("to go on: python main.py "))
    words = shlex.split(line.removeprefix("to go on: python main.py "))
    run(*words, sized=False)
    saved = torch.load(the_run(tmp_path) / "checkpoints/last.ckpt", weights_only=False)
    assert saved["global_step"] == 2


@pytest.mark.slow
def test_a_training_may_skip_an_unreadable_scene_and_its_test_says_so(
    run: Run,
    tmp_path: Path,
    rooms_root: Path,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(rooms_root, tmp_path / "rooms")
    (damaged,) = tmp_path.glob("rooms/*/rooms/train_00003.mp4")
    damaged.write_bytes(damaged.read_bytes()[:100])
    words = (*QWEN, "--data.source.root", str(tmp_path / "rooms"), "--trainer.max_steps", "4")
    with pytest.raises(SystemExit, match=f"{damaged.name}: .*; --data.on_error skip trains without this scene$"):
        run(*words)
    monkeypatch.setattr(datamodule, "MAX_SKIPPED", 0.5)  # of the few rooms
    run(*words, "--data.on_error", "skip")
    assert sum("training goes on without" in str(each.message) for each in recwarn) == 1
    run("test")
    assert json.loads((the_run(tmp_path) / "metrics.json").read_text())["skipped_training_scenes"] == 1


@pytest.mark.slow
def test_a_time_limit_ends_a_fit_with_a_status_and_each_resumed_one_has_all_of_it(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = ("--trainer.max_steps", "3", "--trainer.limit_val_batches", "0")
    words: tuple[str, ...] = (*QWEN, *steps, "--trainer.max_time.microseconds", "1")  # each fit makes a step
    for step in (1, 2):
        with pytest.raises(SystemExit) as end:
            run(*words, sized=step == 1)
        (line,) = (text for text in caplog.messages if text.startswith("to go on: python main.py "))
        assert f"ended by --trainer.max_time after step {step} of 3" in caplog.messages and end.value.code == 124
        words = tuple(shlex.split(line.removeprefix("to go on: python main.py ")))
    assert "is trained" in run(*words, sized=False, logged=True)  # its time is over as well, and its steps are done


@pytest.mark.slow
def test_an_interrupted_test_names_the_command_that_goes_on(
    run: Run, trained: Trained, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained()
    handler, predict, asked = signal.getsignal(signal.SIGINT), VideoQATask.predict_batch, []

    def interrupted(self: VideoQATask, batch: dict) -> list:
        asked.append(batch)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return predict(self, batch)

    monkeypatch.setattr(VideoQATask, "predict_batch", interrupted)
    monkeypatch.setattr(sys, "orig_argv", ["python", "main.py", "test"])
    with pytest.raises(SystemExit):
        run("test")
    signal.signal(signal.SIGINT, handler)
    assert "to go on: python main.py test" in caplog.messages
    assert "resumes with" in run("test", logged=True)


def test_a_run_prints_what_a_user_can_use(run: Run, trained: Trained, capsys: pytest.CaptureFixture) -> None:
    folder = trained()
    noise = ("FLOPs", "site-packages", "litlogger")
    said = run(*QWEN, "--ckpt_path", "last", "--trainer.max_steps", "3", logged=True)
    tested = run("test", logged=True)
    assert [word for word in noise if word in said + tested] == []
    assert "Qwen25VL: " in said and "parameters, trained: decoder " in said and said.count("Restored all states") == 1
    assert tested.count("Loaded model weights") == 1
    assert "attention in the first step: SDPA flash" in said
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["training_attention"].keys() == metrics["attention"].keys() == {"SDPA flash"}
    assert capsys.readouterr().out.count("Qwen25VL, test split of Rooms\n") == 1
