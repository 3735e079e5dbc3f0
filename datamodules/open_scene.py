"""A scene whose video is opened, with its cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from datamodules.depth import read_depth, resize_depth
from datamodules.samplers import SceneView
from datamodules.scenes import Scene
from datamodules.video import Video
from zoo.cameras import SceneGeometry


@dataclass
class OpenScene:
    """A scene with its video opened and its cameras read.

    Attributes:
        scene: The scene.
        video: Its video.
        world_to_camera: Poses of all raw frames, NaN where unknown; None without cameras.
        K_normalized: Intrinsics of all raw frames; None without cameras.
        times_s: Timestamps of all raw frames in seconds.
        has_times: Whether they are known; a folder of frames without times_s counts one second per frame.
        raw: All raw frames, if videos are kept in memory.
        depths: Depth maps read so far by raw frame, if videos are kept in memory.
        depth: Depth maps of all raw frames, of frames in memory.
    """

    scene: Scene
    video: Video
    world_to_camera: Float[Tensor, "N 4 4"] | None
    K_normalized: Float[Tensor, "N 3 3"] | None
    times_s: list[float]
    has_times: bool
    raw: UInt8[Tensor, "N 3 H W"] | None = None
    depths: dict[int, Float32[Tensor, "H W"]] = field(default_factory=dict)
    depth: Float32[Tensor, "N H W"] | None = None

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "T 3 H W"]:
        """Raw frames."""
        return self.video.read(indices) if self.raw is None else self.raw[list(indices)]

    def read_depth(self, indices: Sequence[int], size_hw: tuple[int, int]) -> Float32[Tensor, "T H W"]:
        """Depth of raw frames, see `datamodules.depth.read_depth`; each frame is read once if videos are kept."""
        if self.depth is not None:
            return resize_depth(self.depth[list(indices)], size_hw)
        assert self.scene.depth is not None
        depths = {} if self.raw is None else self.depths
        unread = [i for i in dict.fromkeys(indices) if i not in depths]
        if unread:
            maps = read_depth(self.scene.depth, unread, num_frames=self.video.num_frames, size_hw=size_hw)
            depths.update(zip(unread, maps, strict=True))
        return torch.stack([depths[i] for i in indices])

    def view(self, epoch: int = 0) -> SceneView:
        """The input of a frame sampler."""
        scene = self.scene
        return SceneView(self.video, self.world_to_camera, self.K_normalized, scene.depth, epoch, name=scene.name)

    def geometry(self, indices: Sequence[int]) -> SceneGeometry | None:
        """Cameras of raw frames, None if no frame has one; a frame without has the identity and `has_camera` False."""
        if self.world_to_camera is None or self.K_normalized is None:
            return None
        poses, K = self.world_to_camera[list(indices)], self.K_normalized[list(indices)]
        has_camera = poses.isfinite().flatten(1).all(1)
        poses = torch.where(has_camera[:, None, None], poses, torch.eye(4, dtype=poses.dtype))
        return SceneGeometry(world_to_camera=poses, K_normalized=K, has_camera=has_camera) if has_camera.any() else None
