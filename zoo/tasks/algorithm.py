"""How a task learns from a training batch: from its answers, or from rewards of answers that it samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from zoo.configuration import Configurable
from zoo.sequences.batch import Batch

if TYPE_CHECKING:
    from zoo.tasks.video_qa import VideoQATask


class Algorithm(Configurable, ABC):
    """Compute the loss of a training batch. To add one, implement `training_loss` in a file of this folder.

    Attributes:
        asks_questions: Whether a training batch has prompts, as a test has; else it has the answers.
        updates: Optimizer steps on each batch.
        needs_start: Whether a resumed training needs the weights that it started from.
        requires_types: Whether nothing is learned from questions without a type.
    """

    asks_questions: bool = False
    updates: int = 1
    needs_start: bool = False
    requires_types: bool = False

    def begin(self, task: VideoQATask) -> None:
        """Take what the training starts from, before a checkpoint is restored."""

    def prepare(self, task: VideoQATask, batch: Batch) -> None:
        """Do what a batch needs before its first update, outside of the strategy's forward pass."""

    def objective_weight(self, task: VideoQATask, batch: Batch) -> float:
        """The factor of what objectives average over a batch: its share of the step's questions, or none.

        It is zero of a batch that only keeps this process in step.
        """
        if not sum(batch.num_answers):
            return 0.0
        return batch.weight if task.model.average == "questions" else 1.0

    @abstractmethod
    def training_loss(self, task: VideoQATask, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss whose gradient is a part of the optimizer step's, and log it."""

    def samples(self) -> tuple[Sequence[str], list[list[str]]]:
        """Return a table of texts for the loggers: its columns and rows; no rows for none."""
        return (), []


class SupervisedFineTuning(Algorithm):
    """Learn from the answers of the data, and from what the other objectives predict."""

    def training_loss(self, task: VideoQATask, batch: Batch) -> Float[Tensor, ""]:
        """Log the loss and that of each objective."""
        losses = task.losses(batch)
        loss, count = losses.pop("loss"), len(batch.records)
        if not sum(batch.num_answers):
            return loss  # zero: the batch only keeps this process in step
        task.log("train/loss", loss, batch_size=count)
        values: dict[str, Any] = {f"train/{name}": value.detach() for name, value in losses.items()}
        task.log_dict(values, batch_size=count)
        return self.objective_weight(task, batch) * loss
