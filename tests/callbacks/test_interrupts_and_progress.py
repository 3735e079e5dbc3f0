"""Signals, time limits and lines of progress; for several processes see tests/test_two_processes.py."""

from __future__ import annotations

import os
import re
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from callbacks.checkpoint import Checkpoint, CheckpointFiles
from callbacks.interrupts import TIME_IS_OVER, Interrupts
from callbacks.progress import PlainProgress, progress_bar
from tests.callbacks.toy import Toy, record, trainer


class SendAt(Callback):
    """Sends this process a signal at a batch, and counts the batches."""

    def __init__(self, batch: int, *signals: int) -> None:
        self.batch, self.seen, self.signals = batch, 0, signals or (signal.SIGTERM,)

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        self.seen += 1
        if self.seen == self.batch:
            for each in self.signals:
                os.kill(os.getpid(), each)

    on_test_batch_start = on_train_batch_start


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_evaluation_ends_at_once_and_leaves_no_handler(number: int, tmp_path: Path) -> None:
    before, sender = signal.getsignal(number), SendAt(2, number)
    tested = trainer(tmp_path, Interrupts(), sender)
    with pytest.raises(SystemExit) as end:
        tested.test(Toy())
    assert end.value.code == 128 + number and sender.seen == 2 and signal.getsignal(number) == before


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("accumulated", "step", "number"), [(1, 2, signal.SIGTERM), (3, 1, signal.SIGINT)])
def test_a_training_saves_the_complete_step_and_ends(accumulated: int, step: int, number: int, tmp_path: Path) -> None:
    before, settings = signal.getsignal(number), {"enable_checkpointing": True, "plugins": [CheckpointFiles()]}
    callbacks = Interrupts(), SendAt(2, number), Checkpoint()
    tested = trainer(
        tmp_path, *callbacks, accumulate_grad_batches=accumulated, max_epochs=9, limit_val_batches=0, **settings
    )
    with pytest.raises(SystemExit) as end:
        tested.fit(Toy())
    assert end.value.code == 128 + number and signal.getsignal(number) == before
    assert torch.load(tmp_path / "checkpoints/last.ckpt")["global_step"] == step == tested.global_step


def test_a_time_limit_ends_a_training_after_a_complete_step_and_is_counted_anew(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True, "plugins": [CheckpointFiles()], "limit_val_batches": 0}
    last = tmp_path / "checkpoints/last.ckpt"
    for step in (1, 2):
        tested = trainer(
            tmp_path, Interrupts(timedelta()), Checkpoint(), accumulate_grad_batches=3, max_epochs=9, **settings
        )
        with pytest.raises(SystemExit) as end:
            tested.fit(Toy(), ckpt_path=str(last) if step > 1 else None)
        assert end.value.code == TIME_IS_OVER and torch.load(last)["global_step"] == step
    trainer(tmp_path, Interrupts(timedelta(days=1)), Checkpoint(), max_steps=4, **settings).fit(Toy())
    assert torch.load(last)["global_step"] == 4


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_ends_a_training_at_once(tmp_path: Path) -> None:
    handler, sender = signal.getsignal(signal.SIGINT), SendAt(2, signal.SIGINT, signal.SIGINT)
    tested = trainer(tmp_path, Interrupts(), sender, max_epochs=9, limit_val_batches=0)
    with pytest.raises(SystemExit) as end:
        tested.fit(Toy())
    assert end.value.code == 128 + signal.SIGINT
    assert tested.global_step == 1 and signal.getsignal(signal.SIGINT) is handler


# ---- lines of progress

SCENES = [[record(str(i), "object_counting", "4", "4")] for i in range(40)]  # 20 batches


def run(folder: Path, **settings: Any) -> Trainer:
    return trainer(folder, PlainProgress(), enable_progress_bar=True, **settings)


def starting_with(name: str, text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(name)]


def test_fit_prints_every_tenth_with_loss_rate_and_eta(tmp_path, capsys):
    run(tmp_path, max_steps=50, num_sanity_val_steps=2).fit(Toy(SCENES))
    text = capsys.readouterr().out
    train = starting_with("train", text)
    assert [int(re.match(r"train (\d+)/50 \(", line).group(1)) for line in train] == list(range(5, 51, 5))
    assert all(re.search(r"loss \S+  \S+ it/s  ETA \d\d:\d\d$", line) for line in train)
    validation = starting_with("validation", text)
    assert len(validation) == 2  # the end of each whole epoch; the sanity check is silent
    assert all(line.startswith("validation 20/20 (100%)") for line in validation)


def test_accumulation_counts_optimizer_steps_and_shows_the_logged_loss(tmp_path, capsys):
    run(tmp_path, max_epochs=1, accumulate_grad_batches=4, limit_val_batches=0).fit(Toy(SCENES))
    train = starting_with("train", capsys.readouterr().out)
    assert [line.split("  ")[0] for line in train] == [f"train {i}/5 ({i / 5:.0%})" for i in range(1, 6)]
    assert "loss 1 " in train[0]  # (1 - 2)² at the toy's first step, which returns half of it


def test_test_validate_and_predict_print_every_tenth(tmp_path, capsys):
    for name, verb in (("test", "test"), ("validation", "validate"), ("predict", "predict")):
        getattr(run(tmp_path), verb)(Toy(SCENES))
        printed = starting_with(name, capsys.readouterr().out)
        assert len(printed) == 10
        assert printed[-1].startswith(f"{name} 20/20 (100%)")
        assert all("ETA" in line and "it/s" in line for line in printed)


@pytest.mark.parametrize(("terminal", "kind"), [(True, TQDMProgressBar), (False, PlainProgress)])
def test_a_bar_in_a_terminal_and_lines_elsewhere(monkeypatch, terminal, kind):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert isinstance(progress_bar(), kind)
