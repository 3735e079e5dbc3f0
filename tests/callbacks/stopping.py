"""A callback, named by its class path, that ends a training early."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class StopAfterStep(Callback):
    """Ask for the end of training once so many optimizer steps are complete.

    Args:
        step: From 1.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ask for it, as a time limit does."""
        trainer.should_stop |= trainer.global_step >= self.step
