"""Space-aware sampling: the dataset's depth, predicted points, and scenes without usable points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from datamodules.samplers import PredictedPoints, SceneView, SpaceAwareSampler, maximum_coverage, voxelize
from datamodules.samplers import space_aware as points_module
from datamodules.samplers.base import PointMaps, PointSource
from datamodules.samplers.space_aware import DatasetDepth, encoder_images, fill
from datamodules.video import Video
from tests.golden.synth import synth_video
from zoo.cameras import intrinsics_in_pixels
from zoo.errors import InputError
from zoo.geometry import (
    VGGT,
    DatasetGeometry,
    DatasetPoses,
    GeometryEncoder,
    PretrainedVGGT,
    SceneGeometry,
    TinyVGGT,
    VGGTEncoder,
    unproject_depth,
)

GOLDEN = Path(__file__).parents[2] / "golden"


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


def golden(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = load_file(GOLDEN / f"sa_sampling/{case}.safetensors")
    return tensors["world_points"][0], tensors["world_points_conf"][0]


def test_golden_frames_with_stop_and_fill() -> None:
    points, confidence = golden("lowconf20")  # 13 of its 20 frames cover all that can be covered
    official = maximum_coverage(voxelize(points, confidence), 20)
    assert len(official) == 13
    stop = SpaceAwareSampler(Maps(points, confidence), "stop", cache=None)
    assert stop.select(clip(20), 20) == sorted(official)
    assert stop(clip(20), 20) == [*sorted(official), max(official)]  # even, no more
    filled = SpaceAwareSampler(Maps(points, confidence), cache=None)
    assert filled(clip(20), 20) == list(range(20)) and set(official) < set(filled(clip(20), 16))
    for n in (2, 8, 12):
        assert filled(clip(20), n) == stop(clip(20), n) == sorted(official[:n])


def test_fill_adds_the_frame_farthest_in_time() -> None:
    assert fill([0, 9], 10, 4) == [0, 9, 4, 2]
    assert fill([5], 10, 3) == [5, 0, 9]
    assert sorted(fill([3], 6, 20)) == list(range(6))


def test_candidates_limit_the_choice() -> None:
    points, confidence = golden("walk128")
    sampler = SpaceAwareSampler(Maps(points, confidence), candidates=16, cache=None)
    assert set(sampler(clip(128), 8)) <= set(np.linspace(0, 127, 16, dtype=int).tolist())
    assert len(sampler(clip(128), 64)) == 16


def test_low_confidence_everywhere_is_an_error_that_names_the_video() -> None:
    points, confidence = golden("walk32")
    sampler = SpaceAwareSampler(Maps(points, 0.04 * confidence.clamp(max=2)), cache=None)
    with pytest.raises(ValueError, match="clip.mp4: no frame of 32 has a point of sufficient confidence"):
        sampler(clip(32), 8)


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
    assert DatasetDepth(longest_side=4).points(corridor).points.shape == (8, 3, 4, 3)


def test_dataset_depth_is_measured_at_pixel_centers(corridor: SceneView) -> None:
    """The points of a centered camera are symmetric at any resolution of depth."""
    for side in (8, 4):
        points = DatasetDepth(longest_side=side).points(corridor).points[0]
        assert torch.allclose(points[..., 0], -points[..., 0].flip(1), atol=1e-6)
        assert points[0, -1, 0] == pytest.approx(2.0 * (0.5 - 0.5 / side))  # 2 m ahead


def test_frames_without_a_pose_see_nothing(corridor: SceneView) -> None:
    poses = corridor.world_to_camera.clone()
    poses[[2, 6, 7]] = torch.nan
    fewer = SceneView(corridor.video, poses, corridor.K_normalized, corridor.depth)
    assert SpaceAwareSampler(DatasetDepth(), "stop", cache=None).select(fewer, 8) == [0, 3, 4]


def test_missing_depth_or_cameras_are_errors(corridor: SceneView) -> None:
    sampler = SpaceAwareSampler(DatasetDepth(), cache=None)
    with pytest.raises(ValueError, match="clip.mp4: the scene has no depth: .*PredictedPoints"):
        sampler(SceneView(corridor.video, corridor.world_to_camera, corridor.K_normalized), 4)
    with pytest.raises(ValueError, match="clip.mp4: the scene has no cameras"):
        sampler(SceneView(corridor.video, depth=corridor.depth), 4)
    for file in corridor.depth.iterdir():
        Image.fromarray(np.zeros((6, 8), np.uint16)).save(file)
    with pytest.raises(ValueError, match="clip.depth: empty, no pixel of 8 frames has a depth"):
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
    tensors = load_file(GOLDEN / f"sa_sampling/{case}.safetensors")
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


@pytest.mark.parametrize(("head", "dtype"), [("point", "float32"), ("point", "bfloat16"), ("depth", "float32")])
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


class Plane(GeometryEncoder):
    """An encoder of another kind: a plane 1 m ahead of cameras that move sideways, in patches of 16 pixels."""

    patch_size, requires_frames, predicts_cameras, predicts_points = 16, True, True, True
    files = ()

    def __init__(self, step: float = 4.0) -> None:
        super().__init__()
        self.step = torch.nn.Parameter(torch.tensor(step))

    def identity(self) -> dict[str, int]:
        return {}

    def forward(self, frames, given, *, tokens=True, cameras=True):
        (images,) = frames
        poses = torch.eye(4).repeat(len(images), 1, 1)
        poses[:, 0, 3] = -self.step * (torch.arange(len(images)) // 2)
        K = torch.eye(3).repeat(len(images), 1, 1)
        depth = torch.ones(len(images), *images.shape[-2:])
        depth[..., : images.shape[-1] // 2] = 1.5
        points = unproject_depth(depth[..., None], poses, intrinsics_in_pixels(K, images.shape[-1], images.shape[-2]))
        return [SceneGeometry(world_to_camera=poses, K_normalized=K, points=points, confidence=torch.ones_like(depth))]


def test_another_encoder_serves_the_sampler(tmp_path: Path) -> None:
    source = PredictedPoints(Plane, width=32)
    scene = SceneView(video_of(tmp_path / "clip", synth_video(1, 6, 16, 32)))
    assert source.points(scene).points.shape == (6, 16, 32, 3)
    assert SpaceAwareSampler(source, "stop", cache=None).select(scene, 6) == [0, 2, 4]
    still = SpaceAwareSampler(PredictedPoints(lambda: Plane(0.0), width=32), "stop", cache=None)
    assert still.select(scene, 6) == [0]
    for encoder, head in ((Plane, "depth"), (DatasetGeometry, "point")):
        with pytest.raises(InputError, match=f"encoder {encoder.__name__} does not predict cameras and {head}"):
            PredictedPoints(encoder, head)
    with pytest.raises(InputError, match="gets none of the dataset's cameras, .* leave scale_from out"):
        heads = ("camera", "depth")
        PredictedPoints(lambda: TinyVGGT(embed_dim=16, num_heads=2, heads=heads, scale_from=DatasetPoses()), "depth")


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
    in_memory = [PredictedPoints(lambda step=step: Plane(step)).identity() for step in (1.0, 1.0, 2.0)]
    assert in_memory[0] == in_memory[1] != in_memory[2]


def test_predicted_points_on_a_gpu_fail_in_a_data_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = predicted_points()
    source._device = "cuda"
    monkeypatch.setattr(points_module, "get_worker_info", lambda: object())
    Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="PredictedPoints needs the GPU, which a data worker can't use.*--workers 0"):
        source.points(SceneView(Video(tmp_path)))
