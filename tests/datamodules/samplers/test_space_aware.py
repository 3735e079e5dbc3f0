"""Space-aware sampling: voxels, coverage, the dataset's depth, predicted points, and scenes without usable points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from datamodules.samplers import PredictedPoints, SceneView, SpaceAwareSampler, maximum_coverage, voxelize
from datamodules.samplers.base import PointMaps, PointSource
from datamodules.samplers.space_aware import DatasetDepth, encoder_images
from datamodules.video import Video
from tests.golden.synth import synth_video
from zoo.errors import InputError
from zoo.geometry import (
    VGGT,
    DatasetGeometry,
    PretrainedVGGT,
    TinyVGGT,
    VGGTEncoder,
)

GOLDEN = Path(__file__).parents[2] / "golden/sa_sampling"


def golden(case: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return load_file(GOLDEN / f"{case}.safetensors"), json.loads((GOLDEN / f"{case}.json").read_text())


def golden_points(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    tensors, _ = golden(case)
    return tensors["world_points"][0], tensors["world_points_conf"][0]


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


@pytest.mark.parametrize("case", ["walk32", "walk128", "revisit24", "lowconf20"])
def test_golden_voxels_and_picks(case: str) -> None:
    tensors, meta = golden(case)
    points, confidence = golden_points(case)
    sets, offsets = voxelize(points, confidence), tensors["voxel_offsets"].tolist()
    for frame, voxels in enumerate(sets):
        np.testing.assert_array_equal(voxels, tensors["voxels"][offsets[frame] : offsets[frame + 1]].numpy())
    for k, order in meta["greedy_order"].items():
        assert maximum_coverage(sets, int(k)) == order
        assert len(np.unique(np.concatenate([sets[f] for f in order]), axis=0)) == meta["covered"][k]
    assert as_sets(voxelize(points[..., [1, 0, 2]], confidence)) != as_sets(sets)  # negative control: axes swapped
    assert as_sets(voxelize(points, torch.ones_like(confidence))) != as_sets(sets)  # and without the median


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


def test_lazy_is_greedy_ties_included() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        spread = int(rng.choice([3, 6, 10**7]))  # few cells tie often; far apart ones don't fit an integer
        sets = [
            {tuple(map(int, v)) for v in rng.integers(-spread, spread, (rng.integers(0, 20), 3))}
            for _ in range(int(rng.integers(1, 25)))
        ]
        for k in (0, 1, 3, 40):
            assert maximum_coverage(sets, k) == greedy(sets, k)
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


class Maps(PointSource):
    """Points given by the test."""

    def __init__(self, points: torch.Tensor, confidence: torch.Tensor) -> None:
        self._maps = PointMaps(points, confidence)

    def points(self, scene: SceneView) -> PointMaps:
        return PointMaps(self._maps.points[scene.pool], self._maps.confidence[scene.pool])


def clip(num_frames: int, height: int = 6, width: int = 8) -> Video:
    video = Video.__new__(Video)
    video.num_frames, video.path, video.height, video.width = num_frames, Path("mine/clip.mp4"), height, width
    return video


def test_golden_frames_with_stop_and_fill() -> None:
    points, confidence = golden_points("lowconf20")  # 13 of its 20 frames cover all that can be covered
    official = maximum_coverage(voxelize(points, confidence), 20)
    assert len(official) == 13
    stop = SpaceAwareSampler(Maps(points, confidence), "stop", cache=None)
    assert stop.select(clip(20), 20) == sorted(official)
    assert stop(clip(20), 20) == [*sorted(official), max(official)]  # even, no more
    filled = SpaceAwareSampler(Maps(points, confidence), cache=None)
    assert filled(clip(20), 20) == list(range(20)) and set(official) < set(filled(clip(20), 16))
    for n in (2, 8, 12):
        assert filled(clip(20), n) == stop(clip(20), n) == sorted(official[:n])
    nothing = SpaceAwareSampler(Maps(points, 0.04 * confidence.clamp(max=2)), cache=None)
    with pytest.raises(ValueError, match="clip.mp4: no frame of 20"):
        nothing(clip(20), 8)
    sampler = SpaceAwareSampler(Maps(*golden_points("walk128")), candidates=16, cache=None)
    assert set(sampler(clip(128), 8)) <= set(np.linspace(0, 127, 16, dtype=int).tolist())
    assert len(sampler(clip(128), 64)) == 16


# ---- the dataset's depth
@pytest.fixture
def corridor(tmp_path: Path) -> SceneView:
    """Eight frames of a wall 2 m ahead; the camera moves along it by its own view's width every other frame."""
    depth = tmp_path / "clip.depth"
    depth.mkdir()
    for i in range(8):
        meters = np.full((6, 8), 2.0)
        meters[3:] = 2.5  # a step, so that no side of the scene is flat
        Image.fromarray((meters * 1000).astype(np.uint16)).save(depth / f"{i}.png")
    poses = torch.eye(4, dtype=torch.float64).repeat(8, 1, 1)
    poses[:, 0, 3] = -4.0 * (torch.arange(8) // 2)  # x of the center is minus that of the translation
    K = torch.eye(3, dtype=torch.float64).repeat(8, 1, 1)
    return SceneView(clip(8), poses, K, depth)


def test_dataset_depth_covers_the_wall_with_half_of_the_frames(corridor: SceneView) -> None:
    sampler = SpaceAwareSampler(DatasetDepth(), "stop", cache=None)
    assert sampler.select(corridor, 8) == [0, 2, 4, 6]
    maps = DatasetDepth().points(corridor)
    assert maps.confidence.eq(1).all() and maps.points[..., 2].unique().tolist() == [2.0, 2.5]
    assert maps.points[6, ..., 0].min() > maps.points[2, ..., 0].max()
    for side in (8, 4):  # measured at pixel centers: a centered camera's are symmetric at any resolution
        points = DatasetDepth(longest_side=side).points(corridor).points[0]
        assert torch.allclose(points[..., 0], -points[..., 0].flip(1), atol=1e-6)
        assert points[0, -1, 0] == pytest.approx(2.0 * (0.5 - 0.5 / side))  # 2 m ahead
    poses = corridor.world_to_camera.clone()
    poses[[2, 6, 7]] = torch.nan  # frames without a pose see nothing
    fewer = SceneView(corridor.video, poses, corridor.K_normalized, corridor.depth)
    assert sampler.select(fewer, 8) == [0, 3, 4]


def test_missing_depth_or_cameras_are_errors(corridor: SceneView) -> None:
    sampler = SpaceAwareSampler(DatasetDepth(), cache=None)
    with pytest.raises(ValueError, match="clip.mp4: the scene has no depth: .*PredictedPoints"):
        sampler(SceneView(corridor.video, corridor.world_to_camera, corridor.K_normalized), 4)
    with pytest.raises(ValueError, match="clip.mp4: the scene has no cameras"):
        sampler(SceneView(corridor.video, depth=corridor.depth), 4)
    for file in corridor.depth.iterdir():
        Image.fromarray(np.zeros((6, 8), np.uint16)).save(file)
    with pytest.raises(ValueError, match="clip.depth: empty"):
        sampler(corridor, 4)


# ---- a geometry encoder
@pytest.mark.parametrize(
    ("case", "sizes", "seeds"),
    [
        ("load_480x640", [(480, 640)] * 2, [931, 932]),
        ("load_portrait_640x480", [(640, 480)], [933]),
        ("load_mixed", [(480, 640), (300, 400), (360, 640)], [935, 936, 937]),
    ],
)
def test_golden_images_of_the_encoder(case: str, sizes: list[tuple[int, int]], seeds: list[int]) -> None:
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    frames = [synth_video(seed, 1, *size)[0] for seed, size in zip(seeds, sizes, strict=True)]
    images = encoder_images(frames)
    assert list(images.shape) == tensors["shape"].tolist()
    step = -(-images.shape[-1] // tensors["images_u8_strided"].shape[-1])
    strided = (images[..., ::step, ::step] * 255).round().to(torch.uint8)
    assert torch.equal(strided, tensors["images_u8_strided"])


def predicted_points(head: str = "point", dtype: str = "float32") -> PredictedPoints:
    """Points of a VGGT with small random weights."""
    dense = {"dim_in": 128, "features": 16, "out_channels": [16, 16, 16, 16], "intermediate_layer_idx": [0, 1, 2, 3]}
    torch.manual_seed(0)
    vggt = VGGT(
        {"img_size": 28, "embed_dim": 64, "depth": 4, "num_heads": 4, "patch_embed": "conv"},
        camera_head={"dim_in": 128},
        depth_head={**dense, "output_dim": 2, "activation": "exp"},
        point_head={**dense, "output_dim": 4, "activation": "inv_log"},
    )
    vggt.camera_head.init_identity_pose()
    vggt.aggregator.to(getattr(torch, dtype))
    return PredictedPoints(lambda: VGGTEncoder(vggt), head, device="cpu")


def video_of(folder: Path, frames: torch.Tensor) -> Video:
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return Video(folder)


@pytest.mark.parametrize(("head", "dtype"), [("point", "bfloat16"), ("depth", "float32")])
def test_predicted_points(head: str, dtype: str, tmp_path: Path) -> None:
    source = predicted_points(head, dtype)
    video = video_of(tmp_path / "clip", synth_video(1, 3, 14, 259))
    maps = source.points(SceneView(video, frames=[0, 2]))
    assert maps.points.shape == (2, 28, 518, 3) and maps.points.isfinite().all() and maps.confidence.min() >= 1
    assert maps.world_to_camera.shape == (2, 4, 4) and maps.K_normalized.shape == (2, 3, 3)
    sampler = SpaceAwareSampler(Maps(maps.points, maps.confidence), cache=None)
    assert sampler(SceneView(video, frames=[0, 1]), 2) == [0, 1]
    with pytest.raises(InputError, match="nowhere is no .safetensors file"):
        PredictedPoints(lambda: PretrainedVGGT(str(tmp_path / "nowhere")))


def test_predicted_cameras_of_portrait_frames_are_upright(tmp_path: Path) -> None:
    """The encoder gets them rotated clockwise, so that its up is their left."""
    source = predicted_points("depth")
    frames = synth_video(1, 2, 518, 28)
    upright = source.points(SceneView(video_of(tmp_path / "portrait", frames)))
    lying = source.points(SceneView(video_of(tmp_path / "lying", frames.rot90(-1, (2, 3)))))
    assert torch.equal(upright.points, lying.points)
    for axis, sign, other in ((0, 1, 1), (1, -1, 0), (2, 1, 2)):
        assert torch.equal(upright.world_to_camera[:, axis], sign * lying.world_to_camera[:, other])
    assert torch.equal(upright.K_normalized.diagonal(dim1=1, dim2=2), lying.K_normalized[:, [1, 0, 2], [1, 0, 2]])
    assert not torch.equal(upright.world_to_camera, lying.world_to_camera)


def test_keys_of_selections_depend_on_the_encoder_and_its_weights(tmp_path: Path) -> None:
    weights, sizes = tmp_path / "model.safetensors", dict(embed_dim=16, num_heads=2, heads=("camera", "depth", "point"))
    scene = SceneView(video_of(tmp_path / "clip", synth_video(1, 2, 28, 28)))

    def key(**options: Any) -> str:
        return SpaceAwareSampler(PredictedPoints(lambda: TinyVGGT(str(weights), **sizes), **options)).key(scene, 2)[0]

    def write(seed: int) -> None:
        save_file(TinyVGGT(seed=seed, **sizes).vggt.official_state_dict(), weights)

    write(0)
    first, other_head, other_width = key(), key(head="depth"), key(width=28)
    assert first == key()
    write(1)
    assert len({first, other_head, other_width, key()}) == 4
    with pytest.raises(InputError, match="DatasetGeometry does not predict cameras and point"):
        PredictedPoints(DatasetGeometry, "point")
