"""Progress of a run: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from zoo.progress import SHARE, Loop

SHOWN = ("loss", "reward")  # logged values to show; the loss that a training step returns is weighted
SECONDS = 2.0  # between two readings


def read_shown(trainer: Trainer) -> dict[str, str]:
    """Return the logged values to show, as text. Reading them waits for the device."""
    logged = trainer.callback_metrics
    return {name: f"{float(logged[key]):.4g}" for name in SHOWN if (key := f"train/{name}") in logged}


def progress_bar() -> ProgressBar:
    """Return a bar (steps, rate, ETA) if stdout is a terminal, else `PlainProgress`."""
    return TerminalProgress() if sys.stdout.isatty() else PlainProgress()


class TerminalProgress(TQDMProgressBar):
    """Lightning's bar with the loss, which is read every two seconds.

    Lightning would read values logged with `prog_bar=True` at each step, and thereby wait for the device.
    """

    _shown: dict[str, str] = {}
    _read_at = -math.inf

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the values for the bar."""
        if (now := time.monotonic()) - self._read_at >= SECONDS:
            self._shown, self._read_at = read_shown(trainer), now
        return {**super().get_metrics(trainer, pl_module), **self._shown}


class PlainProgress(ProgressBar):
    """Print a line every tenth of a loop or every 30 seconds, whichever comes first, and at its end.

    `train 120/600 (20%)  loss 1.234  3.2 it/s  ETA 02:30` counts the optimizer steps of the whole fit, or the batches
    of a validation, test or prediction. Within a fit, validation prints every 30 seconds and at its end. The rate is
    the mean since the start of the loop. The rate of a fit includes its validations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_enabled = True  # LightningModule.print reads it
        self._fit, self._evaluation = Loop("train"), Loop("validation")

    def enable(self) -> None:
        """Print lines."""
        self.is_enabled = True

    def disable(self) -> None:
        """Print no lines."""
        self.is_enabled = False

    def _advance(self, loop: Loop, done: int, note: Callable[[], str] = str) -> None:
        if self.is_enabled and (line := loop.line(done, note)):
            self.print(line, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting optimizer steps."""
        self._fit = Loop("train", trainer.estimated_stepping_batches, begun=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line with the loss if one is due."""

        def note() -> str:
            return "  ".join(f"{name} {value}" for name, value in read_shown(trainer).items())

        self._advance(self._fit, trainer.global_step, note)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting batches."""
        share = 1.0 if trainer.state.fn == "fit" else SHARE
        self._evaluation = Loop("validation", sum(trainer.num_val_batches), share=share)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting batches."""
        self._evaluation = Loop("test", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting batches."""
        self._evaluation = Loop("predict", sum(trainer.num_predict_batches))

    def on_test_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Print a line if one is due."""
        if not trainer.sanity_checking:
            self._evaluation.done += 1
            self._advance(self._evaluation, self._evaluation.done)

    on_validation_batch_end = on_predict_batch_end = on_test_batch_end
