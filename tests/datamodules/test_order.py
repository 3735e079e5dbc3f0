"""The order of training: each question once per epoch, dealt to ranks, resumable anywhere; scenes dealt to ranks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datamodules.question_sampler import (
    ResumableLoader,
    TrainingItem,
    TrainingOrder,
    TrainingPosition,
    balance_across_ranks,
)
from zoo.errors import InputError

COUNTS = (3, 1, 7, 2, 0, 5, 4)  # questions of each scene
SEQUENCES = 13  # of at most two questions


class Echo(Dataset):
    def __getitem__(self, key):
        return key


def order_of(counts=COUNTS, batch_size: int = 2, seed: int = 3, **kwargs) -> TrainingOrder:
    return TrainingOrder(counts, batch_size, 2, seed, **kwargs)


class Training:
    """Stands where it has had so many batches, as a Trainer does."""

    def __init__(self, trained: int = 0, workers: int = 0, **kwargs) -> None:
        order = order_of(**kwargs)
        self.trained, self.per_epoch = trained, len(order)
        self.loader = ResumableLoader(
            Echo(), position=self.position, batch_sampler=order, collate_fn=list, num_workers=workers
        )

    def position(self) -> TrainingPosition:
        return TrainingPosition(*divmod(self.trained, self.per_epoch), self.per_epoch)

    def epochs(self, count: int) -> Iterator[list[TrainingItem]]:
        for _ in range(count):
            for batch in self.loader:
                self.trained += 1
                yield batch


def epochs(count: int, trained: int = 0, **kwargs) -> list[list[TrainingItem]]:
    return list(Training(trained, **kwargs).epochs(count))


def asked(batches: list[list[TrainingItem]]) -> Counter[tuple[int, int]]:
    """How often each question is learned from, as (scene, question)."""
    items = (item for batch in batches for item in batch if not item.is_padding)
    return Counter((item.scene, question) for item in items for question in item.questions)


EACH_ONCE = Counter((scene, question) for scene, count in enumerate(COUNTS) for question in range(count))


def test_an_epoch_asks_each_question_once_in_an_order_of_its_own() -> None:
    length = len(order_of())
    batches = epochs(2)
    first, second = batches[:length], batches[length:]
    for number, epoch in enumerate((first, second)):
        assert asked(epoch) == EACH_ONCE
        assert {item.epoch for batch in epoch for item in batch} == {number}
    assert [item[:2] for batch in first for item in batch] != [item[:2] for batch in second for item in batch]
    groups = ({(d.scene, frozenset(d.questions)) for b in epoch for d in b} for epoch in (first, second))
    assert next(groups) != next(groups), "which questions share a sequence is drawn anew"


@pytest.mark.parametrize("world_size", [2, 3, 5, 16])  # also ones that do not divide the number of sequences
@pytest.mark.parametrize("batch_size", [1, 2])
def test_ranks_share_an_epoch_and_take_equally_many_steps(world_size: int, batch_size: int) -> None:
    shares = [epochs(1, rank=r, world_size=world_size, batch_size=batch_size) for r in range(world_size)]
    assert len({len(share) for share in shares}) == 1 and all(batch for share in shares for batch in share)
    assert asked([batch for share in shares for batch in share]) == EACH_ONCE
    repeated = [item for share in shares for batch in share for item in batch if item.is_padding]
    remainder = SEQUENCES % (batch_size * world_size)  # sequences of the last step
    assert len(repeated) == (max(0, world_size - remainder) if remainder else 0)
    assert all(len(item.questions) == 1 for item in repeated)  # nothing is learned from more, and they are not packed


def test_a_scene_that_comes_twice_in_a_batch_is_read_once() -> None:
    (batch,) = TrainingOrder([6], 3, 2, seed=0)
    assert len(batch) == 1 and sorted(batch[0].questions) == list(range(6))


def test_sequences_of_a_scene_are_of_nearly_equal_length() -> None:
    sizes = [len(item.questions) for batch in TrainingOrder([10], 1, 4, seed=0) for item in batch]
    assert sorted(sizes) == [3, 3, 4]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 5, 6, 8])
def test_a_resumed_order_is_that_of_an_uninterrupted_run(stop: int, workers: int) -> None:
    whole = epochs(3)
    head = list(islice(Training(workers=workers).epochs(3), stop))  # workers have fetched ahead: that must not count
    assert head == whole[:stop] and epochs(3, trained=stop)[: len(whole) - stop] == whole[stop:]


def test_an_epoch_may_end_before_all_of_its_batches() -> None:
    """As by `limit_train_batches`: the next one is the next shuffle all the same."""
    training = Training()
    training.per_epoch = 3
    (first, second), whole = (list(islice(training.epochs(1), 3)) for _ in range(2)), epochs(2)
    assert (first, second) == (whole[:3], whole[len(order_of()) :][:3])


def test_another_seed_is_another_order() -> None:
    assert list(order_of(seed=1)) != list(order_of(seed=2))


def test_no_question_is_an_error() -> None:
    with pytest.raises(ValueError, match="no training question"):
        order_of(counts=[0, 0])


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"seed": 4}, "trained with seed 3, now it is 4: resume with the same settings"),
        ({"counts": (9,)}, "trained with num_scenes 7"),
        ({"questions": "changed"}, "trained with other questions or answers than are there now: "),
    ],
)
def test_resuming_with_other_settings_is_an_error_that_names_them(other: dict[str, Any], says: str) -> None:
    order_of(**other).check(order_of(**other).settings)
    with pytest.raises(InputError, match=says):
        order_of(**other).check(order_of().settings)


def test_a_checkpoint_of_an_earlier_version_is_an_error() -> None:
    trained = order_of().settings
    del trained["questions"]
    with pytest.raises(InputError, match="of a version that trained in another order"):
        order_of().check(trained)


@pytest.mark.slow
def test_820_000_questions_on_64_ranks() -> None:
    """Balanced at each step, no question twice, none lost, also when resumed in the middle."""
    random = np.random.default_rng(0)
    counts = random.multinomial(820_000, random.dirichlet(np.full(8_000, 0.5))).tolist()
    taken = np.zeros(820_000, dtype=np.int64)
    first = np.cumsum(counts) - counts
    totals, repeated = [], 0
    for rank in range(64):
        order = TrainingOrder(counts, 2, 4, seed=0, rank=rank, world_size=64)
        order.shuffle = shuffle(order.shuffle)  # the same on all ranks, which a test shows at a small size
        middle = len(order) // 2
        head = [batch for batch, _ in zip(order, range(middle), strict=False)]
        order.position = TrainingPosition(batch=middle)
        own = [item for batch in (*head, *order) for item in batch]
        repeated += sum(item.is_padding for item in own)
        indices = [first[item.scene] + q for item in own if not item.is_padding for q in item.questions]
        np.add.at(taken, indices, 1)
        totals.append(len(indices))
    assert (taken == 1).all() and repeated == 0
    assert max(totals) / min(totals) < 1.01


def shuffle(compute, kept={}):  # noqa: B006 - shared by the ranks on purpose
    def once(epoch: int):
        if epoch not in kept:
            kept[epoch] = compute(epoch)
        return kept[epoch]

    return once


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


class Noted(Dataset):
    """Leaves a file for each sequence that a worker decodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, item: TrainingItem) -> TrainingItem:
        (self.folder / str(item.scene)).touch()
        return item


def test_workers_decode_ahead_by_a_bounded_number_of_batches(tmp_path: Path) -> None:
    order = order_of([1] * 20, batch_size=1)
    loader = ResumableLoader(
        Noted(tmp_path),
        position=lambda: TrainingPosition(0, 0, len(order)),
        batch_sampler=order,
        collate_fn=list,
        num_workers=1,
    )
    batches = iter(loader)
    for taken in (1, 2):
        next(batches)
        deadline = time.monotonic() + 20
        while len(list(tmp_path.iterdir())) < taken + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(list(tmp_path.iterdir())) == taken + 2  # torch's two per worker
