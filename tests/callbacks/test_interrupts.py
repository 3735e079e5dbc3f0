"""A training ends after its step at a signal or a time limit; for several processes see tests/test_two_processes.py."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from lightning.pytorch.callbacks import Callback

from callbacks.checkpoint import Checkpoint, CheckpointFiles
from callbacks.interrupts import TIME_IS_OVER, Interrupts


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
    trainer = toy.trainer(tmp_path, Interrupts(), sender)
    with pytest.raises(SystemExit) as end:
        trainer.test(toy.Toy())
    assert end.value.code == 128 + number and sender.seen == 2 and signal.getsignal(number) == before


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("accumulated", "step"), [(1, 2), (3, 1)])
def test_a_training_saves_the_complete_step_and_ends(accumulated: int, step: int, number: int, tmp_path: Path) -> None:
    before, settings = signal.getsignal(number), {"enable_checkpointing": True, "plugins": [CheckpointFiles()]}
    callbacks = Interrupts(), SendAt(2, number), Checkpoint()
    trainer = toy.trainer(
        tmp_path, *callbacks, accumulate_grad_batches=accumulated, max_epochs=9, limit_val_batches=0, **settings
    )
    with pytest.raises(SystemExit) as end:
        trainer.fit(toy.Toy())
    assert end.value.code == 128 + number and signal.getsignal(number) == before
    assert torch.load(tmp_path / "checkpoints/last.ckpt")["global_step"] == step == trainer.global_step


def test_a_time_limit_ends_a_training_after_a_complete_step_and_is_counted_anew(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True, "plugins": [CheckpointFiles()], "limit_val_batches": 0}
    last = tmp_path / "checkpoints/last.ckpt"
    for step in (1, 2):
        trainer = toy.trainer(
            tmp_path, Interrupts(timedelta()), Checkpoint(), accumulate_grad_batches=3, max_epochs=9, **settings
        )
        with pytest.raises(SystemExit) as end:
            trainer.fit(toy.Toy(), ckpt_path=str(last) if step > 1 else None)
        assert end.value.code == TIME_IS_OVER and torch.load(last)["global_step"] == step
    toy.trainer(tmp_path, Interrupts(timedelta(days=1)), Checkpoint(), max_steps=4, **settings).fit(toy.Toy())
    assert torch.load(last)["global_step"] == 4


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_ends_a_training_at_once(tmp_path: Path) -> None:
    handler, sender = signal.getsignal(signal.SIGINT), SendAt(2, signal.SIGINT, signal.SIGINT)
    trainer = toy.trainer(tmp_path, Interrupts(), sender, max_epochs=9, limit_val_batches=0)
    with pytest.raises(SystemExit) as end:
        trainer.fit(toy.Toy())
    assert end.value.code == 128 + signal.SIGINT
    assert trainer.global_step == 1 and signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("interruptible")
def test_a_worker_that_reads_data_takes_no_notice_of_an_interrupt(tmp_path: Path) -> None:
    """A terminal sends it to all processes; each would say that it ends."""
    statuses = []

    class ForkAt(SendAt):
        def on_train_batch_start(self, *_: Any, **__: Any) -> None:
            if (worker := os.fork()) == 0:
                os.kill(os.getpid(), signal.SIGINT)
                os._exit(ending._requested)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))

    ending = Interrupts()
    toy.trainer(tmp_path, ending, ForkAt(1), max_steps=1, limit_val_batches=0).fit(toy.Toy())
    assert statuses == [0]
