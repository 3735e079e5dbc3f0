"""checkpoints/ of a run: its newest state, and optionally its best."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks

from zoo.errors import InputError
from zoo.weights.saved_models import CHECKPOINTS, LAST_CHECKPOINT

BEST = "best.ckpt"


class Checkpoint(callbacks.Checkpoint):
    """Save `checkpoints/last.ckpt` after each validation, at the end of training, and every few steps.

    Lightning's ModelCheckpoint may keep the best state as `last`, or the state of an earlier run in the same folder;
    here `last` is always the newest.

    A run resumes exactly from `last`. It is saved only where an optimizer step is complete, since accumulated gradients
    are in no checkpoint: what falls between two steps (a validation, a request to stop by a time limit or
    EarlyStopping) waits for the next step.

    Args:
        every_n_train_steps: Also save after so many optimizer steps; null saves at validations and at the end only.
        monitor: A logged score, such as `val/all/macro`, whose best state is also saved, as `best.ckpt`; of a
            validation between two steps the weights alone.
        mode: Whether the best score is the highest or the lowest.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = 100,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
    ):
        self.every_n_train_steps, self.monitor, self.mode = every_n_train_steps, monitor, mode
        self.best_score: float | None = None
        self.best_model_path = ""  # for `trainer.test(ckpt_path="best")` in Python
        self._first_step: int | None = None  # of this process
        self._saved_step = 0  # at step 0 nothing is trained
        self._is_due = self._stop_is_due = False  # at the next complete step
        self._flush_is_due = False

    def has_trained(self, trainer: Trainer) -> bool:
        """Return whether this process has made a step, beyond those of the checkpoint that it resumed from."""
        return self._first_step is not None and trainer.global_step > self._first_step

    def request(self) -> None:
        """Save the newest state where the step is complete."""
        self._is_due = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where training starts."""
        self._first_step = trainer.global_step
        # Lightning takes the epoch that follows a checkpoint of a last batch for the rest of that checkpoint's epoch,
        # and would not count its beginning
        loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress.current
        if loop.restarted_mid_epoch and epochs.completed == epochs.ready:
            loop.reset_restart_stage()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Flush the loggers after a save: a resumed run doesn't log again what came before the checkpoint."""
        if self._flush_is_due:
            self._flush_is_due = False
            for logger in trainer.loggers:  # here, since the step's own values are logged after on_train_batch_end
                logger.save()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save the newest state every few steps, and before training stops."""
        loop = trainer.fit_loop.epoch_loop
        self._withdraw_stop(trainer)
        if loop._should_accumulate():
            return
        every, step = self.every_n_train_steps, trainer.global_step
        # Not in on_train_end: by then Lightning counts the epoch as complete, and would not resume within it, nor
        # after it in the next.
        is_last = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        is_due = is_last or step == trainer.max_steps or bool(every and step % every == 0)
        fetcher: Any = trainer.fit_loop._data_fetcher
        validates = loop._should_check_val_fx(fetcher)
        # Lightning validates before it stops, and doesn't resume after an unscheduled validation at an epoch's end.
        if self._stop_is_due and (validates or not trainer.is_last_batch):
            self._stop_is_due, trainer.should_stop = False, True
            is_due, validates = is_due or trainer.fit_loop._can_stop_early, loop._should_check_val_fx(fetcher)
        self._is_due |= is_due
        # Lightning leaves out a validation that follows the batch which it resumes after: on_validation_end saves then.
        if self._is_due and not validates:
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the newest state, and the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.global_step == 0:
            return
        is_between_steps = trainer.fit_loop.epoch_loop._should_accumulate()
        self._save_best(trainer, weights_only=is_between_steps)
        if is_between_steps:
            self._is_due = True
            self._withdraw_stop(trainer)
        else:
            self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the newest state if the validation that it waited for had no data."""
        if trainer.global_step != self._saved_step and not trainer.fit_loop.epoch_loop._should_accumulate():
            self._save_last(trainer)

    def _withdraw_stop(self, trainer: Trainer) -> None:
        """Keep a request to stop, as of a time limit or EarlyStopping, for a complete step."""
        self._stop_is_due |= trainer.should_stop
        trainer.should_stop = False

    def _save_last(self, trainer: Trainer) -> None:
        self._is_due, self._flush_is_due, self._saved_step = False, True, trainer.global_step
        trainer.save_checkpoint(Path(trainer.default_root_dir, LAST_CHECKPOINT), weights_only=False)

    def _save_best(self, trainer: Trainer, weights_only: bool) -> None:
        if self.monitor is None:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise InputError(f"--checkpoint.monitor {self.monitor} is not logged; choose from {logged}")
        # a loss of training differs between ranks, which save together
        score = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
        sign = 1 if self.mode == "max" else -1
        if self.best_score is None or sign * score > sign * self.best_score:
            self.best_score = score
            self.best_model_path = str(Path(trainer.default_root_dir, CHECKPOINTS, BEST))
            trainer.save_checkpoint(self.best_model_path, weights_only=weights_only)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and its checkpoint, and the step of the newest."""
        return {
            "best_score": self.best_score,
            "best_model_path": self.best_model_path,
            "saved_step": self._saved_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and its checkpoint, and the step of the newest."""
        self.best_score, self.best_model_path = state_dict["best_score"], state_dict["best_model_path"]
        self._saved_step = state_dict["saved_step"]
