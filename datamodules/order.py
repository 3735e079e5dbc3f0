"""Which scene comes when, and on which process: pure functions, so that runs resume and processes agree.

The order of training goes by the seed and by how many batches were served; an evaluation deals its scenes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from zoo.errors import InputError


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (scene, epoch), one epoch an iteration, each epoch shuffled anew; an incomplete last batch is dropped.

    Args:
        num_scenes: of the whole split.
        batch_size: scenes a batch on each rank.
        seed: of the shuffle, the same on all ranks.
        rank, world_size: each rank takes its own batches of the same shuffle.
    """

    def __init__(self, num_scenes: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if num_scenes < batch_size * world_size:
            raise InputError(
                f"{num_scenes} training scenes don't fill one batch of {batch_size} scenes on {world_size} "
                "process(es): lower --data.batch_size"
            )
        self.num_scenes, self.batch_size, self.seed = num_scenes, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.served = 0

    def __len__(self) -> int:
        return self.num_scenes // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self.served, len(self))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_scenes, generator=generator).tolist()
        for batch in range(first, len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [(scene, epoch) for scene in order[start : start + self.batch_size]]


class ResumableLoader(DataLoader):
    """A DataLoader that Lightning's checkpoints save and restore in the middle of an epoch.

    It counts what it handed out, not what its workers have fetched ahead.
    """

    batch_sampler: TrainingOrder

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            self.batch_sampler.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"served": self.batch_sampler.served, **self._settings()}

    def _settings(self) -> dict[str, int]:
        order = self.batch_sampler
        return {name: getattr(order, name) for name in ("num_scenes", "batch_size", "seed", "world_size")}

    def load_state_dict(self, state: dict[str, int]) -> None:
        for name, now in self._settings().items():
            if state[name] != now:
                raise InputError(
                    f"the checkpoint was trained with {name} {state[name]}, now it is {now}: the order of the data "
                    "would differ, so a run goes on with its own settings only"
                )
        self.batch_sampler.served = state["served"]


def balance_across_ranks(loads: Sequence[int], processes: int) -> list[list[int]]:
    """Which scenes each process takes, in their order, so that all have about as much to do; no scene twice.

    The greatest load first, each to who has least so far: at most 4/3 of the best (Graham 1969, "Bounds on
    multiprocessing timing anomalies", theorem 2). Every process works out the same.

    Args:
        loads: of each scene: how many questions are asked about it.
        processes: how many; where there are fewer scenes, some take none.
    """
    shares: list[list[int]] = [[] for _ in range(processes)]
    totals = [0] * processes
    for scene in sorted(range(len(loads)), key=lambda scene: -loads[scene]):
        least = min(range(processes), key=lambda process: (totals[process], len(shares[process])))
        shares[least].append(scene)
        totals[least] += loads[scene]
    return [sorted(share) for share in shares]
