"""Ctrl-C, and SIGTERM, which a job is sent at its time limit: all processes save the same step and end."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

from callbacks.checkpoint import Checkpoint


class EndOnSigterm(Callback):
    """End a training or an evaluation once one of its processes is sent SIGTERM, and a training also at SIGINT.

    Lightning's own handler waits for the other processes wherever the signal finds it. Where these wait for the rest of
    a training step, all of them stand still. Here they agree after each optimizer step, on the host, so that no GPU is
    waited for, save `last.ckpt` together and end before the next batch. A second SIGINT ends a training at once. An
    evaluation ends at once in any case: its answers are on disk.

    Raises:
        SIGTERMException: In each process of a training at once.
        KeyboardInterrupt: The same, after SIGINT.
    """

    def __init__(self) -> None:
        self._asked = self._agreed = 0  # the signal
        self._hosts: Any = None  # the processes, by a backend of the CPU
        self._former: Any = signal.SIG_DFL  # handler of SIGINT
        self._process = os.getpid()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler, which it removes at the end."""

        def note(signum: int, frame: Any) -> None:
            if not self._asked and trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signum)  # type: ignore[arg-type]  # the processes that this one started
            self._asked = signum

        signal.signal(signal.SIGTERM, note)
        if trainer.world_size > 1 and self._hosts is None:
            self._hosts = distributed.new_group(backend="gloo")

    on_predict_start = on_test_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler, and that of SIGINT unless it is ignored, as by nohup."""
        self.on_test_start(trainer, pl_module)
        self._process = os.getpid()
        self._former = signal.getsignal(signal.SIGINT)
        if self._former is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._note_interrupt)

    def _note_interrupt(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a worker that reads data: a terminal interrupts it as well
            return
        self._restore()
        self._asked = max(self._asked, signum)
        rank_zero_info("interrupted: it ends when this step is complete and saved; Ctrl-C again ends it at once")

    def _restore(self) -> None:
        """Give SIGINT back, unless Lightning ignores it by now."""
        if signal.getsignal(signal.SIGINT) == self._note_interrupt:
            signal.signal(signal.SIGINT, self._former)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give SIGINT back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give SIGINT back."""
        self._restore()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Agree to end if any process is asked to, and have the complete step saved."""
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        asked = torch.tensor(int(self._asked))
        if self._hosts is not None:
            distributed.all_reduce(asked, distributed.ReduceOp.MAX, group=self._hosts)
        self._agreed = int(asked)
        for callback in trainer.checkpoint_callbacks if self._agreed else ():
            if isinstance(callback, Checkpoint):  # which comes after this callback
                callback.request()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """End if the processes have agreed to."""
        if self._agreed:
            raise KeyboardInterrupt if self._agreed == signal.SIGINT else SIGTERMException

    def on_test_batch_start(self, *_: Any, **__: Any) -> None:
        """End if this process is asked to: in an evaluation they wait for each other at its end only."""
        if self._asked:
            raise SIGTERMException

    on_predict_batch_start = on_test_batch_start

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """End as in a test; a validation within a training is gone through, after which its step is saved."""
        if trainer.state.fn != "fit":
            self.on_test_batch_start()
