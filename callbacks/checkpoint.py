"""The checkpoints of a run: the newest state, and optionally the best, in files that survive a kill at any moment."""

from __future__ import annotations

import glob
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.io import CheckpointIO
from torch.optim import Optimizer

from zoo.errors import InputError
from zoo.files.ownership import remove_own, remove_partials
from zoo.weights.checkpoint import read_checkpoint, write_checkpoint
from zoo.weights.load import whole
from zoo.weights.saved_models import CHECKPOINTS, LAST_CHECKPOINT

BEST = "best.ckpt"
NAMED = 20  # questions that an error lists

# ---- When to save a checkpoint --------------------------------------------------------------------------------------


class Checkpoint(callbacks.Checkpoint):
    """Save `checkpoints/last.ckpt` after each validation, at the end of training, and every few steps.

    A run resumes exactly from `last.ckpt`. It is saved only when an optimizer step is complete, because checkpoints do
    not hold accumulated gradients. A save after a validation, or a stop by EarlyStopping, waits for the next complete
    step.

    Lightning's ModelCheckpoint may save between two steps, and it saves either every few steps or at validations.

    A training that diverges is stopped before its step changes the weights. For this the host waits for the device once
    per optimizer step.

    Args:
        every_n_train_steps: Also save after this many optimizer steps. null saves at validations and at the end only.
        monitor: A logged score, such as `val/all/macro`. Its best state is also saved, as `best.ckpt`. If the
            validation was between two steps, only the weights are saved.
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
        self._step = self._saved_step = 0  # complete optimizer steps, and those in the newest checkpoint
        self._is_complete = True  # whether no gradient is accumulated
        self._save_is_due = self._stop_is_due = False
        self._questions: list[str] = []  # ids of the step's questions in this process, so far

    def save_soon(self) -> None:
        """Save the newest state as soon as the optimizer step is complete."""
        self._save_is_due = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where training starts."""
        self._step = self._saved_step = trainer.global_step
        # If a checkpoint was saved at the last batch of an epoch, Lightning takes the next epoch for the rest of that
        # one. It would not count the epoch's start, and the next checkpoint could not be resumed.
        loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress.current
        if loop.restarted_mid_epoch and epochs.completed == epochs.ready:
            loop.reset_restart_stage()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the batch's questions."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._questions = []
        self._questions += [str(record["id"]) for record in getattr(batch, "records", ())]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Raise InputError on all processes if the norm of the gradients is NaN or infinite."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # in float16 single steps overflow, and the scaler leaves them out
        gradients = [each.grad for each in pl_module.parameters() if each.grad is not None]
        if not whole(torch.nn.utils.get_total_norm(gradients)).isfinite():
            shown = ", ".join(self._questions_of_all(trainer)[:NAMED]) or "without ids"
            raise self._diverged(f"its gradients are not finite in step {trainer.global_step + 1} (questions {shown})")

    def _questions_of_all(self, trainer: Trainer) -> list[str]:
        every: list[list[str]] = [self._questions] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(every, self._questions)
        return [question for questions in every for question in questions]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save the newest state every few steps, and before training stops."""
        step, loop = trainer.global_step, trainer.fit_loop.epoch_loop
        self._is_complete = step > self._step
        if not self._is_complete:
            self._delay_stop(trainer)
            return
        self._step = step
        trainer.should_stop |= self._stop_is_due
        self._stop_is_due = False
        is_last = step == trainer.max_steps or (
            trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        )
        self._save_is_due |= is_last or bool(self.every_n_train_steps and step % self.every_n_train_steps == 0)
        # A resumed run skips the validation that follows the batch of its checkpoint, so a scheduled validation must
        # come before the save. Without validation data it never comes. Before a stop, Lightning validates unscheduled.
        # After such a validation at an epoch's end, it could not resume.
        fetcher: Any = trainer.fit_loop._data_fetcher
        validates = trainer.num_val_batches != [0] and loop._should_check_val_fx(fetcher)
        if (trainer.should_stop and loop.done) or (self._save_is_due and not validates):
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the newest state, and the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.global_step == 0:
            return
        self._save_best(trainer)
        if not self._is_complete:
            self._delay_stop(trainer)
            self.save_soon()
        elif self._saved_step != self._step:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let training end with a saved step. Lightning can't resume from an epoch's end if it counts steps."""
        if self._saved_step != self._step:
            self._delay_stop(trainer)

    def _delay_stop(self, trainer: Trainer) -> None:
        """Postpone a requested stop until the next complete step, which is saved."""
        self._stop_is_due |= trainer.should_stop
        trainer.should_stop = False

    def _check_finite(self, trainer: Trainer) -> None:
        """Raise InputError on all processes if trained weights are NaN or infinite. The former checkpoint is kept."""
        trained = [parameter for parameter in trainer.lightning_module.parameters() if parameter.requires_grad]
        is_finite = all(bool(parameter.isfinite().all()) for parameter in trained)  # of this process's shards alone
        if not trainer.strategy.reduce_boolean_decision(is_finite, all=True):
            raise self._diverged(f"its weights are not finite after step {trainer.global_step}")

    def _diverged(self, what: str) -> InputError:
        return InputError(
            f"the training has diverged: {what}. Its last checkpoint has the weights after step {self._saved_step}; "
            "try lower learning rates or --trainer.precision 32-true, and look at the data of this step"
        )

    def _save_last(self, trainer: Trainer) -> None:
        self._check_finite(trainer)
        self._save_is_due, self._saved_step = False, trainer.global_step
        trainer.save_checkpoint(Path(trainer.default_root_dir, LAST_CHECKPOINT), weights_only=False)
        for logger in trainer.loggers:  # a resumed run does not repeat logs from before the checkpoint
            logger.save()

    def _save_best(self, trainer: Trainer) -> None:
        if self.monitor is None:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise InputError(f"--checkpoint.monitor {self.monitor} is not logged; choose from {logged}")
        # a training loss differs between ranks, but all ranks must save together
        score = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
        sign = 1 if self.mode == "max" else -1
        if self.best_score is None or sign * score > sign * self.best_score:
            self.best_score = score
            self.best_model_path = str(Path(trainer.default_root_dir, CHECKPOINTS, BEST))
            trainer.save_checkpoint(self.best_model_path, weights_only=not self._is_complete)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and its checkpoint."""
        return {"best_score": self.best_score, "best_model_path": self.best_model_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and its checkpoint."""
        self.best_score, self.best_model_path = state_dict["best_score"], state_dict["best_model_path"]


