"""Choose the questions of each training step and the scenes of each process, from a seed and the step alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Sampler

from zoo.errors import InputError
from zoo.sequences.loaded_scene import OptimizerStep

if TYPE_CHECKING:
    from lightning import Trainer

ANSWERS_PER_PATCH = 5  # two frames of 640 x 480 pixels are 391 tokens, a question with its answer is some 80


class TrainingItem(NamedTuple):
    """Questions about one scene in one training batch. They share a sequence.

    Attributes:
        scene: Index of the scene.
        questions: Indices of its questions.
        epoch: Epoch, which is part of the seed of random frame samplers.
        is_padding: Whether these questions stay out of the loss and only give this process a batch in the step.
        seed: Seed of the training data.
        step_questions: Indices of all questions about the scene in this optimizer step, in any batch of any process.
        step: The optimizer step to which the batch belongs.
    """

    scene: int
    questions: tuple[int, ...]
    epoch: int = 0
    is_padding: bool = False
    seed: int = 0
    step_questions: tuple[int, ...] = ()
    step: OptimizerStep | None = None

    def draw(self, scene_name: str) -> int:
        """Return a seed of 32 bits for random choices about the scene in this epoch, the same in all processes."""
        return random.Random(f"{self.seed}/{self.epoch}/{scene_name}").getrandbits(32)


class TrainingPosition(NamedTuple):
    """The place of an optimizer step in the epochs.

    Attributes:
        epoch: Epoch, from 0.
        batch: First batch of the step, from 0 in each epoch.
        num_batches: Batches of an epoch.
        accumulated: Batches of an optimizer step. The last step of an epoch may have fewer.
    """

    epoch: int
    batch: int
    num_batches: int
    accumulated: int

    @classmethod
    def of_step(cls, step: int, num_batches: int, accumulated: int) -> TrainingPosition:
        """Return the position after `step` optimizer steps.

        Example:
            >>> TrainingPosition.of_step(4, num_batches=5, accumulated=2)[:2]
            (1, 2)
        """
        epoch, step_of_epoch = divmod(step, math.ceil(num_batches / accumulated))
        return cls(epoch, step_of_epoch * accumulated, num_batches, accumulated)

    @classmethod
    def of(cls, trainer: Trainer) -> TrainingPosition:
        """Return the position that follows from a Trainer's `global_step`. With `overfit_batches` the epoch is 0.

        Raises:
            InputError: The Trainer's own epoch and batch differ.
        """
        found = cls.of_step(trainer.global_step, int(trainer.num_training_batches), trainer.accumulate_grad_batches)
        counted = trainer.current_epoch, trainer.fit_loop.batch_idx + 1
        if counted != found[:2]:
            raise InputError(
                f"step {trainer.global_step} begins at epoch and batch {found[:2]}, and the Trainer counts {counted}: "
                "all optimizer steps must have --trainer.accumulate_grad_batches, and a checkpoint a complete step"
            )
        return found._replace(epoch=0) if trainer.overfit_batches else found  # type: ignore[attr-defined]

    def batches_of_step(self, batch: int) -> range:
        """Return the batches of the optimizer step to which a batch belongs."""
        first = batch - batch % self.accumulated
        return range(first, min(first + self.accumulated, self.num_batches))


@dataclass(frozen=True, eq=False)
class ShuffledEpoch:
    """The sequences of an epoch, over all processes.

    Attributes:
        permutation: Indices of the sequences, in the order of training.
        scenes: Scene of each sequence.
        starts: Start of each sequence's questions in `questions`, and the end of the last.
        questions: The questions of all sequences.
        num_answers: Number of answers in each sequence.
    """

    permutation: np.ndarray
    scenes: np.ndarray
    starts: np.ndarray
    questions: np.ndarray
    num_answers: np.ndarray

    def sequences(self, places: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Return the scene and the questions of the sequences at some places. A step has adjacent places."""
        return [
            (int(self.scenes[i]), self.questions[self.starts[i] : self.starts[i + 1]].tolist())
            for i in self.permutation[list(places)]
        ]

    def questions_about(self, scene: int, places: range) -> tuple[int, ...]:
        """Return the questions about a scene in the sequences at adjacent places."""
        sequences = self.permutation[places.start : places.stop]
        own = sequences[self.scenes[sequences] == scene]
        return tuple(q for i in own for q in self.questions[self.starts[i] : self.starts[i + 1]].tolist())

    def count_answers(self, places: range) -> int:
        """Count the answers in the sequences at adjacent places."""
        return int(self.num_answers[self.permutation[places.start : places.stop]].sum())


