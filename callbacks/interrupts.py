"""End a training on Ctrl-C, SIGTERM or a time limit. All processes save the same step first."""

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

TIME_IS_OVER = 124  # exit status, as in the command `timeout`
REASONS = {TIME_IS_OVER: "--trainer.max_time", 128 + signal.SIGINT: "Ctrl-C", 128 + signal.SIGTERM: "SIGTERM"}


class Ended(SystemExit):
    """A signal or the time limit ended the command.

    `code` is the exit status: 130 after Ctrl-C, 143 after SIGTERM, 124 after `--trainer.max_time`.
    """


class Interrupts(Callback):
    """End a training on Ctrl-C, on SIGTERM or after a time limit, once an optimizer step is complete and saved.

    After each optimizer step, the processes agree whether to end. They do so on the CPU, so that they don't wait for a
    GPU. They save `last.ckpt` together and end before the next batch. A second Ctrl-C ends the training at once. An
    evaluation always ends at once, because its answers are on disk.

    Lightning's own SIGTERM handler may end a training while gradients are accumulated. With several processes it waits
    for the others wherever the signal arrives, while they may wait for the rest of a training step. Lightning's Timer
    saves the elapsed time, and would stop a resumed training at its first step.

    Args:
        max_time: Time limit in each process, see Lightning's Timer. None sets no limit.

    Raises:
        Ended: Raised in all processes at the same step.
    """

    def __init__(self, max_time: str | timedelta | dict[str, int] | None = None) -> None:
        self._timer = Timer(max_time)
        self._requested = self._agreed = 0  # exit status
        self._step = 0  # number of complete optimizer steps
        self._process = 0
        self._hosts: Any = None  # group of the processes with a CPU backend
        self._launcher: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the timer and handle signals from now on."""
        self._timer.on_train_start(trainer, pl_module)
        self._step = trainer.global_step
        if trainer.world_size > 1 and self._hosts is None:
            self._hosts = distributed.new_group(backend="gloo")
        self._handle_signals(trainer, self._note)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End at once on a signal from now on."""
        self._handle_signals(trainer, self._end)

    on_predict_start = on_test_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the same as for a test. A validation within a training is completed, and its step saved."""
        if trainer.state.fn != "fit":
            self.on_test_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Agree to end if any process requests it, and request a save of the complete step."""
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
            if isinstance(callback, Checkpoint):  # it runs after this callback
                callback.save_soon()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """End if the processes have agreed to end."""
        if self._agreed:
            reason, step = REASONS[self._agreed], trainer.global_step
            rank_zero_info(f"ended by {reason} after step {step} of {trainer.estimated_stepping_batches}")
            raise Ended(self._agreed)

    def _handle_signals(self, trainer: Trainer, handler: Any) -> None:
        """Replace Lightning's handlers. Its Trainer restores them at the end."""
        self._process, self._launcher = os.getpid(), trainer.strategy.launcher
        signal.signal(signal.SIGTERM, handler)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGINT, handler)

    def _note(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a data worker, which a terminal interrupts too
            return
        self._requested = max(self._requested, 128 + signum)
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, self._end)
            rank_zero_info("interrupted: it ends when this step is complete and saved; Ctrl-C again ends it at once")

    def _end(self, signum: int, frame: Any) -> None:
        if os.getpid() == self._process:
            if self._launcher is not None:
                self._launcher.kill(signal.SIGKILL)  # the processes that this one started would wait for it
            raise Ended(128 + signum)
