"""A command that is sent SIGTERM ends after its batch; several processes are in tests/test_two_processes.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks import Checkpoint
from callbacks.checkpoint_io import CheckpointFiles
from callbacks.termination import EndOnSigterm


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


@pytest.mark.parametrize("command", ["fit", "test"])
def test_it_ends_after_the_batch_and_leaves_no_handler(command: str, tmp_path: Path) -> None:
    before, sender = signal.getsignal(signal.SIGTERM), SendAt(2)
    trainer = toy.trainer(tmp_path, EndOnSigterm(), sender, max_epochs=9, limit_val_batches=0)
    with pytest.raises(SIGTERMException):
        getattr(trainer, command)(toy.Toy())
    assert sender.seen == 2 and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("accumulated", "step"), [(1, 2), (3, 1)])
def test_a_training_saves_the_complete_step_and_ends(accumulated: int, step: int, number: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True, "plugins": [CheckpointFiles()], "limit_val_batches": 0}
    callbacks = EndOnSigterm(), SendAt(2, number), Checkpoint()
    trainer = toy.trainer(tmp_path, *callbacks, accumulate_grad_batches=accumulated, max_epochs=9, **settings)
    with pytest.raises(SystemExit) as end:
        trainer.fit(toy.Toy())
    assert isinstance(end.value, SIGTERMException) == (number == signal.SIGTERM)
    assert torch.load(tmp_path / "checkpoints/last.ckpt")["global_step"] == step == trainer.global_step


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_ends_a_training_at_once(tmp_path: Path) -> None:
    sender = SendAt(2, signal.SIGINT, signal.SIGINT)
    trainer = toy.trainer(tmp_path, EndOnSigterm(), sender, max_epochs=9, limit_val_batches=0)
    with pytest.raises(SystemExit):
        trainer.fit(toy.Toy())
    assert trainer.global_step == 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores further ones
    trainer = toy.trainer(tmp_path, EndOnSigterm(), max_epochs=1, limit_val_batches=0)
    trainer.fit(toy.Toy())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_a_worker_that_reads_data_takes_no_notice_of_an_interrupt(tmp_path: Path) -> None:
    """A terminal sends it to all processes; each would say that it ends."""
    statuses = []

    class ForkAt(SendAt):
        def on_train_batch_start(self, *_: Any, **__: Any) -> None:
            if (worker := os.fork()) == 0:
                os.kill(os.getpid(), signal.SIGINT)
                os._exit(ending._asked)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))

    ending = EndOnSigterm()
    toy.trainer(tmp_path, ending, ForkAt(1), max_steps=1, limit_val_batches=0).fit(toy.Toy())
    assert statuses == [0]
