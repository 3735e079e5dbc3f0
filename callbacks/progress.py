"""Progress of a run: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from tqdm import tqdm

SHARE, SECONDS = 0.1, 30.0  # a line is due after this share of the loop, or this time


def progress_bar() -> ProgressBar:
    """Return tqdm's bar (steps, rate, ETA) if stdout is a terminal, else `PlainProgress`."""
    return TQDMProgressBar() if sys.stdout.isatty() else PlainProgress()


class PlainProgress(ProgressBar):
    """Prints a line every tenth of a loop or every 30 seconds, whichever comes first, and at its end.

    `train 120/600 (20%)  loss 1.234  3.2 it/s  ETA 02:30` counts the optimizer steps of the whole fit, or the batches
    of a validation, test or prediction. Within a fit, validation prints every 30 seconds and at its end. The rate is
    the mean since the start of the loop; that of a fit includes its validations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_enabled = True  # LightningModule.print reads it
        self._fit, self._evaluation = _Loop("train"), _Loop("validation")

    def enable(self) -> None:
        """Print lines."""
        self.is_enabled = True

    def disable(self) -> None:
        """Print no lines."""
        self.is_enabled = False

    def _advance(self, loop: _Loop, done: int, note: Callable[[], str] = str) -> None:
        if self.is_enabled and (line := loop.line(done, note)):
            self.print(line, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count optimizer steps."""
        self._fit = _Loop("train", trainer.estimated_stepping_batches, begun=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line with the loss if one is due."""

        def loss() -> str:  # called when a line is due only, since reading the loss waits for the device
            # Lightning divides the loss by the number of accumulated batches
            return f"loss {float(outputs['loss']) * trainer.accumulate_grad_batches:.4g}"

        self._advance(self._fit, trainer.global_step, loss)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count batches."""
        share = 1.0 if trainer.state.fn == "fit" else SHARE
        self._evaluation = _Loop("validation", sum(trainer.num_val_batches), share=share)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count batches."""
        self._evaluation = _Loop("test", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count batches."""
        self._evaluation = _Loop("predict", sum(trainer.num_predict_batches))

    def on_test_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Print a line if one is due."""
        if not trainer.sanity_checking:
            self._evaluation.done += 1
            self._advance(self._evaluation, self._evaluation.done)

    on_validation_batch_end = on_predict_batch_end = on_test_batch_end


class _Loop:
    """State of a loop of `total` steps, which may be infinite."""

    def __init__(self, name: str, total: int | float = math.inf, *, begun: int = 0, share: float = SHARE) -> None:
        self.name, self.total, self.begun, self.share = name, total, begun, share
        self.done = self._printed = begun
        self._started = self._printed_at = time.monotonic()

    def line(self, done: int, note: Callable[[], str]) -> str | None:
        """Return the text of a line if one is due."""
        now = time.monotonic()
        is_due = done >= self.total or now - self._printed_at >= SECONDS
        is_due = is_due or done - self._printed >= self.share * (self.total - self.begun)
        if done == self._printed or not is_due:  # gradient accumulation: a batch without a step
            return None
        self._printed, self._printed_at = done, now
        rate = (done - self.begun) / max(now - self._started, 1e-9)
        parts = [f"{self.name} {done}", note(), f"{rate:.3g} it/s"]
        if math.isfinite(self.total):
            parts[0] += f"/{self.total:.0f} ({done / self.total:.0%})"
            parts.append(f"ETA {tqdm.format_interval((self.total - done) / rate)}")
        return "  ".join(part for part in parts if part)
