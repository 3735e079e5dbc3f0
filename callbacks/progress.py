"""How far a run is, how fast, and when it will be done: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from tqdm import tqdm

SHARE, SECONDS = 0.1, 30.0  # a plain line is due after a tenth of the loop, or half a minute


def progress_bar() -> ProgressBar:
    """tqdm's bar (steps, rate, ETA) if stdout, where it is drawn, is a terminal; else `PlainProgress`."""
    return TQDMProgressBar() if sys.stdout.isatty() else PlainProgress()


class PlainProgress(ProgressBar):
    """A line every tenth of a loop or every 30 seconds, whichever comes first, and one at its end.

    `train 120/600 (20%)  loss 1.234  3.2 it/s  ETA 02:30`: optimizer steps of the whole fit, or batches of a
    validation, test or prediction. Within a fit, validation prints by the clock and at its end only. The rate
    is the mean since the loop began; a fit's includes its validations, so that its ETA does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_enabled = True  # LightningModule.print asks
        self._fit, self._evaluation = _Loop("train"), _Loop("validation")

    def enable(self) -> None:
        self.is_enabled = True

    def disable(self) -> None:
        self.is_enabled = False

    def _advance(self, loop: _Loop, done: int, note: Callable[[], str] = str) -> None:
        if self.is_enabled and loop.is_due(done):
            self.print(loop.line(done, note()), flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit = _Loop("train", trainer.estimated_stepping_batches, begun=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        def loss() -> str:  # asked for when a line is due, since reading it waits for the device
            return f"loss {float(outputs['loss']) * trainer.accumulate_grad_batches:.4g}"  # was divided by it

        self._advance(self._fit, trainer.global_step, loss)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        share = 1.0 if trainer.state.fn == "fit" else SHARE
        self._evaluation = _Loop("validation", sum(trainer.num_val_batches), share=share)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation = _Loop("test", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation = _Loop("predict", sum(trainer.num_predict_batches))

    def on_test_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if not trainer.sanity_checking:
            self._evaluation.done += 1
            self._advance(self._evaluation, self._evaluation.done)

    on_validation_batch_end = on_predict_batch_end = on_test_batch_end


class _Loop:
    """How far a loop of `total` steps (maybe infinite) is, and when it last printed a line."""

    def __init__(self, name: str, total: int | float = math.inf, *, begun: int = 0, share: float = SHARE) -> None:
        self.name, self.total, self.begun, self.share = name, total, begun, share
        self.done = self._printed = begun
        self._started = self._printed_at = time.monotonic()

    def is_due(self, done: int) -> bool:
        if done == self._printed:  # a batch whose gradient only accumulates makes no step
            return False
        if done >= self.total or time.monotonic() - self._printed_at >= SECONDS:
            return True
        return done - self._printed >= self.share * (self.total - self.begun)

    def line(self, done: int, note: str) -> str:
        """The text that is due; the next one counts from here."""
        self._printed, self._printed_at = done, time.monotonic()
        rate = (done - self.begun) / max(self._printed_at - self._started, 1e-9)
        parts = [f"{self.name} {done}", note, f"{rate:.3g} it/s"]
        if math.isfinite(self.total):
            parts[0] += f"/{self.total:.0f} ({done / self.total:.0%})"
            parts.append(f"ETA {tqdm.format_interval((self.total - done) / rate)}")
        return "  ".join(part for part in parts if part)