class QuestionSampler(Sampler[list[TrainingItem]]):
    """Sample batches so that each question comes exactly once per epoch, reshuffled every epoch.

    The questions of each scene are shuffled and cut into sequences of nearly equal length. Then the sequences of all
    scenes are shuffled. The last step of an epoch may have fewer sequences. A process without any gets a repeated
    question that stays out of the loss.

    Several processes share the sequences of an optimizer step by their cost, because each waits for the slowest. Which
    sequences a step has does not depend on the cost.

    Args:
        num_questions: Number of questions of each scene.
        batch_size: Sequences per batch on each rank.
        questions_per_scene: Maximum number of questions in one sequence.
        seed: Seed of the shuffle, the same on all ranks.
        rank: Rank of this process.
        world_size: Number of processes. Each takes its own sequences of the same shuffle.
        questions: Fingerprint of the questions.
        num_answers: Number of answers of each question, scene by scene. None counts one each.
        num_patches: Number of temporal patches of each scene. None counts them as equal.
        position: Returns where an iteration begins. None starts each iteration at epoch 0, with steps of one batch.
        skips_failed: See `OptimizerStep`.

    Raises:
        InputError: There is no question.

    Example:
        >>> sampler = QuestionSampler([1, 2], batch_size=1, questions_per_scene=2, seed=0)
        >>> sorted(item.scene for batch in sampler for item in batch)
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
        questions: str = "",
        num_answers: Int[np.ndarray, " questions"] | None = None,
        num_patches: Int[np.ndarray, " scenes"] | None = None,
        position: Callable[[], TrainingPosition] | None = None,
        skips_failed: bool = False,
    ):
        self.counts = np.asarray(num_questions, dtype=np.int64)
        self.num_scenes, self.num_questions = len(self.counts), int(self.counts.sum())
        if not self.num_questions:
            raise InputError("there is no training question")
        self.batch_size, self.questions_per_scene, self.seed = batch_size, questions_per_scene, seed
        self.rank, self.world_size, self.questions = rank, world_size, questions
        self.num_sequences = int((-(-self.counts // questions_per_scene)).sum())
        self.num_answers = np.ones(self.num_questions, dtype=np.int64) if num_answers is None else num_answers
        self.num_patches = np.zeros_like(self.counts) if num_patches is None else num_patches
        self.skips_failed = skips_failed
        self.position = position or (lambda: TrainingPosition(0, 0, len(self), 1))
        self._shuffled: tuple[int, ShuffledEpoch] | None = None

    def __len__(self) -> int:
        return -(-self.num_sequences // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[TrainingItem]]:
        position = self.position()
        for batch in range(position.batch, min(position.num_batches, len(self))):
            yield self._items(position, batch)

    def _items(self, position: TrainingPosition, batch: int) -> list[TrainingItem]:
        """Return this process's items of a batch."""
        number, epoch = position.epoch, self.shuffle(position.epoch)
        batches = position.batches_of_step(batch)
        of_step = self._places(batches)
        num_batches = self.world_size * position.accumulated
        step = OptimizerStep(epoch.count_answers(of_step), num_batches, self.skips_failed)
        dealt = self._deal(epoch, of_step)
        own = dealt[batches.index(batch) * self.batch_size :][: self.batch_size]
        if not own:  # one question is enough: without labels, several can't be packed
            ((scene, questions),) = epoch.sequences(of_step[:1])
            return [TrainingItem(scene, tuple(questions[:1]), number, is_padding=True, seed=self.seed, step=step)]
        merged: dict[int, list[int]] = {}  # read a scene once if it occurs twice in a batch
        for scene, questions in epoch.sequences(own):
            merged.setdefault(scene, []).extend(questions)
        return [
            TrainingItem(scene, tuple(questions), number, False, self.seed, epoch.questions_about(scene, of_step), step)
            for scene, questions in merged.items()
        ]

    def _deal(self, epoch: ShuffledEpoch, places: range) -> Sequence[int]:
        """Return this process's share of the places of a step.

        Sequences are dealt out from the costliest to the cheapest, one to each process in turn, and every second time
        from the last process to the first. So the sums are nearly equal, and those of each batch as well.
        """
        if self.world_size == 1:
            return places
        sequences = epoch.permutation[places.start : places.stop]
        cost = ANSWERS_PER_PATCH * self.num_patches[epoch.scenes[sequences]] + epoch.num_answers[sequences]
        order = (places.start + np.argsort(-cost, kind="stable")).tolist()
        share: list[int] = []
        for turn, start in enumerate(range(0, len(order), self.world_size)):
            mine = self.rank if turn % 2 == 0 else self.world_size - 1 - self.rank
            share += order[start : start + self.world_size][mine : mine + 1]
        return share

    def _places(self, batches: range) -> range:
        """Return the places in the epoch of all processes' sequences in some batches."""
        size = self.batch_size * self.world_size
        return range(batches.start * size, min(batches.stop * size, self.num_sequences))

    def shuffle(self, epoch: int) -> ShuffledEpoch:
        """Shuffle the questions and sequences of an epoch. The result is kept until another epoch is asked for."""
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = epoch, self._shuffle(epoch)
        return self._shuffled[1]

    def _shuffle(self, epoch: int) -> ShuffledEpoch:
        generator = np.random.default_rng((self.seed, epoch))
        # 1. Shuffle the questions of each scene.
        scene_of = np.repeat(np.arange(self.num_scenes), self.counts)
        first = (np.cumsum(self.counts) - self.counts)[scene_of]
        questions = np.lexsort((generator.random(self.num_questions), scene_of))
        # 2. Cut them into sequences: place p of n questions is in sequence floor(p s / n) of s.
        cuts = -(-self.counts // self.questions_per_scene)
        place = np.arange(self.num_questions) - first
        sequence = (np.cumsum(cuts) - cuts)[scene_of] + place * cuts[scene_of] // self.counts[scene_of]
        starts = np.searchsorted(sequence, np.arange(self.num_sequences + 1))
        # 3. Shuffle the sequences.
        permutation, scenes = generator.permutation(self.num_sequences), scene_of[starts[:-1]]
        num_answers = np.add.reduceat(self.num_answers[questions], starts[:-1])
        return ShuffledEpoch(permutation, scenes, starts, questions - first, num_answers)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the data of a step, together with `TrainingPosition`."""
        names = ("num_questions", "batch_size", "questions_per_scene", "seed", "world_size", "questions")
        return {name: getattr(self, name) for name in names}


def check_resumed(trained: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise an InputError if the data settings of a checkpoint differ from those of the resumed training."""
    for name, value in now.items():
        if trained.get(name) == value:
            continue
        if name == "questions":
            raise InputError(
                "the checkpoint was trained with other questions or answers than are there now: resume with the same "
                "files, or start anew"
            )
        raise InputError(
            f"the checkpoint was trained with {name} {trained.get(name)}, now it is {value}: resume with the same "
            "settings"
        )


def check_files(trained: Sequence[int], now: Sequence[int], scenes: Sequence[str]) -> None:
    """Warn if the files of some scenes have another size than in the training of a checkpoint, as after a repair.

    Args:
        trained: See `datamodules.scenes.file_size`, for each scene.
        now: The same of the resumed training.
        scenes: Names of the scenes.

    Raises:
        InputError: This is so for more than half of the scenes.
    """
    changed = [name for name, before, size in zip(scenes, trained, now, strict=True) if before != size]
    text = (
        f"the checkpoint was trained with other videos, cameras or depth of {len(changed)} of {len(scenes)} scenes, "
        f"{', '.join(changed[:1])} first: their files had other sizes"
    )
    if 2 * len(changed) > len(scenes):
        raise InputError(f"{text}: resume with the same files, or start anew")
    if changed:
        rank_zero_warn(f"{text}; the training goes on with the new ones")


class TrainingLoader(DataLoader):
    """Start the sampler and the worker processes when the first batch is requested.

    Lightning creates the iterator before it restores the step of a checkpoint, only to count the batches of an epoch.
    The position follows from the step, so there is no state to save.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state. Lightning warns about a loader without this method."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""


# ---- The scenes of an evaluation ------------------------------------------------------------------------------------


def balance_across_ranks(loads: Sequence[int], processes: int) -> list[list[int]]:
    """Distribute scenes across processes with nearly equal load. Every scene is assigned exactly once.

    Greedy, largest load first: at most 4/3 of the optimal maximum load (Graham 1969, "Bounds on multiprocessing timing
    anomalies", theorem 2).

    Args:
        loads: Number of questions of each scene.
        processes: Number of processes. If there are fewer scenes, some processes get none.

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
