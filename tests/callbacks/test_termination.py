"""A command that is sent SIGTERM ends after its batch; several processes are in tests/test_two_processes.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import toy
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.termination import EndOnSigterm


class SendAt(Callback):
    """Sends this process SIGTERM at a batch, and counts the batches."""

    def __init__(self, batch: int) -> None:
        self.batch, self.seen = batch, 0

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        self.seen += 1
        if self.seen == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)

    on_test_batch_start = on_train_batch_start


@pytest.mark.parametrize("command", ["fit", "test"])
def test_it_ends_after_the_batch_and_leaves_no_handler(command: str, tmp_path: Path) -> None:
    before, sender = signal.getsignal(signal.SIGTERM), SendAt(2)
    trainer = toy.trainer(tmp_path, EndOnSigterm(), sender, max_epochs=9, limit_val_batches=0)
    with pytest.raises(SIGTERMException):
        getattr(trainer, command)(toy.Toy())
    assert sender.seen == 2 and signal.getsignal(signal.SIGTERM) == before
