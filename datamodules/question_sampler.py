"""The order of training questions and the distribution of scenes across processes: pure functions of seed and position.

Runs therefore resume exactly, and all processes compute the same order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int
from torch.utils.data import DataLoader, Sampler

from zoo.errors import InputError
from zoo.sequences.batch import Batch, OptimizerStep

if TYPE_CHECKING:
    from lightning import Trainer

# settings of a training order that a resumed run must have
SETTINGS = ("num_scenes", "num_questions", "batch_size", "questions_per_scene", "seed", "world_size", "questions")


class TrainingItem(NamedTuple):
    """Questions about one scene in one training step; they share a sequence.

    Attributes:
        scene: Index of the scene.
        questions: Indices of its questions.
        epoch: Part of the seed of random frame samplers.
        is_padding: Whether nothing is learned from these questions, which only keep this process in step.
        seed: Of the training order.
        step_questions: Indices of all questions about the scene that the optimizer step learns from, in any batch of
            any process.
    """

    scene: int
    questions: tuple[int, ...]
    epoch: int = 0
    is_padding: bool = False
    seed: int = 0
    step_questions: tuple[int, ...] = ()

    def draw(self, scene_name: str) -> int:
        """Return a seed of 32 bits for what is drawn about the scene in this epoch, by any process."""
        return random.Random(f"{self.seed}/{self.epoch}/{scene_name}").getrandbits(32)


class TrainingPosition(NamedTuple):
    """Where a training stands.

    Attributes:
        epoch: To overfit, each is the first.
        batch: Number of its batches that are trained.
        num_batches: Batches of an epoch; infinite if the Trainer does not know them yet.
        accumulated: Batches of an optimizer step, but for the last step of an epoch, which has the rest.
    """

    epoch: int = 0
    batch: int = 0
    num_batches: float = math.inf
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


@dataclass(frozen=True, eq=False)
class ShuffledEpoch:
    """The sequences of an epoch, in the order in which all processes together train on them.

    Attributes:
        order: The sequences by number.
        scenes: Scene of each sequence.
        starts: Where the questions of each sequence start, and the end of the last.
        questions: The questions of all sequences.
        num_answers: Answers that each sequence learns from.
    """

    order: np.ndarray
    scenes: np.ndarray
    starts: np.ndarray
    questions: np.ndarray
    num_answers: np.ndarray

    def sequences(self, places: range) -> list[tuple[int, list[int]]]:
        """Return the scene and the questions of the sequences at some places; those of a step have adjacent places."""
        return [
            (int(self.scenes[i]), self.questions[self.starts[i] : self.starts[i + 1]].tolist())
            for i in self.order[places.start : places.stop : places.step]
        ]

    def questions_about(self, scene: int, places: range) -> tuple[int, ...]:
        """Return the questions about a scene in the sequences at adjacent places."""
        sequences = self.order[places.start : places.stop]
        own = sequences[self.scenes[sequences] == scene]
        return tuple(q for i in own for q in self.questions[self.starts[i] : self.starts[i + 1]].tolist())


class TrainingOrder(Sampler[list[TrainingItem]]):
    """Batches in which each question comes exactly once per epoch, reshuffled every epoch.

    The questions of each scene are shuffled and cut into near-equal sequences, and the sequences of all scenes are
    shuffled. The last step of an epoch has what remains: fewer sequences, and on processes without any, a repeated
    question that is not learned from.

    Args:
        num_questions: Questions of each scene.
        batch_size: Sequences per batch on each rank.
        questions_per_scene: Most questions in one sequence.
        seed: Seed of the shuffle, the same on all ranks.
        rank: This process.
        world_size: Number of processes; each takes its own sequences of the same shuffle.
        questions: Fingerprint of the questions.
        num_answers: Answers of each question, those of a scene after those of another; 1 each if not given.

    Attributes:
        position: Where the next iteration begins, and which batches are a step.

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
        questions: str = "",
        num_answers: Int[np.ndarray, " questions"] | None = None,
    ):
        self.counts = np.asarray(num_questions, dtype=np.int64)
        self.num_scenes, self.num_questions = len(self.counts), int(self.counts.sum())
        if not self.num_questions:
            raise InputError("there is no training question")
        self.batch_size, self.questions_per_scene, self.seed = batch_size, questions_per_scene, seed
        self.rank, self.world_size, self.questions = rank, world_size, questions
        self.num_sequences = int((-(-self.counts // questions_per_scene)).sum())
        self.num_answers = np.ones(self.num_questions, dtype=np.int64) if num_answers is None else num_answers
        self.position = TrainingPosition()
        self._shuffled: tuple[int, ShuffledEpoch] | None = None

    def __len__(self) -> int:
        return -(-self.num_sequences // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[TrainingItem]]:
        position = self.position
        for batch in range(position.batch, len(self)):
            yield self._own(position, batch)

    def _own(self, position: TrainingPosition, batch: int) -> list[TrainingItem]:
        """This process's items of a batch."""
        number, epoch = position.epoch, self.shuffle(position.epoch)
        places = self._places(range(batch, batch + 1))
        own = places[self.rank :: self.world_size]
        merged: dict[int, list[int]] = {}  # a scene that comes twice in a batch is read once
        for scene, asked in epoch.sequences(own):
            merged.setdefault(scene, []).extend(asked)
        if not own:  # one question: without labels, several are not packed
            ((scene, asked),) = epoch.sequences(places[:1])
            return [TrainingItem(scene, tuple(asked[:1]), number, is_padding=True, seed=self.seed)]
        step = self._places(position.batches_of_step(batch))
        return [
            TrainingItem(scene, tuple(asked), number, False, self.seed, epoch.questions_about(scene, step))
            for scene, asked in merged.items()
        ]

    def num_answers_of_step(self, batch: int) -> int:
        """Count the answers that all processes learn from in the optimizer step that a batch is a part of."""
        epoch, places = self.shuffle(self.position.epoch), self._places(self.position.batches_of_step(batch))
        return int(epoch.num_answers[epoch.order[places.start : places.stop]].sum())

    def _places(self, batches: range) -> range:
        """The places in the epoch of the sequences that all processes have in some batches."""
        size = self.batch_size * self.world_size
        return range(batches.start * size, min(batches.stop * size, self.num_sequences))

    def shuffle(self, epoch: int) -> ShuffledEpoch:
        """Shuffle the questions and sequences of an epoch; the last one is kept."""
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
        order, scenes = generator.permutation(self.num_sequences), scene_of[starts[:-1]]
        num_answers = np.add.reduceat(self.num_answers[questions], starts[:-1])
        return ShuffledEpoch(order, scenes, starts, questions - first, num_answers)

    @property
    def settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with its checkpoint."""
        return {name: getattr(self, name) for name in SETTINGS}

    def check(self, trained: Mapping[str, Any]) -> None:
        """Raise an InputError where the settings of a checkpoint are others; one without settings is accepted."""
        for name, now in self.settings.items() if trained else ():
            if name not in trained:
                raise InputError("the checkpoint is of a version that trained in another order: start a new run")
            if trained[name] != now:
                change = f"{name} {trained[name]}, now it is {now}: resume with the same settings"
                if name == "questions":
                    change = "other questions or answers than are there now: resume with the same files, or start anew"
                raise InputError(f"the checkpoint was trained with {change}")


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


# ---- The DataLoader of a training, which begins where the training stands -------------------------------------------


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
