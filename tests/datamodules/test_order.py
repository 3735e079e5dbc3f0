"""The order of training: all scenes once an epoch, no two ranks the same, resumable anywhere; scenes dealt out."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.utils.data import Dataset

from datamodules.order import ResumableLoader, TrainingOrder, balance_across_ranks


class Pairs(Dataset):
    def __getitem__(self, key):
        return key


def loader(served: int = 0, workers: int = 0, **kwargs) -> ResumableLoader:
    order = TrainingOrder(11, 2, seed=3, **kwargs)
    made = ResumableLoader(Pairs(), batch_sampler=order, collate_fn=list, num_workers=workers)
    made.load_state_dict(made.state_dict() | {"served": served})
    return made


def epochs(made: ResumableLoader, count: int) -> list:
    return [batch for _ in range(count) for batch in made]


def test_an_epoch_shows_every_scene_once_in_an_order_of_its_own() -> None:
    batches = epochs(loader(), 2)
    first, second = batches[:5], batches[5:]
    for number, epoch in enumerate((first, second)):
        scenes = [scene for batch in epoch for scene, _ in batch]
        assert len(set(scenes)) == 10 and {n for batch in epoch for _, n in batch} == {number}
    assert [s for b in first for s, _ in b] != [s for b in second for s, _ in b]


def test_ranks_share_an_epoch_without_repeats() -> None:
    shares = [epochs(loader(rank=rank, world_size=2), 1) for rank in range(2)]
    scenes = [scene for share in shares for batch in share for scene, _ in batch]
    assert len(scenes) == len(set(scenes)) == 8


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 4, 5, 7])
def test_going_on_is_as_if_never_stopped(stop: int, workers: int) -> None:
    whole = epochs(loader(), 3)
    stopped, head = loader(workers=workers), []
    while len(head) < stop:  # workers have fetched ahead by now: that must not count
        for batch in stopped:
            head.append(batch)
            if len(head) == stop:
                break
    rest = epochs(loader(stopped.state_dict()["served"]), 3)
    assert head == whole[:stop] and rest[: 15 - stop] == whole[stop:]


def test_another_seed_is_another_order() -> None:
    assert list(TrainingOrder(50, 2, seed=1)) != list(TrainingOrder(50, 2, seed=2))


def test_too_few_scenes_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="3 training scenes don't fill a batch of 2 scenes on 2"):
        TrainingOrder(3, 2, seed=0, world_size=2)


def test_going_on_with_other_settings_is_an_error_that_names_them() -> None:
    state = loader().state_dict()
    with pytest.raises(ValueError, match="trained with seed 3, now it is 4"):
        ResumableLoader(Pairs(), batch_sampler=TrainingOrder(11, 2, seed=4)).load_state_dict(state)


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
