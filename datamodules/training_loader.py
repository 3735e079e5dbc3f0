"""The DataLoader of a training, which begins where the training stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lightning import Trainer
from torch.utils.data import DataLoader

from datamodules.order import TrainingOrder
from zoo.sequences.batch import Batch, OptimizerStep


class TrainingPosition(NamedTuple):
    """Where a training stands.

    Attributes:
        epoch: To overfit, each is the first.
        batch: Number of its batches that are trained.
        num_batches: Batches of an epoch; infinite if the Trainer does not know them yet.
        accumulated: Batches of an optimizer step, but for the last step of an epoch, which has the rest.
    """

    epoch: int
    batch: int
    num_batches: float
    accumulated: int = 1

    @classmethod
    def of(cls, trainer: Trainer) -> TrainingPosition:
        """Return that of a Trainer."""
        epoch = 0 if trainer.overfit_batches else trainer.current_epoch  # type: ignore[attr-defined]
        batch, num_batches = trainer.fit_loop.batch_idx + 1, trainer.num_training_batches
        return cls(epoch, batch, num_batches, trainer.accumulate_grad_batches)

    def batches_of_step(self, batch: int) -> range:
        """Return the batches of the optimizer step that a batch is a part of."""
        first = batch - batch % self.accumulated
        return range(first, int(min(first + self.accumulated, self.num_batches)))


class ResumableLoader(DataLoader):
    """A DataLoader that begins where its training stands, in a resumed run in the middle of an epoch.

    It keeps no position of its own: Lightning restores that of loaders in some cases only, its own in all. What workers
    have prefetched doesn't count. Each `Batch` gets the optimizer step that it is a part of.

    Args:
        position: Returns where the training stands; called when the first batch is due.
        receive: Called with each batch when the training takes it.
        args: See `DataLoader`, as for `options`.
    """

    batch_sampler: TrainingOrder

    def __init__(
        self,
        *args: Any,
        position: Callable[[], TrainingPosition],
        receive: Callable[[Any], object] = lambda batch: None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.position, self.receive = position, receive

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        order, position = self.batch_sampler, self.position()
        order.epoch, order.batch = position.epoch, position.batch
        for number, batch in enumerate(super().__iter__(), position.batch):
            self.receive(batch)
            if isinstance(batch, Batch):
                num_answers = order.num_answers_of(position.epoch, position.batches_of_step(number))
                batch.step = OptimizerStep(num_answers, order.world_size * position.accumulated)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing; Lightning warns that a loader without a state would begin anew."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""
