"""What a geometry encoder says of a scene: 3D tokens, cameras, depth, in one form whatever their source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.errors import InputError


class SceneGeometry:
    """The geometry of one scene of S frames; None is what the source doesn't say.

    A plain class, as `Cameras`: Lightning's half-precision plugins cast dataclasses, and poses in bfloat16 are useless.

    Args:
        patches: 3D tokens on the grid of a frame's patches.
        camera_tokens: one more token a frame, which sums up its camera.
        world_to_camera: a pose a frame, OpenCV axes, float32 or better; in meters where the source is metric.
        K_normalized: intrinsics a frame, see `zoo.cameras.normalize_intrinsics`.
        has_camera: the frames whose camera means something; the others hold an identity. None is all of them.
        depth: along the camera's z axis, in the poses' unit; 0 where there is none.
    """

    def __init__(
        self,
        *,
        patches: Float[Tensor, "S h w D"] | None = None,
        camera_tokens: Float[Tensor, "S D"] | None = None,
        world_to_camera: Float[Tensor, "S 4 4"] | None = None,
        K_normalized: Float[Tensor, "S 3 3"] | None = None,
        has_camera: Bool[Tensor, " S"] | None = None,
        depth: Float[Tensor, "S H W"] | None = None,
    ) -> None:
        self.patches, self.camera_tokens = patches, camera_tokens
        self.world_to_camera, self.K_normalized, self.has_camera = world_to_camera, K_normalized, has_camera
        self.depth = depth

    def __getitem__(self, frames: slice) -> SceneGeometry:
        """The geometry of some of the frames."""
        return SceneGeometry(**{name: None if value is None else value[frames] for name, value in vars(self).items()})

    @property
    def knows_cameras(self) -> bool:
        """Whether the camera of some frame means something."""
        has = self.world_to_camera is not None and self.K_normalized is not None
        return has and (self.has_camera is None or bool(self.has_camera.any()))

    def cameras(self) -> tuple[Float[Tensor, "S 4 4"], Float[Tensor, "S 3 3"], Bool[Tensor, " S"]]:
        """Poses, intrinsics, and which of them mean something.

        Raises:
            ValueError: there are no cameras.
        """
        poses, K, present = self.world_to_camera, self.K_normalized, self.has_camera
        if poses is None or K is None:
            raise ValueError("a scene without cameras where cameras are needed")
        return poses, K, torch.ones(len(poses), dtype=torch.bool, device=poses.device) if present is None else present

    @classmethod
    def joined(cls, scenes: Sequence[SceneGeometry]) -> SceneGeometry:
        """The frames of several scenes of one size, one after the other; what one of them doesn't say is left out."""
        said = zip(*(vars(scene).values() for scene in scenes), strict=True)
        joined = [None if any(value is None for value in values) else torch.cat(values) for values in said]
        return cls(**dict(zip(vars(scenes[0]), joined, strict=True)))

    def to(self, device: torch.device | str) -> SceneGeometry:
        """The same on another device."""
        return SceneGeometry(
            **{name: None if value is None else value.to(device) for name, value in vars(self).items()}
        )


class GeometryEncoder(nn.Module, ABC):
    """Turns the frames of scenes, and what came with them, into their geometry.

    Attributes:
        width: D, channels of its tokens; 0 if it gives none.
        requires_cameras: the data must bring a camera for each frame.
        requires_frames: the data must bring the frames themselves.
        requires_depth: the data must bring depth.
        predicts_cameras: it finds cameras itself, so that the data needs none.
        predicts_depth: it may find depth along with them, in their unit.
        files: that its weights were read from; none if they come from elsewhere.
    """

    width: int = 0
    requires_cameras: bool = False
    requires_frames: bool = False
    requires_depth: bool = False
    predicts_cameras: bool = False
    predicts_depth: bool = False
    files: tuple[Path, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Everything but its weights that makes it say what it says of frames; JSON. For `CachedGeometry`.

        Raises:
            InputError: it says more than what frames and weights say, or takes no time.
        """
        raise InputError(f"{type(self).__name__} has nothing that a cache would save: leave --model.geometry_cache out")

    def enable_camera_head(self) -> None:
        """Gets ready to find cameras: what only they need is loaded. For those that `predicts_cameras`.

        Raises:
            InputError: it can't; naming the remedy.
        """

    def enable_depth_head(self) -> None:
        """Finds depth as well wherever it finds cameras, from now on. For those that `predicts_depth`.

        Raises:
            InputError: it can't; naming the remedy.
        """

    @abstractmethod
    def forward(
        self,
        frames: Sequence[Float[Tensor, "_S 3 _H _W"]],
        given: Sequence[SceneGeometry | None],
        *,
        tokens: bool = True,
        cameras: bool = True,
    ) -> list[SceneGeometry]:
        """The geometry of each scene, which may differ in their number of frames and in size.

        Args:
            frames: RGB in 0..1 of each scene, in the order of the video.
            given: what came with each scene's data.
            tokens: whether 3D tokens are wanted.
            cameras: whether cameras are wanted.

        Raises:
            InputError: frames of a size, or data of a kind, that this encoder can't use; naming the remedy.
        """
