"""The DataLoader of a training, which begins where the training stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from datamodules.order import TrainingOrder, TrainingPosition
from zoo.sequences.batch import Batch, OptimizerStep


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
        order.position = position
        for number, batch in enumerate(super().__iter__(), position.batch):
            self.receive(batch)
            if isinstance(batch, Batch):
                batch.step = OptimizerStep(order.num_answers_of_step(number), order.world_size * position.accumulated)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing; Lightning warns that a loader without a state would begin anew."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""
