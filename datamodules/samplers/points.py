"""Where the points that frames see come from: depth that came with the scene, or VGGT."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datamodules.depth import read_depth
from datamodules.samplers.base import SceneView
from datamodules.selections import fingerprint
from datamodules.trajectories import Trajectory
from zoo.cameras import intrinsics_in_pixels, normalize_intrinsics
from zoo.geometry import VGGT, pose_encoding_to_cameras, unproject_depth
from zoo.geometry.projection import by_index
from zoo.geometry.vggt.official import find_weights

VGGT_WIDTH = 518  # pixels, Spatial-MLLM's
VGGT_PATCH = 14


@dataclass(frozen=True, eq=False)
class PointMaps:
    """What each frame of a pool sees, a point a pixel.

    Attributes:
        points: in one world, in any unit.
        confidence: 0 where a pixel has no point.
        world_to_camera: where in that world each frame is, NaN where that isn't known; None for a source without poses.
        K_normalized: its intrinsics, see `zoo.cameras.normalize_intrinsics`.
    """

    points: Float[Tensor, "T H W 3"]
    confidence: Float[Tensor, "T H W"]
    world_to_camera: Float[Tensor, "T 4 4"] | None = None
    K_normalized: Float[Tensor, "T 3 3"] | None = None


class PointSource(ABC):
    """Gives the points that the candidate frames of a scene see."""

    @abstractmethod
    def points(self, scene: SceneView) -> PointMaps:
        """The points of each frame of `scene.pool`.

        Raises:
            ValueError: the scene lacks what is needed; naming it and the remedy.
        """

    def identity(self) -> str:
        """What the points depend on beside the scene and the public attributes: the weights, say."""
        return ""


class DatasetDepth(PointSource):
    """Depth and cameras that came with the scene. Frames without a pose see nothing.

    Args:
        longest_side: of the depth maps in pixels: a voxel is some 2 to 5 percent of a room, so that a few hundred do.
    """

    def __init__(self, longest_side: int = 256) -> None:
        self.longest_side = longest_side

    def identity(self) -> str:
        return "2"  # raised when the same depth comes to give other points

    def points(self, scene: SceneView) -> PointMaps:
        video = scene.video
        if scene.depth is None or scene.K_normalized is None:
            what = "depth" if scene.depth is None else "cameras"
            raise ValueError(f"{video.path}: no {what} came with it: give some, or take VGGTPoints for the geometry")
        poses = scene.poses
        scale = min(1.0, self.longest_side / max(video.height, video.width))
        height, width = max(1, round(video.height * scale)), max(1, round(video.width * scale))
        depth = read_depth(scene.depth, scene.pool, num_frames=video.num_frames, size_hw=(height, width))
        filled = depth.isfinite() & (depth > 0)
        if not filled.any():
            raise ValueError(f"{scene.depth}: empty, no pixel of {len(depth)} frames has a depth: write it again")
        last = len(scene.K_normalized) - 1  # a frame beyond has no pose, and so no point
        K = scene.K_normalized[[min(frame, last) for frame in scene.pool]]
        K_px = by_index(intrinsics_in_pixels(K, width, height))
        points = unproject_depth(depth[..., None], poses.float(), K_px.float())
        filled &= ~poses.isnan().flatten(1).any(1)[:, None, None]
        return PointMaps(points, filled.float(), poses, K)


class VGGTPoints(PointSource):
    """VGGT's points of the candidate frames, as in Spatial-MLLM: 128 of them take a GPU.

    Args:
        weights: a hub id, a folder with model.safetensors in it, or a .safetensors file.
        head: "point" is the official choice; "depth" unprojects the depth head's maps through the camera head's poses,
            which VGGT's authors find more accurate.
        device: null takes a GPU where there is one.
        dtype: of the aggregator; null is bfloat16 on a GPU, float32 elsewhere.

    Raises:
        InputError: there are no such weights.
    """

    def __init__(
        self,
        weights: str = "facebook/VGGT-1B",
        head: Literal["point", "depth"] = "point",
        device: str | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> None:
        self.weights, self.head, self.device, self.dtype = weights, head, device, dtype
        self._file = find_weights(weights)  # absent weights stop a run at once, not at each of its scenes
        self._model: VGGT | None = None

    def identity(self) -> str:
        return fingerprint(self._file)

    def points(self, scene: SceneView) -> PointMaps:
        frames = list(scene.video.read(scene.pool))
        images = vggt_images(frames)
        model = self._loaded()
        device = next(model.parameters()).device
        with torch.inference_mode():
            out = model(images[None].to(device), layers=(), heads=("camera", self.head))
            assert out.pose_enc is not None
            height, width = images.shape[-2:]
            world_to_camera, K_px = pose_encoding_to_cameras(out.pose_enc[0], (height, width))
            if out.points is not None and out.points_conf is not None:
                points, confidence = out.points[0], out.points_conf[0]
            else:
                assert out.depth is not None and out.depth_conf is not None
                points, confidence = unproject_depth(out.depth[0], world_to_camera, K_px), out.depth_conf[0]
        lying = is_portrait(frames[0])
        upright = Trajectory(world_to_camera.double().cpu(), K_px.double().cpu(), width, height, quarter_turns=lying)
        upright = upright.turned()
        K_normalized = normalize_intrinsics(upright.K_px, upright.width, upright.height)
        return PointMaps(points.float().cpu(), confidence.float().cpu(), upright.world_to_camera, K_normalized)

    def _loaded(self) -> VGGT:
        if self._model is None:
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            dtype = self.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
            heads = ("camera", self.head)
            self._model = VGGT.from_pretrained(str(self._file), heads, getattr(torch, dtype)).to(device).eval()
        return self._model


def is_portrait(frame: UInt8[Tensor, "3 H W"]) -> bool:
    """Whether VGGT gets a frame turned by a quarter."""
    return frame.shape[1] > frame.shape[2]


def vggt_images(frames: Sequence[UInt8[Tensor, "3 _ _"]]) -> Float[Tensor, "T 3 H W"]:
    """Frames as Spatial-MLLM's sampler gives them to VGGT: RGB in 0..1, 518 wide, the height in multiples of 14.

    Portrait frames are turned clockwise first; sizes that differ are filled up with white to the largest.
    """
    images = [_resized(frame) for frame in frames]
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    padded = []
    for image in images:
        down, across = height - image.shape[1], width - image.shape[2]
        around = (across // 2, across - across // 2, down // 2, down - down // 2)
        padded.append(F.pad(image, around, value=1.0))
    return torch.stack(padded)


def _resized(frame: UInt8[Tensor, "3 H W"]) -> Float[Tensor, "3 h w"]:
    image = Image.fromarray(frame.permute(1, 2, 0).numpy())
    if is_portrait(frame):
        image = image.rotate(-90, expand=True)
    height = round(image.height * (VGGT_WIDTH / image.width) / VGGT_PATCH) * VGGT_PATCH
    image = image.resize((VGGT_WIDTH, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
