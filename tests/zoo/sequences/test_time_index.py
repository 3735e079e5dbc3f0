"""Time indices from frame numbers and poses, through mRoPE's position ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.zoo.cameras.test_cameras import eye_intrinsics, random_poses
from tests.zoo.layouts import sequence_layout
from tests.zoo.sequences.test_positions import IMAGE, TOKENS, VIDEO, Sample, write_batch
from zoo.cameras import Cameras
from zoo.cameras.poses import PoseMeasure, pose_distance
from zoo.encodings import PRoPE, TemporalSection
from zoo.errors import InputError
from zoo.model_spec import choose_time_index
from zoo.positions import mrope_position_ids
from zoo.sequences.time_index import (
    BackboneIndex,
    ConstantIndex,
    FrameNumberIndex,
    PathLengthIndex,
    PoseDistanceIndex,
    SpanIndex,
    TimeIndex,
    TimestampIndex,
)

STEPS = 6
ONE_VIDEO: list[Sample] = [[2, (VIDEO, STEPS, 2, 2), 3]]  # one token per temporal patch


def times(time: TimeIndex, samples: Sequence[Sample] = ONE_VIDEO, **more: Any) -> Tensor:
    """Computes the time position of each visual token of the batch, from 0."""
    ids, mask, grids = write_batch(list(samples), "left")
    positions = mrope_position_ids(ids, mask, **grids, **TOKENS, time_index=time, **more)[0][0]
    index = sequence_layout(ids, mask, **grids, **TOKENS).camera_index()
    return torch.cat([row[visual] - row[visual].min() for row, visual in zip(positions, index >= 0, strict=True)])


def cameras(poses: Tensor, index: Tensor | None = None) -> Cameras:
    return Cameras(poses, eye_intrinsics(*poses.shape[:2]), index)


def track(*x: float) -> Tensor:
    """Returns poses with the same orientation and centers (x, 0, 0)."""
    poses = torch.eye(4, dtype=torch.float64).repeat(1, len(x), 1, 1)
    poses[0, :, 0, 3] = -torch.tensor(x, dtype=torch.float64)
    return poses


# ---- frames -----------------------------------------------------------------------------------------------


def test_frame_number_index_follows_the_frames() -> None:
    even = times(FrameNumberIndex(span=10), frame_indices=[range(0, 2 * STEPS)])
    assert even.tolist() == [0, 2, 4, 6, 8, 10]
    bunched = times(FrameNumberIndex(span=100), frame_indices=[[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 100, 100]])
    assert bunched.tolist() == [0, 1, 2, 3, 4, 100]
    backwards = times(FrameNumberIndex(span=10), frame_indices=[range(2 * STEPS, 0, -1)])
    assert backwards.tolist() == even.tolist()[::-1]
    single = times(FrameNumberIndex(span=10), frame_indices=[range(STEPS)])  # one frame per temporal patch, not merged
    assert single.tolist() == even.tolist()
    odd = times(FrameNumberIndex(span=10), frame_indices=[range(0, 2 * STEPS - 1)])  # the last frame is duplicated
    assert odd[:-1].tolist() == [0, 2, 4, 6, 8] and odd[-1] == 10


def test_each_video_has_its_own_range() -> None:
    samples: list[Sample] = [[1, (VIDEO, 2, 2, 2), 1, (VIDEO, 3, 2, 2), 1], [2, (VIDEO, 2, 2, 2)]]
    ids, mask, grids = write_batch(samples, "right")
    frames = [[5, 5, 9, 9], [0, 0, 10, 10, 40, 40], [7, 7, 8, 8]]
    t = mrope_position_ids(ids, mask, **grids, **TOKENS, time_index=FrameNumberIndex(8), frame_indices=frames)[0][0]
    start = 2
    assert t[0, ids[0] == VIDEO].tolist() == [start, start + 8, start + 8 + 4, start + 8 + 4 + 2, start + 8 + 4 + 8]
    assert t[1, ids[1] == VIDEO].tolist() == [3, 11]


def test_wrong_frame_indices_raise() -> None:
    with pytest.raises(ValueError, match="pass frame_indices"):
        times(FrameNumberIndex())
    with pytest.raises(ValueError, match="one list per video"):
        times(FrameNumberIndex(), frame_indices=[range(12), range(12)])
    with pytest.raises(ValueError, match="video 0 has 6 temporal patches, but frame_indices has 5 frames"):
        times(FrameNumberIndex(), frame_indices=[range(5)])
    with pytest.raises(InputError, match="span=0"):
        FrameNumberIndex(0)


# ---- poses ------------------------------------------------------------------------------------------------


def test_path_length_and_distance_on_a_track() -> None:
    there_and_back = cameras(track(0, 1, 2, 3, 2, 0))
    assert times(PathLengthIndex(span=6), cameras=there_and_back).tolist() == [0, 1, 2, 3, 4, 6]
    assert times(PoseDistanceIndex(span=6), cameras=there_and_back).tolist() == [0, 2, 4, 6, 4, 0]
    two_sides = times(PoseDistanceIndex(span=6, reference="middle"), cameras=cameras(track(0, 1, 2, 3, 4, 6)))
    assert two_sides.tolist() == [6, 4, 2, 0, 2, 6]  # not injective: both ends share a position
    medoid = times(PoseDistanceIndex(span=3, reference="medoid"), cameras=cameras(track(0, 0, 1, 0, 0, 3)))
    assert medoid.tolist() == [0, 0, 1, 0, 0, 3]


def test_measure_and_weight_are_used() -> None:
    poses = random_poses(1, STEPS)
    angle, distance = pose_distance(poses[0, :1], poses[0])
    for measure, values in (("rotation", angle), ("center", distance), ("sum", angle + 0.2 * distance)):
        expected = (values / values.max() * 1000).round().long()
        weight = 0.2 if measure == "sum" else 1.0
        found = times(PoseDistanceIndex(measure, weight, span=1000), cameras=cameras(poses))  # type: ignore[arg-type]
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "time",
    [PoseDistanceIndex(), PoseDistanceIndex("log", reference="medoid"), PathLengthIndex(), PathLengthIndex("rotation")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pose_indices_are_invariant_to_a_change_of_world(time: TimeIndex, dtype: torch.dtype) -> None:
    poses, world = random_poses(1, STEPS), random_poses(1, 1, seed=4, scale=3.0)
    here = times(time, cameras=cameras(poses.to(dtype)))
    assert torch.equal(here, times(time, cameras=cameras((poses @ world).to(dtype))))
    assert not torch.equal(here, times(time, cameras=cameras(random_poses(1, STEPS, seed=9).to(dtype))))


@pytest.mark.parametrize("measure", get_args(PoseMeasure))
@pytest.mark.parametrize("kind", ["first", "middle", "medoid", "path"])
def test_poses_of_invalid_cameras_do_not_count(kind: Any, measure: PoseMeasure) -> None:
    """Several videos at once, against the valid poses of each alone."""
    index = PathLengthIndex(measure) if kind == "path" else PoseDistanceIndex(measure, reference=kind)
    poses = random_poses(4, STEPS)
    known = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0]]).bool()
    found = index.spread(index.pose_values(poses, known), known)
    for video, mask in enumerate(known):
        alone = poses[video, mask][None]
        expected = index.spread(index.pose_values(alone, torch.ones(1, int(mask.sum()), dtype=torch.bool))[0])
        torch.testing.assert_close(found[video, mask], expected, rtol=0, atol=1e-9)
        assert not found[video, ~mask].any()


def test_uniform_motion_does_not_depend_on_rounding_errors() -> None:
    """Halves are rounded up in every world."""
    poses = track(0, 1, 2, 3, 4, 8)
    for seed in range(5):
        moved = poses @ random_poses(1, 1, seed=seed)
        assert times(PathLengthIndex(span=4), cameras=cameras(moved.float())).tolist() == [0, 1, 1, 2, 2, 4]


@pytest.mark.parametrize("time", [PoseDistanceIndex(), PathLengthIndex()])
def test_static_single_and_missing_cameras(time: TimeIndex) -> None:
    static = random_poses(1, 1).expand(1, STEPS, 4, 4).clone()
    assert times(time, cameras=cameras(static)).tolist() == [0] * STEPS
    noise = torch.randn(1, STEPS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    static[..., :3, 3] += 1e-6 * noise
    assert times(time, cameras=cameras(static)).tolist() == [0] * STEPS
    static[..., :3, 3] += 1e-3 * noise
    assert times(time, cameras=cameras(static)).max() == 32
    static[..., :3, 3] = static[:, :1, :3, 3]
    assert times(time, [[1, (VIDEO, 1, 2, 2)]], cameras=cameras(static[:, :1])).tolist() == [0]

    ids, mask, grids = write_batch(ONE_VIDEO, "left")
    index = sequence_layout(ids, mask, **grids, **TOKENS).camera_index()
    none = times(time, cameras=cameras(track(0, 1, 2, 3, 4, 5), torch.full_like(index, -1)))
    assert none.tolist() == [0] * STEPS
    some = torch.where((index == 0) | (index == 3), -1, index)  # without the first and the fourth
    found = times(time, cameras=cameras(track(9, 1, 2, 9, 4, 5), some))
    span = 32
    assert found.tolist() == [0, 0, span // 4, span // 4, 3 * span // 4, span]


def test_cameras_of_a_batch_are_assigned_to_their_videos() -> None:
    """Two videos and a still in one sample, and another padded sample, give the positions of each video alone."""
    samples: list[Sample] = [
        [1, (VIDEO, 3, 2, 4), 1, (IMAGE, 1, 2, 2), (VIDEO, 4, 4, 2), 1],
        [2, (VIDEO, 5, 2, 2), 1],
    ]
    poses = random_poses(2, 8)
    for side in ("left", "right"):
        ids, mask, grids = write_batch(samples, side)
        layout = {**grids, **TOKENS}
        given = cameras(poses)
        t = mrope_position_ids(ids, mask, **layout, time_index=PathLengthIndex(), cameras=given)[0][0]
        indexed = given.with_index(sequence_layout(ids, mask, **layout).camera_index())
        assert torch.equal(
            t, mrope_position_ids(ids, mask, **layout, time_index=PathLengthIndex(), cameras=indexed)[0][0]
        )
        index = indexed.index
        assert index is not None
        for row, first, count in ((0, 0, 3), (0, 4, 4), (1, 0, 5)):
            alone = times(
                PathLengthIndex(),
                [[(VIDEO, count, 2, 2)]],
                cameras=cameras(poses[row : row + 1, first : first + count]),
            )
            here = torch.stack([t[row, index[row] == first + k][0] for k in range(count)])
            assert torch.equal(here - here[0], alone)
        still = t[0, index[0] == 3]
        assert len(still) == 1


def test_wrong_cameras_raise() -> None:
    with pytest.raises(ValueError, match="PathLengthIndex requires cameras"):
        times(PathLengthIndex())
    with pytest.raises(ValueError, match="has 6 temporal patches, but cameras for 5"):
        times(PoseDistanceIndex(), cameras=cameras(random_poses(1, 5)))


# ---- patch centers ----------------------------------------------------------------------------------------


def test_patch_centers() -> None:
    samples: list[Sample] = [[2, (VIDEO, 2, 4, 6), 1, (IMAGE, 1, 2, 4), 1], [3, (VIDEO, 1, 2, 2)]]
    for side in ("left", "right"):
        ids, mask, grids = write_batch(samples, side)
        centers = sequence_layout(ids, mask, **grids, **TOKENS).patch_centers()
        expected = [[x, y] for _ in range(2) for y in (-0.25, 0.25) for x in (-1 / 3, 0, 1 / 3)]
        torch.testing.assert_close(centers[0, ids[0] == VIDEO], torch.tensor(expected))
        assert centers[0, ids[0] == IMAGE].tolist() == [[-0.25, 0.0], [0.25, 0.0]]
        assert centers[1, ids[1] == VIDEO].tolist() == [[0.0, 0.0]]
        assert centers[(ids != VIDEO) & (ids != IMAGE)].abs().max() == 0


def test_a_protocols_seconds_are_for_backbones_that_count_them() -> None:
    given, own = BackboneIndex(seconds="sampled_fps"), TimestampIndex()
    chosen = choose_time_index(None, given, own)
    assert type(chosen) is TimestampIndex and chosen.seconds == "sampled_fps"
    text = SpanIndex()
    assert choose_time_index(None, given, text) is text
    constant = choose_time_index(PRoPE(TemporalSection()), given, own)
    assert type(constant) is ConstantIndex
