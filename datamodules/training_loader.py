"""The DataLoader of a training, which begins where the training stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning import Trainer
from torch.utils.data import DataLoader

from datamodules.order import TrainingOrder


def training_position(trainer: Trainer) -> tuple[int, int]:
    """Return a Trainer's epoch and the number of its batches that are trained; to overfit, each is the first epoch."""
    epoch = 0 if trainer.overfit_batches else trainer.current_epoch  # type: ignore[attr-defined]
    return epoch, trainer.fit_loop.batch_idx + 1


class ResumableLoader(DataLoader):
    """A DataLoader that begins where its training stands, in a resumed run in the middle of an epoch.

    It keeps no position of its own: Lightning restores that of loaders in some cases only, its own in all. What workers
    have prefetched doesn't count.

    Args:
        position: Returns the epoch and the number of its batches that are trained, as `training_position` does; called
            when the first batch is due.
        receive: Called with each batch when the training takes it.
        args: See `DataLoader`, as for `options`.
    """

    batch_sampler: TrainingOrder

    def __init__(
        self,
        *args: Any,
        position: Callable[[], tuple[int, int]],
        receive: Callable[[Any], object] = lambda batch: None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.position, self.receive = position, receive

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.batch_sampler.epoch, self.batch_sampler.batch = self.position()
        for batch in super().__iter__():
            self.receive(batch)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing; Lightning warns that a loader without a state would begin anew."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""
