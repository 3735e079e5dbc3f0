"""Sources of the 3D points that frames see: the dataset's depth, or a geometry encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from datamodules.depth import read_depth
from datamodules.samplers.base import SceneView
from datamodules.trajectories import Trajectory
from zoo.cameras import intrinsics_in_pixels, normalize_intrinsics
from zoo.cameras.rays import pixel_center_intrinsics
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.files.fingerprint import file_fingerprint
from zoo.geometry import GeometryEncoder, PretrainedVGGT, unproject_depth
from zoo.geometry.cached import LazyGeometry

OFFICIAL_WIDTH = 518  # pixels, Spatial-MLLM's


@dataclass(frozen=True, eq=False)
class PointMaps:
    """The 3D point of each pixel of the frames of a pool.

    Attributes:
        points: Points in one world frame, in any unit.
        confidence: 0 where a pixel has no point.
        world_to_camera: Pose of each frame in that world, NaN where unknown; None for a source without poses.
        K_normalized: Intrinsics of each frame, see `zoo.cameras.normalize_intrinsics`.
    """

    points: Float[Tensor, "T H W 3"]
    confidence: Float[Tensor, "T H W"]
    world_to_camera: Float[Tensor, "T 4 4"] | None = None
    K_normalized: Float[Tensor, "T 3 3"] | None = None


class PointSource(Configurable, ABC):
    """Provide the points that the candidate frames of a scene see."""

    @abstractmethod
    def points(self, scene: SceneView) -> PointMaps:
        """The points of each frame of `scene.pool`.

        Raises:
            ValueError: The scene lacks what the source needs; the message names it and the remedy.
        """

    def identity(self) -> Any:
        """What determines the points beside the scene and the public attributes, such as weights; JSON."""
        return ""


class DatasetDepth(PointSource):
    """Unproject the dataset's depth with its cameras; frames without a pose see nothing.

    Args:
        longest_side: Longest side of the depth maps in pixels; a voxel is 2 to 5 percent of a room, so this suffices.
    """

    def __init__(self, longest_side: int = 256) -> None:
        self.longest_side = longest_side

    def identity(self) -> Any:
        """Version of the points; raise it when the same depth gives other points."""
        return "2"

    def points(self, scene: SceneView) -> PointMaps:
        """See `PointSource`."""
        video = scene.video
        if scene.depth is None or scene.K_normalized is None:
            what = "depth" if scene.depth is None else "cameras"
            raise ValueError(f"{video.path}: the scene has no {what}: provide it, or use PredictedPoints")
        poses = scene.poses
        scale = min(1.0, self.longest_side / max(video.height, video.width))
        height, width = max(1, round(video.height * scale)), max(1, round(video.width * scale))
        depth = read_depth(scene.depth, scene.pool, num_frames=video.num_frames, size_hw=(height, width))
        filled = depth.isfinite() & (depth > 0)
        if not filled.any():
            raise ValueError(f"{scene.depth}: empty, no pixel of {len(depth)} frames has a depth: write it again")
        K = scene.K_normalized[scene.pool]
        K_px = pixel_center_intrinsics(intrinsics_in_pixels(K, width, height))
        points = unproject_depth(depth[..., None], poses.float(), K_px.float())
        filled &= ~poses.isnan().flatten(1).any(1)[:, None, None]
        return PointMaps(points, filled.float(), poses, K)


class PredictedPoints(PointSource):
    """Points predicted by a geometry encoder; the default is Spatial-MLLM's, VGGT-1B: 128 frames need a GPU.

    Args:
        encoder: A geometry encoder that predicts points or depth with its cameras; null is `PretrainedVGGT`, with the
            aggregator in bfloat16 on a GPU and in float32 elsewhere.
        head: "point" is the official choice; "depth" unprojects predicted depth with the predicted cameras, which
            VGGT's authors find more accurate (arXiv 2503.11651, section 4.3).
        width: Width of the resized frames in pixels; a multiple of the encoder's patch size.
        device: Device of the encoder; null is a GPU if available.

    Raises:
        InputError: The encoder has no weights, or does not predict what `head` asks for.
    """

    def __init__(
        self,
        encoder: Callable[[], GeometryEncoder] | None = None,
        head: Literal["point", "depth"] = "point",
        width: int = OFFICIAL_WIDTH,
        device: str | None = None,
    ) -> None:
        self.head, self.width = head, width
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._is_default = encoder is None
        dtype: Literal["float32", "bfloat16"] = "bfloat16" if self._device.startswith("cuda") else "float32"
        # described now: absent weights stop a run at once, not at each of its scenes
        self._encoder = LazyGeometry(encoder or partial(PretrainedVGGT, dtype=dtype))
        outline = self._encoder.meta_encoder
        option = f"--data.sampler.geometry.encoder {type(outline).__name__}"
        if not (outline.predicts_cameras and (outline.predicts_points if head == "point" else outline.predicts_depth)):
            raise InputError(f"{option} does not predict cameras and {head}: choose another encoder or head")
        if outline.requires_cameras or outline.scale_from is not None:
            raise InputError(
                f"{option} gets none of the dataset's cameras, and voxels have no unit: leave scale_from out, and take "
                "PretrainedDA3 for PosedDA3"
            )
        self._encoder.enable_head("camera")
        self._encoder.enable_head(head)

    def identity(self) -> Any:
        """The encoder's settings and weights."""
        settings = self._encoder.identity()
        if self._is_default:
            del settings["dtype"]  # selections made on a GPU are valid on a CPU
        return {**settings, "weights": self._encoder.weights(file_fingerprint)}

    def points(self, scene: SceneView) -> PointMaps:
        """See `PointSource`; the encoder's reference view is the world.

        Raises:
            InputError: It is to run on a GPU, in a worker of a DataLoader.
        """
        if self._device.startswith("cuda") and get_worker_info() is not None:  # a forked process can't use CUDA
            raise InputError(
                "PredictedPoints needs the GPU, which a data worker can't use: choose the frames beforehand by "
                "select-frames --workers 0, or set --data.num_workers 0"
            )
        frames = list(scene.video.read(scene.pool))
        encoder = self._encoder.load().to(self._device)
        images = encoder_images(frames, self.width, encoder.patch_size)
        with torch.inference_mode():
            (found,) = encoder([images.to(self._device)], [None], tokens=False)
        height, width = images.shape[-2:]
        poses, K, valid = found.cameras()
        K_px, points = intrinsics_in_pixels(K, width, height), found.points
        if self.head == "depth" and found.depth is not None:
            points = unproject_depth(found.depth[..., None], poses, K_px)
        assert points is not None and found.confidence is not None
        confidence = found.confidence
        if self.head == "depth":  # points of a frame without a camera are in no world
            confidence = confidence * valid[:, None, None]
        poses = poses.where(valid[:, None, None], torch.nan)
        turns = int(is_portrait(frames[0]))
        upright = Trajectory(poses.double().cpu(), K_px.double().cpu(), width, height, quarter_turns=turns).turned()
        K_normalized = normalize_intrinsics(upright.K_px, upright.width, upright.height)
        return PointMaps(points.float().cpu(), confidence.float().cpu(), upright.world_to_camera, K_normalized)


