"""The order of training questions and the distribution of scenes across processes: pure functions of seed and position.

Runs therefore resume exactly, and all processes compute the same order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Sampler

from zoo.errors import InputError

# settings of a training order that a resumed run must have
SETTINGS = ("num_scenes", "num_questions", "batch_size", "questions_per_scene", "seed", "world_size")


class TrainingItem(NamedTuple):
    """Questions about one scene in one training step; they share a sequence.

    Attributes:
        scene: Index of the scene.
        questions: Indices of its questions.
        epoch: Part of the seed of random frame samplers.
        seed: Of the training order.
        is_padding: Whether another process learns from these questions. The copy only keeps this process in step.
    """

    scene: int
    questions: tuple[int, ...]
    epoch: int = 0
    is_padding: bool = False
    seed: int = 0

    def draw(self, scene_name: str) -> int:
        """Return a seed of 32 bits for what is drawn about the scene in this epoch, by any process."""
        return random.Random(f"{self.seed}/{self.epoch}/{scene_name}").getrandbits(32)


class TrainingOrder(Sampler[list[TrainingItem]]):
    """Batches in which each question comes exactly once per epoch, reshuffled every epoch.

    The questions of each scene are shuffled and cut into near-equal sequences, and the sequences of all scenes are
    shuffled. The last step of an epoch has what remains: fewer sequences, and on processes without any, a repeated one
    that is not learned from.

    Args:
        num_questions: Questions of each scene.
        batch_size: Sequences per batch on each rank.
        questions_per_scene: Most questions in one sequence.
        seed: Seed of the shuffle, the same on all ranks.
        rank: This process.
        world_size: Number of processes; each takes its own sequences of the same shuffle.

    Raises:
        InputError: There is no question.

    Example:
        >>> order = TrainingOrder([1, 2], batch_size=1, questions_per_scene=2, seed=0)
        >>> sorted(item.scene for batch in order for item in batch)
        [0, 1]
    """

    def __init__(
        self,
        num_questions: Sequence[int],
        batch_size: int,
        questions_per_scene: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.counts = np.asarray(num_questions, dtype=np.int64)
        self.num_scenes, self.num_questions = len(self.counts), int(self.counts.sum())
        if not self.num_questions:
            raise InputError("there is no training question")
        self.batch_size, self.questions_per_scene, self.seed = batch_size, questions_per_scene, seed
        self.rank, self.world_size = rank, world_size
        self.num_sequences = int((-(-self.counts // questions_per_scene)).sum())
        self.served = 0  # batches of all epochs so far

    def __len__(self) -> int:
        return -(-self.num_sequences // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[TrainingItem]]:
        epoch, first = divmod(self.served, len(self))
        sequences, scene_of, starts, questions = self._shuffle(epoch)
        step = self.batch_size * self.world_size
        for start in range(first * step, self.num_sequences, step):
            own = sequences[start : start + step][self.rank :: self.world_size]
            merged: dict[int, list[int]] = {}  # a scene that comes twice in a batch is read once
            for i in own if len(own) else sequences[start : start + 1]:
                merged.setdefault(int(scene_of[i]), []).extend(questions[starts[i] : starts[i + 1]].tolist())
            yield [TrainingItem(scene, tuple(asked), epoch, is_padding=not len(own)) for scene, asked in merged.items()]

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """An epoch: the order of its sequences; the scene of each, where its questions start, and all questions."""
        generator = np.random.default_rng((self.seed, epoch))
        # 1. Shuffle the questions of each scene.
        scene_of = np.repeat(np.arange(self.num_scenes), self.counts)
        first = (np.cumsum(self.counts) - self.counts)[scene_of]
        questions = np.lexsort((generator.random(self.num_questions), scene_of)) - first
        # 2. Cut them into sequences: place p of n questions is in sequence floor(p s / n) of s.
        cuts = -(-self.counts // self.questions_per_scene)
        place = np.arange(self.num_questions) - first
        sequence = (np.cumsum(cuts) - cuts)[scene_of] + place * cuts[scene_of] // self.counts[scene_of]
        starts = np.searchsorted(sequence, np.arange(self.num_sequences + 1))
        # 3. Shuffle the sequences.
        return generator.permutation(self.num_sequences), scene_of[starts[:-1]], starts, questions


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
        """Restore the position; settings that differ from the checkpoint's raise `InputError`."""
        for name in SETTINGS:
            if name not in state:
                raise InputError("the checkpoint is of a version that trained in another order: start a new run")
            if state[name] != (current := getattr(self.batch_sampler, name)):
                trained = f"the checkpoint was trained with {name} {state[name]}"
                raise InputError(f"{trained}, now it is {current}: resume with the same settings")
        self.batch_sampler.served = state["served"]


def balance_across_ranks(loads: Sequence[int], processes: int) -> list[list[int]]:
    """Distribute scenes across processes with nearly equal load; every scene is assigned exactly once.

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
