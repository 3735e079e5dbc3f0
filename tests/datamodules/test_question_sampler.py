"""Each question once per epoch, distributed to ranks, from any step on; scenes distributed to ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datamodules.question_sampler import (
    QuestionSampler,
    TrainingItem,
    TrainingLoader,
    TrainingPosition,
    balance_across_ranks,
    check_resumed,
)
from zoo.errors import InputError

COUNTS = (3, 1, 7, 2, 0, 5, 4)  # questions of each scene
SEQUENCES = 13  # of at most two questions


class Echo(Dataset):
    def __getitem__(self, key):
        return key


def sampler_of(counts=COUNTS, batch_size: int = 2, seed: int = 3, **kwargs) -> QuestionSampler:
    return QuestionSampler(counts, batch_size, 2, seed, **kwargs)


class Training:
    """Counts optimizer steps, as a Trainer does."""

    def __init__(
        self, step: int = 0, workers: int = 0, accumulated: int = 1, limit: int | None = None, **kwargs
    ) -> None:
        sampler = sampler_of(**kwargs, position=self.position)
        self.step, self.accumulated, self.num_batches = step, accumulated, limit or len(sampler)
        self.loader = TrainingLoader(Echo(), batch_sampler=sampler, collate_fn=list, num_workers=workers)

    def position(self) -> TrainingPosition:
        return TrainingPosition.of_step(self.step, self.num_batches, self.accumulated)

    def epochs(self, count: int) -> Iterator[list[TrainingItem]]:
        for _ in range(count):
            for number, batch in enumerate(self.loader, self.position().batch + 1):
                self.step += number % self.accumulated == 0 or number == self.num_batches
                yield batch


def epochs(count: int, step: int = 0, **kwargs) -> list[list[TrainingItem]]:
    return list(Training(step, **kwargs).epochs(count))


def asked(batches: list[list[TrainingItem]]) -> Counter[tuple[int, int]]:
    """How often each question is learned from, as (scene, question)."""
    items = (item for batch in batches for item in batch if not item.is_padding)
    return Counter((item.scene, question) for item in items for question in item.questions)


EACH_ONCE = Counter((scene, question) for scene, count in enumerate(COUNTS) for question in range(count))


def test_an_epoch_asks_each_question_once_in_an_order_of_its_own() -> None:
    length = len(sampler_of())
    batches = epochs(2)
    first, second = batches[:length], batches[length:]
    for number, epoch in enumerate((first, second)):
        assert asked(epoch) == EACH_ONCE
        assert {item.epoch for batch in epoch for item in batch} == {number}
    assert [item[:2] for batch in first for item in batch] != [item[:2] for batch in second for item in batch]
    groups = ({(d.scene, frozenset(d.questions)) for b in epoch for d in b} for epoch in (first, second))
    assert next(groups) != next(groups), "which questions share a sequence is drawn anew"


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 2), (3, 1), (5, 2), (16, 1)])  # some don't divide 13
def test_ranks_share_an_epoch_and_take_equally_many_steps(world_size: int, batch_size: int) -> None:
    shares = [epochs(1, rank=r, world_size=world_size, batch_size=batch_size) for r in range(world_size)]
    assert len({len(share) for share in shares}) == 1 and all(batch for share in shares for batch in share)
    assert asked([batch for share in shares for batch in share]) == EACH_ONCE
    repeated = [item for share in shares for batch in share for item in batch if item.is_padding]
    remainder = SEQUENCES % (batch_size * world_size)  # sequences of the last step
    assert len(repeated) == (max(0, world_size - remainder) if remainder else 0)
    assert {item.step.num_batches for share in shares for batch in share for item in batch} == {world_size}
    for batches in zip(*shares, strict=True):  # a step has as many answers as all processes learn from
        items = [item for batch in batches for item in batch]
        assert {item.step.num_answers for item in items} == {asked(list(batches)).total()}
    assert all(len(item.questions) == 1 for item in repeated)  # nothing is learned from more, and they are not packed


PATCHES = np.array([1, 8] * 24 + [2, 8] * 24)  # images and videos, one question each
PER_STEP = 12


def costs_of_steps(world_size: int, batch_size: int, num_patches: np.ndarray | None = PATCHES) -> np.ndarray:
    """(steps, processes): the temporal patches of each process in each step. Each step has the same scenes."""
    accumulated = PER_STEP // (world_size * batch_size)
    position = TrainingPosition(0, 0, len(PATCHES) // (world_size * batch_size), accumulated)
    costs, scenes = [], []
    for rank in range(world_size):
        sampler = QuestionSampler([1] * len(PATCHES), batch_size, 1, 5, rank, world_size, num_patches=num_patches)
        sampler.position = lambda: position
        items = [[item.scene for item in batch] for batch in sampler]
        steps = [sum(items[start : start + accumulated], []) for start in range(0, len(items), accumulated)]
        costs.append([PATCHES[step].sum() for step in steps])
        scenes.append(steps)
    of_one = QuestionSampler([1] * len(PATCHES), PER_STEP, 1, 5)
    assert [sorted(sum(step, [])) for step in zip(*scenes, strict=True)] == [sorted(i.scene for i in b) for b in of_one]
    return np.array(costs).T


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 1), (2, 3), (3, 1), (4, 3), (6, 2)])
def test_processes_share_the_cost_of_a_step(world_size: int, batch_size: int) -> None:
    def slowest(costs: np.ndarray) -> float:
        """Of the slowest process, relative to the mean of all."""
        return float((costs.max(1) / costs.mean(1)).mean())

    balanced, by_chance = (slowest(costs_of_steps(world_size, batch_size, each)) for each in (PATCHES, None))
    assert balanced - 1 < 0.5 * (by_chance - 1) and by_chance > 1.1


def test_a_scene_is_read_once_in_a_batch_and_its_sequences_are_of_nearly_equal_length() -> None:
    (batch,) = QuestionSampler([6], 3, 2, seed=0)
    assert len(batch) == 1 and sorted(batch[0].questions) == list(range(6))
    sizes = [len(item.questions) for batch in QuestionSampler([10], 1, 4, seed=0) for item in batch]
    assert sorted(sizes) == [3, 3, 4]


def test_the_data_of_a_step_follow_from_its_number() -> None:
    whole = epochs(3)
    for stop in range(len(whole)):
        assert epochs(3, step=stop)[: len(whole) - stop] == whole[stop:]
    for stop in (1, 6, 8):  # workers have fetched ahead: that must not count
        assert list(islice(Training(workers=2).epochs(3), stop)) == whole[:stop]
    other, drawn = ([[item[:2] for item in batch] for batch in each] for each in (epochs(3, seed=4), whole))
    assert other != drawn  # another seed asks in another order


@pytest.mark.parametrize(("accumulated", "limit"), [(3, None), (2, 5), (3, 4)])  # an epoch has 7 batches
def test_an_epoch_of_accumulated_batches_is_continued_at_any_step(accumulated: int, limit: int | None) -> None:
    """As by `accumulate_grad_batches` and `limit_train_batches`: the next epoch is the next shuffle all the same."""
    kwargs: dict[str, Any] = {"accumulated": accumulated, "limit": limit}
    all_batches, whole = epochs(3), epochs(3, **kwargs)
    per_epoch = limit or len(sampler_of())
    assert [[item[:2] for item in batch] for batch in whole[:per_epoch]] == [
        [item[:2] for item in batch] for batch in all_batches[:per_epoch]
    ]
    starts = [place for place in range(3 * per_epoch) if place % per_epoch % accumulated == 0]
    for step, start in enumerate(starts):
        assert epochs(3 - start // per_epoch, step=step, **kwargs) == whole[start:], step
        of_step = whole[start : [*starts, len(whole)][step + 1]]
        assert {item.step.num_answers for batch in of_step for item in batch} == {asked(of_step).total()}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"seed": 4}, "trained with seed 3, now it is 4: resume with the same settings"),
        ({"counts": (9,)}, "trained with num_questions 22, now it is 9"),
        ({"world_size": 2}, "trained with world_size 1, now it is 2"),
        ({"questions": "changed"}, "trained with other questions or answers than are there now: "),
    ],
)
def test_resuming_with_other_settings_is_an_error_that_names_them(other: dict[str, Any], says: str) -> None:
    check_resumed(sampler_of(**other).settings, sampler_of(**other).settings)
    with pytest.raises(InputError, match=says):
        check_resumed(sampler_of().settings, sampler_of(**other).settings)
    with pytest.raises(ValueError, match="no training question"):
        sampler_of(counts=[0, 0])


LOADS = [
    pytest.param(loads, processes, id=f"{len(loads)} on {processes}")
    for loads, processes in (
        ([], 2),
        ([5], 3),
        ([3, 9, 1, 4, 18, 2, 7, 5, 6, 2], 3),
        ([7, 7, 6, 6, 5, 5, 4, 4, 4], 4),  # Graham's worst case: 15 where 12 is best
        ([2, 2, 2, 3, 3], 2),
    )
]


@pytest.mark.parametrize(("loads", "processes"), LOADS)
def test_scenes_are_dealt_out_once_and_evenly(loads: list[int], processes: int) -> None:
    """Beside the best of all ways to deal them."""
    shares = balance_across_ranks(loads, processes)
    assert sorted(scene for share in shares for scene in share) == list(range(len(loads)))
    assert len(shares) == processes and all(share == sorted(share) for share in shares)
    assert shares == balance_across_ranks(loads, processes)
    most = max(sum(loads[scene] for scene in share) for share in shares)
    if len(loads) < 10:  # who takes the first is a matter of names
        best = min(greatest([0, *way][: len(loads)], loads, processes) for way in product(range(processes), repeat=8))
    else:
        best = -(-sum(loads) // processes)
    assert best <= most and 3 * processes * most <= (4 * processes - 1) * best


def greatest(way: list[int], loads: list[int], processes: int) -> int:
    """Of all processes, the most that one has to do, if `way` says who takes each scene."""
    return max(sum(load for load, who in zip(loads, way, strict=True) if who == one) for one in range(processes))


def test_a_benchmark_is_even_to_a_question_where_turns_are_not() -> None:
    """288 scenes of 1 to 49 questions, as VSI-Bench has about."""
    loads = torch.randint(1, 50, (288,), generator=torch.Generator().manual_seed(0)).tolist()
    for processes in (2, 3, 8):
        shares = [[loads[scene] for scene in share] for share in balance_across_ranks(loads, processes)]
        assert max(map(sum, shares)) - min(map(sum, shares)) <= 1
        turns = [sum(loads[process::processes]) for process in range(processes)]
        assert max(turns) - min(turns) > 50
