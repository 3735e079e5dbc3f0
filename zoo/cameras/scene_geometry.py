"""The geometry of a scene (3D tokens, cameras, depth, points), in one form whatever its source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras.poses import rigid_matrix
from zoo.movable import Movable

TOKENS = ("patches", "camera_tokens")  # the 3D tokens of a `SceneGeometry`; a cache rounds them, and nothing else


class SceneGeometry(Movable):
    """The geometry of one scene of S frames; fields that the source does not provide are None.

    Args:
        patches: 3D tokens on the patch grid of each frame.
        camera_tokens: One more token per frame, which summarizes its camera.
        world_to_camera: One pose per frame, OpenCV axes, float32 or better; in meters where the source is metric.
        K_normalized: Intrinsics per frame, see `zoo.cameras.normalize_intrinsics`.
        has_camera: The frames with a valid camera; the others hold an identity. None is all of them.
        depth: Along the camera's z axis, in the unit of the poses; 0 where unknown.
        points: The 3D point of each pixel, in the world of the poses and their unit.
        confidence: Of `points`, or of `depth` where there are no points; in the source's own scale.
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
        points: Float[Tensor, "S H W 3"] | None = None,
        confidence: Float[Tensor, "S H W"] | None = None,
    ) -> None:
        self.patches, self.camera_tokens = patches, camera_tokens
        self.world_to_camera, self.K_normalized, self.has_camera = world_to_camera, K_normalized, has_camera
        self.depth, self.points, self.confidence = depth, points, confidence

    def present(self) -> dict[str, Tensor]:
        """The fields that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __getitem__(self, frames: slice | list[int]) -> SceneGeometry:
        """The geometry of some frames."""
        return SceneGeometry(**{name: value[frames] for name, value in self.present().items()})

    def repeated(self, times: int) -> SceneGeometry:
        """The geometry with each frame several times in a row."""
        return SceneGeometry(**{name: value.repeat_interleave(times, 0) for name, value in self.present().items()})

    @property
    def has_cameras(self) -> bool:
        """Whether there are poses and intrinsics; `has_camera` marks the frames whose camera is valid."""
        return self.world_to_camera is not None and self.K_normalized is not None

    def without_invalid_cameras(self) -> SceneGeometry:
        """This geometry, without cameras if no frame has a valid one; reads numbers, so call it on the host."""
        if self.has_camera is None or self.has_camera.any():
            return self
        cameras = ("world_to_camera", "K_normalized", "has_camera")
        return SceneGeometry(**{name: value for name, value in self.present().items() if name not in cameras})

    def cameras(self) -> tuple[Float[Tensor, "S 4 4"], Float[Tensor, "S 3 3"], Bool[Tensor, " S"]]:
        """Poses, intrinsics, and a mask of the frames with a valid camera.

        Raises:
            ValueError: The scene has no cameras.
        """
        poses, K, valid = self.world_to_camera, self.K_normalized, self.has_camera
        if poses is None or K is None:
            raise ValueError("a scene without cameras where cameras are needed")
        return poses, K, torch.ones(len(poses), dtype=torch.bool, device=poses.device) if valid is None else valid

    @classmethod
    def joined(cls, scenes: Sequence[SceneGeometry]) -> SceneGeometry:
        """Concatenate the frames of scenes of one size; a field that one of them lacks is None."""
        shared = set.intersection(*(set(scene.present()) for scene in scenes))
        return cls(**{name: torch.cat([getattr(scene, name) for scene in scenes]) for name in shared})

    def with_tokens_of(self, other: SceneGeometry, scale: float = 1.0) -> SceneGeometry:
        """This geometry with the scaled 3D tokens of another."""
        tokens = {name: value * scale for name, value in other.present().items() if name in TOKENS}
        return SceneGeometry(**{**self.present(), **tokens})

    def scaled(self, factor: Float[Tensor, ""] | float) -> SceneGeometry:
        """This geometry in another unit of length; 3D tokens are unchanged."""
        changed = {name: value * factor for name, value in self.present().items() if name in ("depth", "points")}
        if self.world_to_camera is not None:
            rotation, translation = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
            changed["world_to_camera"] = rigid_matrix(rotation, translation * factor)
        return SceneGeometry(**{**self.present(), **changed})