def is_portrait(frame: UInt8[Tensor, "3 H W"]) -> bool:
    """Whether a frame is rotated by 90 degrees for the encoder."""
    return frame.shape[1] > frame.shape[2]


def encoder_images(
    frames: Sequence[UInt8[Tensor, "3 _ _"]], width: int = OFFICIAL_WIDTH, patch_size: int = 14
) -> Float[Tensor, "T 3 H W"]:
    """Resize frames as Spatial-MLLM's sampler does for VGGT: RGB in 0..1, 518 px wide, the height in whole patches.

    Portrait frames are first rotated clockwise; frames of different sizes are padded with white to the largest.
    """
    images = [_resized(frame, width, patch_size) for frame in frames]
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    padded = []
    for image in images:
        down, across = height - image.shape[1], width - image.shape[2]
        around = (across // 2, across - across // 2, down // 2, down - down // 2)
        padded.append(F.pad(image, around, value=1.0))
    return torch.stack(padded)


def _resized(frame: UInt8[Tensor, "3 H W"], width: int, patch_size: int) -> Float[Tensor, "3 h w"]:
    image = Image.fromarray(frame.permute(1, 2, 0).numpy())
    if is_portrait(frame):
        image = image.rotate(-90, expand=True)
    height = round(image.height * (width / image.width) / patch_size) * patch_size
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
