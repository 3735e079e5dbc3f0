"""Voxels and greedy coverage: the official numbers, and a slow obvious reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datamodules.samplers import maximum_coverage, voxelize
from datamodules.samplers.space_aware import voxel_grid

GOLDEN = Path(__file__).parents[2] / "golden/sa_sampling"
CASES = ("walk32", "walk128", "revisit24", "lowconf20")


def golden(case: str) -> tuple[dict[str, torch.Tensor], dict]:
    return load_file(GOLDEN / f"{case}.safetensors"), json.loads((GOLDEN / f"{case}.json").read_text())


def sets_of_tuples(points: np.ndarray, confidence: np.ndarray) -> list[set[tuple[int, ...]]]:
    """The rule as it reads, one point at a time."""
    threshold = np.percentile(confidence, 50)
    sure = (confidence >= threshold) & (confidence > 0.1) & np.isfinite(points).all(-1)
    if not sure.any():
        return [set() for _ in points]
    low, high = points[sure].min(0), points[sure].max(0)
    size = np.float32((high - low)[high > low].min()) / np.float32(20)
    return [{tuple(int(c) for c in np.floor((p - low) / size)) for p in points[f][sure[f]]} for f in range(len(points))]


def greedy(sets: list[set], k: int) -> list[int]:
    """Every frame looked at in every round."""
    chosen, covered = [], set()
    while len(chosen) < k:
        gains = [len(voxels - covered) for voxels in sets]
        if not gains or max(gains) == 0:
            break
        chosen.append(gains.index(max(gains)))
        covered |= sets[chosen[-1]]
    return chosen


def as_sets(voxel_sets: list[np.ndarray]) -> list[set[tuple[int, ...]]]:
    return [set(map(tuple, voxels.tolist())) for voxels in voxel_sets]


@pytest.mark.parametrize("case", CASES)
def test_golden_voxels_and_picks(case: str) -> None:
    tensors, meta = golden(case)
    grid = voxel_grid(tensors["world_points"][0], tensors["world_points_conf"][0])
    assert grid.size == meta["voxel_size"] and grid.origin.tolist() == meta["scene_min"]
    offsets = tensors["voxel_offsets"].tolist()
    for frame, voxels in enumerate(grid.sets):
        np.testing.assert_array_equal(voxels, tensors["voxels"][offsets[frame] : offsets[frame + 1]].numpy())
    for k, order in meta["greedy_order"].items():
        assert maximum_coverage(grid.sets, int(k)) == order
        assert len(np.unique(np.concatenate([grid.sets[f] for f in order]), axis=0)) == meta["covered"][k]


def test_golden_needs_the_median_and_the_twentieth() -> None:
    tensors, _ = golden("walk32")
    points, confidence = tensors["world_points"][0], tensors["world_points_conf"][0]
    expected = as_sets(voxelize(points, confidence))
    assert as_sets(voxelize(points.double(), confidence)) != as_sets(voxelize(points, torch.ones_like(confidence)))
    assert as_sets(voxelize(points[..., [1, 0, 2]], confidence)) != expected  # negative control: axes swapped


def test_golden_sets() -> None:
    cases = json.loads((GOLDEN / "greedy_sets.json").read_text())
    for case in cases:
        sets = [{tuple(voxel) for voxel in voxels} for voxels in case["voxel_sets"]]
        arrays = [np.array(sorted(voxels), dtype=np.int32).reshape(-1, 3) for voxels in sets]
        lists = [[*voxels, *voxels] for voxels in sets]  # a frame sees a voxel once
        for k, selected in case["selected"].items():
            for form in (sets, arrays, lists, [torch.from_numpy(array) for array in arrays]):
                assert maximum_coverage(form, int(k)) == selected, case["case"]
    assert len(cases) >= 5


@pytest.mark.parametrize("seed", range(30))
def test_lazy_is_greedy_ties_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spread = int(rng.choice([3, 6, 10**7]))  # few cells tie often; far apart ones don't fit an integer
    sets = [
        {tuple(map(int, v)) for v in rng.integers(-spread, spread, (rng.integers(0, 20), 3))}
        for _ in range(int(rng.integers(1, 25)))
    ]
    for k in (0, 1, 3, 40):
        assert maximum_coverage(sets, k) == greedy(sets, k)


def test_ties_go_to_the_lower_frame_and_it_stops_at_zero_gain() -> None:
    assert maximum_coverage([{(0, 0, 0)}, {(1, 0, 0)}, {(0, 0, 0)}], 3) == [0, 1]
    assert maximum_coverage([], 3) == maximum_coverage([[], []], 3) == []


@pytest.mark.parametrize("seed", range(8))
def test_voxels_are_those_of_the_rule_as_it_reads(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames, height, width = 3 + seed, 5, 7
    points = rng.normal(size=(frames, height, width, 3)).astype(np.float32)
    confidence = rng.random((frames, height, width)).astype(np.float32)
    if seed % 2:
        points[0, 0, 0] = 10.0 ** (seed + 1)  # an outlier: a grid too large to mark, or to count exactly in float32
        confidence[0, 0, 0] = 1
    if seed == 2:
        confidence = confidence.round(1)  # many equal ones at the threshold
    if seed == 4:
        points[1, 2] = np.nan
        points[2, 3, 4, 1] = np.inf
    assert as_sets(voxelize(points, confidence)) == sets_of_tuples(points, confidence)
    assert as_sets(voxelize(torch.from_numpy(points), torch.from_numpy(confidence))) == sets_of_tuples(
        points, confidence
    )


def test_a_flat_scene_is_cut_along_its_other_sides() -> None:
    points = np.zeros((2, 3, 4, 3), np.float32)
    points[..., 0], points[..., 1] = np.arange(4), np.arange(3)[:, None]
    points[1, ..., 0] += 4
    sets = as_sets(voxelize(points, np.ones((2, 3, 4), np.float32)))
    assert len(sets[0]) == len(sets[1]) == 12 and not sets[0] & sets[1]
    one = voxelize(np.ones((2, 3, 4, 3), np.float32), np.ones((2, 3, 4), np.float32))
    assert as_sets(one) == [{(0, 0, 0)}] * 2


def test_nothing_is_confident() -> None:
    points = np.random.default_rng(0).normal(size=(3, 4, 5, 3)).astype(np.float32)
    assert as_sets(voxelize(points, np.full((3, 4, 5), 0.1, np.float32))) == [set()] * 3
    assert as_sets(voxelize(np.full_like(points, np.nan), np.ones((3, 4, 5), np.float32))) == [set()] * 3
    unsure = np.full((3, 4, 5), np.nan, np.float32)
    assert as_sets(voxelize(points, unsure)) == [set()] * 3
    unsure[0] = 1  # and what isn't a number stands for none
    assert [len(voxels) > 0 for voxels in voxelize(points, unsure)] == [True, False, False]
