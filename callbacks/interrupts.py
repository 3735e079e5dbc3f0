"""Ctrl-C, SIGTERM and the time limit of a training: all processes save the same step and end."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.utilities import rank_zero_info
from torch import distributed

from callbacks.checkpoint import Checkpoint

TIME_IS_OVER = 124  # an exit status, as of the command `timeout`
REASONS = {TIME_IS_OVER: "--trainer.max_time", 128 + signal.SIGINT: "Ctrl-C", 128 + signal.SIGTERM: "SIGTERM"}


class Ended(SystemExit):
    """A command that a signal or the time limit ended.

    Its `code` is the exit status: 130 after Ctrl-C, 143 after SIGTERM, 124 after `--trainer.max_time`.
    """


class Interrupts(Callback):
    """End a training at Ctrl-C, at SIGTERM or after a time, where an optimizer step is complete and saved.

    The processes agree after each optimizer step, on the host, so that no GPU is waited for. They save `last.ckpt`
    together and end before the next batch. A second Ctrl-C ends a training at once. An evaluation always ends at once,
    because its answers are on disk.

    Lightning's own handler of SIGTERM may end a training while gradients are accumulated. With several processes it
    waits for the others wherever the signal finds it, and these may wait for the rest of a training step. Lightning's
    Timer saves the time that has passed, and so would stop a resumed training at its first step.

    Args:
        max_time: Time of each process until a training ends, see Lightning's Timer; None has no limit.

    Raises:
        Ended: In each process at once.
    """

    def __init__(self, max_time: str | timedelta | dict[str, int] | None = None) -> None:
        self._timer = Timer(max_time)
        self._requested = self._agreed = 0  # the exit status
        self._step = 0  # optimizer steps that are complete
        self._process = 0
        self._hosts: Any = None  # the processes, by a backend of the CPU
        self._launcher: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the time, and note signals from here on."""
        self._timer.on_train_start(trainer, pl_module)
        self._step = trainer.global_step
        if trainer.world_size > 1 and self._hosts is None:
            self._hosts = distributed.new_group(backend="gloo")
        self._handle_signals(trainer, self._note)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End at a signal from here on."""
        self._handle_signals(trainer, self._end)

    on_predict_start = on_test_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As a test; a validation within a training is completed, and its step saved."""
        if trainer.state.fn != "fit":
            self.on_test_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Agree to end if any process is to, and have the complete step saved."""
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        remaining = self._timer.time_remaining()
        if remaining is not None and remaining <= 0:
            self._requested = max(self._requested, TIME_IS_OVER)
        agreed = torch.tensor(self._requested)
        if self._hosts is not None:
            distributed.all_reduce(agreed, distributed.ReduceOp.MAX, group=self._hosts)
        self._agreed = int(agreed)
        for callback in trainer.checkpoint_callbacks if self._agreed else ():
            if isinstance(callback, Checkpoint):  # which comes after this callback
                callback.save_soon()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """End if the processes have agreed to."""
        if self._agreed:
            reason, step = REASONS[self._agreed], trainer.global_step
            rank_zero_info(f"ended by {reason} after step {step} of {trainer.estimated_stepping_batches}")
            raise Ended(self._agreed)

    def _handle_signals(self, trainer: Trainer, handler: Any) -> None:
        """Replace Lightning's handlers, which its Trainer restores at the end."""
        self._process, self._launcher = os.getpid(), trainer.strategy.launcher
        signal.signal(signal.SIGTERM, handler)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as by nohup
            signal.signal(signal.SIGINT, handler)

    def _note(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a worker that reads data: a terminal interrupts it as well
            return
        self._requested = max(self._requested, 128 + signum)
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, self._end)
            rank_zero_info("interrupted: it ends when this step is complete and saved; Ctrl-C again ends it at once")

    def _end(self, signum: int, frame: Any) -> None:
        if os.getpid() == self._process:
            if self._launcher is not None:
                self._launcher.kill(signal.SIGKILL)  # the processes that this one started, which would wait for it
            raise Ended(128 + signum)
