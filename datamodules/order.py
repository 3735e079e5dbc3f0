"""The order of scenes and their distribution across processes: pure functions of seed and position.

Runs therefore resume exactly, and all processes compute the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from zoo.errors import InputError

SETTINGS = ("num_scenes", "batch_size", "seed", "world_size")  # of a training order


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (scene, epoch), reshuffled every epoch; an incomplete last batch is dropped.

    Args:
        num_scenes: Scenes of the whole split.
        batch_size: Scenes per batch on each rank.
        seed: Seed of the shuffle, the same on all ranks.
        rank: This process.
        world_size: Number of processes; each takes its own batches of the same shuffle.
    """

    def __init__(self, num_scenes: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if num_scenes < batch_size * world_size:
            needed = f"{batch_size} scenes on {world_size} process(es)"
            raise InputError(f"{num_scenes} training scenes don't fill a batch of {needed}: lower --data.batch_size")
        self.num_scenes, self.batch_size, self.seed = num_scenes, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.served = 0  # batches of all epochs so far

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
    """A DataLoader whose position within an epoch is saved in Lightning's checkpoints.

    It counts the batches that the training loop received, not those that workers have prefetched.
    """

    batch_sampler: TrainingOrder

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            self.batch_sampler.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Position and settings of the training order."""
        return {name: getattr(self.batch_sampler, name) for name in ("served", *SETTINGS)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the position; settings that differ from the checkpoint's raise `InputError`."""
        for name in SETTINGS:
            if state[name] != (current := getattr(self.batch_sampler, name)):
                trained = f"the checkpoint was trained with {name} {state[name]}"
                raise InputError(f"{trained}, now it is {current}: resume with the same settings")
        self.batch_sampler.served = state["served"]


def balance_across_ranks(loads: Sequence[int], processes: int) -> list[list[int]]:
    """Distributes scenes across processes with nearly equal load; every scene is assigned exactly once.

    Greedy, largest load first: at most 4/3 of the optimal maximum load (Graham 1969, "Bounds on multiprocessing timing
    anomalies", theorem 2).

    Args:
        loads: Number of questions of each scene.
        processes: Number of processes; if there are fewer scenes, some get none.

    Returns:
        Sorted scene indices of each process.
    """
    shares: list[list[int]] = [[] for _ in range(processes)]
    totals = [0] * processes
    for scene in sorted(range(len(loads)), key=lambda scene: -loads[scene]):
        least = min(range(processes), key=lambda process: (totals[process], len(shares[process])))
        shares[least].append(scene)
        totals[least] += loads[scene]
    return [sorted(share) for share in shares]
