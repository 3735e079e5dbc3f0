"""The losses of a training's first steps: equal ones tell that other code trains alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from zoo.files.atomic_io import write_json

STEPS = 5
FILE = "first_losses.json"
DIGITS = 6


def read_losses(run: Path) -> list[float]:
    """Return the first losses of a run; none if they are unknown."""
    path = run / FILE
    losses: list[float] = json.loads(path.read_text(encoding="utf-8"))["losses"] if path.exists() else []
    return losses


class FirstLosses(Callback):
    """Write the losses of a fit's first five optimizer steps to `first_losses.json` in the run's folder.

    A loss is the mean over the batches and processes of its step.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._loss: Any = 0.0  # of the batches of a step so far

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start without losses, unless the fit is resumed."""
        if trainer.global_step == 0:
            self.losses = []
        self._loss = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss of a batch, which Lightning has divided by the number of batches of a step."""
        if len(self.losses) >= STEPS:
            return
        if isinstance(outputs, Mapping) and outputs.get("loss") is not None:  # else the batch was passed over
            self._loss = self._loss + outputs["loss"].detach()
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        loss, self._loss = trainer.strategy.reduce(self._loss, reduce_op="mean"), 0.0
        if trainer.global_step == len(self.losses) + 1:  # else it was resumed from a checkpoint without losses
            self.losses.append(round(float(loss), DIGITS))
            if trainer.is_global_zero:
                write_json(Path(trainer.default_root_dir) / FILE, {"losses": self.losses})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the losses of a run that is shorter than the logging interval, of which no logger has a loss."""
        if trainer.global_step < trainer.log_every_n_steps:  # type: ignore[attr-defined]
            for step, loss in enumerate(self.losses):
                for logger in trainer.loggers:
                    logger.log_metrics({"train/loss": loss}, step=step)

    def state_dict(self) -> dict[str, Any]:
        """Return the losses, for a fit that is resumed among its first steps."""
        return {"losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the losses."""
        self.losses = list(state_dict["losses"])


class StopAfterFirstLosses(Callback):
    """Stop a fit when its first losses are known; learning rates are those of the whole fit."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Ask to stop after the last of the steps."""
        if trainer.global_step >= STEPS:
            trainer.should_stop = True