# ---- How to write its files -----------------------------------------------------------------------------------------

FILES = "files"  # key in a checkpoint: for each state in separate files, the names of these files
OPTIMIZERS = "optimizer_states"  # Lightning's key
SUFFIX, TOKEN_DIGITS = ".optimizer", 8
ZIP = b"PK\x03\x04"  # the start of files that PyTorch writes


class CheckpointFiles(CheckpointIO):
    """Write `last.ckpt`, and the optimizer's state in a separate file, which only training reads.

    `last.ckpt` names that file (`files: {optimizer_states: [last.<token>.optimizer]}`), and each save uses a new name.
    Until `last.ckpt` is replaced by a single rename, the former checkpoint is complete. A kill at any moment therefore
    leaves a consistent pair. Lightning's own plugin overwrites the only checkpoint by a copy if the temporary folder is
    on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replace a checkpoint.

        Raises:
            InputError: The checkpoint can't be written. The former one is kept.
        """
        path = Path(path)
        remove_partials(path.parent)  # left by saves that were killed
        content = dict(checkpoint)
        if OPTIMIZERS in content:
            apart = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:TOKEN_DIGITS]}{SUFFIX}")
            write_checkpoint(apart, {OPTIMIZERS: content.pop(OPTIMIZERS)})
            content[FILES] = {OPTIMIZERS: [apart.name]}
        try:
            write_checkpoint(path, content)
        except InputError:  # on a full disk, the optimizer's new state would keep it full
            for name in _files_apart(content):
                remove_own(path.with_name(name), ZIP)
            raise
        self._remove_optimizers(path, keep=_files_apart(content))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint. The optimizer's state is read when it is iterated over.

        Args:
            path: The file.
            map_location: See `torch.load`. None uses the CPU.
            weights_only: Ignored, because only tensors and plain values are ever read.
        """
        path = Path(path)
        content = read_checkpoint(path, map_location or "cpu")
        if OPTIMIZERS not in content:  # checkpoints of Lightning's own plugin have it
            content[OPTIMIZERS] = _read_optimizers(path, _files_apart(content))
            content.pop(FILES, None)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the files of a checkpoint."""
        remove_own(Path(path), ZIP)
        self._remove_optimizers(Path(path))

    @staticmethod
    def _remove_optimizers(path: Path, keep: Sequence[str] = ()) -> None:
        for file in optimizer_files(path):
            if file.name not in keep:
                remove_own(file, ZIP)


def optimizer_files(checkpoint: Path) -> Iterator[Path]:
    """Yield the files beside a checkpoint that hold the optimizer's state."""
    yield from checkpoint.parent.glob(f"{glob.escape(checkpoint.stem)}.{'[0-9a-f]' * TOKEN_DIGITS}{SUFFIX}")


def _files_apart(content: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the files of the optimizer's state."""
    files = content.get(FILES, {})
    names: Sequence[str] = files.get(OPTIMIZERS, ()) if isinstance(files, Mapping) else (files,)
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"the checkpoint is damaged: {name!r} is no name of a file beside it")
    return names


def _read_optimizers(path: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the state of each optimizer. Nothing is read before the first is requested."""
    if not names:
        raise InputError(f"{path} holds no state of training, only weights: resume from last.ckpt")
    for name in names:
        file = path.with_name(name)
        if not file.exists():
            raise InputError(f"{file}, the optimizer's state of {path.name}, is missing: keep both in one folder")
        yield from read_checkpoint(file, required=OPTIMIZERS)[OPTIMIZERS]
