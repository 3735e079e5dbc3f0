"""checkpoints/ of a run: its newest state, and optionally its best."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks

from zoo.errors import InputError

FOLDER, LAST, BEST = "checkpoints", "last.ckpt", "best.ckpt"


class Checkpoint(callbacks.Checkpoint):
    """Saves `checkpoints/last.ckpt` after each validation, at the end of training, and every few steps.

    Lightning's ModelCheckpoint may keep the best state as `last`, or the state of an earlier run in the same folder;
    here `last` is always the newest.

    Args:
        every_n_train_steps: also save after so many optimizer steps; null saves at validations and at the end only.
        monitor: a logged score, such as `val/all/macro`, whose best state is also saved, as `best.ckpt`.
        mode: whether the best score is the highest or the lowest.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = 100,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
    ):
        self.every_n_train_steps, self.monitor, self.mode = every_n_train_steps, monitor, mode
        self.best_score: float | None = None
        self.best_model_path = ""  # Lightning reads it for `--ckpt_path best`
        self._saved_step = -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save the newest state every few steps."""
        if self.every_n_train_steps and trainer.global_step % self.every_n_train_steps == 0:
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the newest state, and the best."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_best(trainer)
            self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the newest state."""
        self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        # gradient accumulation: several batches share a step; at step 0 nothing is trained
        if trainer.global_step not in (0, self._saved_step):
            self._saved_step = trainer.global_step
            trainer.save_checkpoint(Path(trainer.default_root_dir, FOLDER, LAST))

    def _save_best(self, trainer: Trainer) -> None:
        if self.monitor is None:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise InputError(f"--checkpoint.monitor {self.monitor} is not logged; choose from {logged}")
        score = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "max" else -1
        if self.best_score is None or sign * score > sign * self.best_score:
            self.best_score = score
            self.best_model_path = str(Path(trainer.default_root_dir, FOLDER, BEST))
            trainer.save_checkpoint(self.best_model_path)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and its checkpoint."""
        return {"best_score": self.best_score, "best_model_path": self.best_model_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and its checkpoint."""
        self.best_score, self.best_model_path = state_dict["best_score"], state_dict["best_model_path"]
