"""The dataset's geometry as an encoder: its cameras and, where available, its depth."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras.poses import invert_se3
from zoo.cameras.rays import patch_depth, patch_directions, plucker
from zoo.errors import InputError, check_choice
from zoo.geometry.base import DatasetGeometries, Frames, GeometryEncoder, SceneGeometry, check_size
from zoo.precision import full_precision, to_float32

RAY, POINT = 6, 4  # channels
Unit = Literal["meters", "scene"]


class DatasetGeometry(GeometryEncoder):
    """Rays and points of the dataset as 3D tokens, without parameters. The first frame with a camera is the world.

    The channels of a patch are the ray through its center in Plücker coordinates: a unit direction d and the moment o x
    d about the origin, where o is the camera's center (as in Cameras as Rays, arXiv 2402.14817). With depth they also
    hold the 3D point on that ray at the patch's median depth and a 1, or four zeros if the patch has no depth. The
    directions have unit length, so lengths survive a normalization of the token.

    The camera token of a frame holds the same for the optical axis: its ray and, with depth, the camera's center and 1.
    Frames without a camera have zero tokens and an identity camera.

    Args:
        depth: Whether to use the dataset's depth.
        unit: Unit of lengths in the tokens. "scene" is the mean distance of the scene's points from the first camera,
            as in VGGT's training targets: such tokens show the shape of a scene but not its size. Cameras stay in the
            dataset's unit.

    Raises:
        InputError: The unit is "scene" without depth.

    Example:
        >>> import torch
        >>> poses, K = torch.eye(4).expand(2, 4, 4), torch.eye(3).expand(2, 3, 3)
        >>> given = SceneGeometry(world_to_camera=poses, K_normalized=K)
        >>> encoder = DatasetGeometry(depth=False)
        >>> scene = encoder([torch.zeros(2, 3, 28, 42)], [given])[0]
        >>> scene.patches.shape, encoder.is_metric  # 2 frames of 2 x 3 patches
        (torch.Size([2, 2, 3, 6]), True)
    """

    requires_cameras = True
    requires_frames = True  # only their size is used
    takes_vision_patches = True

    def __init__(self, depth: bool = True, unit: Unit = "meters") -> None:
        super().__init__()
        check_choice("unit", unit, Unit)
        if unit == "scene" and not depth:
            raise InputError("--model.geometry.unit scene needs the scene's points: set --model.geometry.depth true")
        self.requires_depth, self.is_metric = depth, unit == "meters"
        self.has_metric_tokens = self.is_metric
        self.width = RAY + POINT if depth else RAY

    def match_patches(self, patch_size: int) -> None:
        self.patch_size = patch_size

    def forward(
        self, frames: Frames, given: DatasetGeometries, *, tokens: bool = True, cameras: bool = True
    ) -> list[SceneGeometry]:
        """See `GeometryEncoder`. The result always contains the dataset's cameras."""
        return [self._encode(i, *scene, tokens) for i, scene in enumerate(zip(frames, given, strict=True))]

    def _encode(self, number: int, frames: Tensor, given: SceneGeometry | None, tokens: bool) -> SceneGeometry:
        height, width = frames.shape[-2:]
        if tokens:
            check_size(height, width, self.patch_size)
        if given is None or not given.has_cameras:
            raise InputError(
                f"scene {number} of the batch has no cameras: put <scene>.cameras.json beside its video, or choose a "
                "--model.geometry that predicts them"
            )
        poses, K, _ = given.cameras()
        if len(poses) != len(frames):
            raise ValueError(f"scene {number}: {len(poses)} cameras for {len(frames)} frames")
        with full_precision(frames.device):
            relative = first_as_world(poses, given.has_camera)
            found = {"world_to_camera": relative.to(to_float32(poses).dtype), "K_normalized": K}
            if tokens:
                found |= self._tokens(number, relative, given, (height, width), to_float32(frames).dtype)
        return SceneGeometry(**found, has_camera=given.has_camera, depth=given.depth)

    def _tokens(
        self, number: int, poses: Tensor, given: SceneGeometry, size_hw: tuple[int, int], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        _, K, valid = given.cameras()
        rows, columns = (side // self.patch_size for side in size_hw)
        # 1. Rays through the centers of the patches, in the world.
        camera_to_world = invert_se3(poses)
        center = camera_to_world[:, :3, 3]
        directions = patch_directions(K.double(), rows, columns).flatten(1, 2) @ camera_to_world[:, :3, :3].mT
        directions = directions.unflatten(1, (rows, columns))
        # 2. Depth per patch, and the unit of lengths.
        depth = directions.new_zeros(directions.shape[:3])
        if self.requires_depth and given.depth is not None:
            depth = patch_depth(given.depth, self.patch_size).to(depth.dtype)
        known = (depth > 0)[..., None] & valid[:, None, None, None]
        if not self.is_metric:
            if given.depth is None:
                raise InputError(
                    f"scene {number} of the batch has no depth, which --model.geometry.unit scene needs: put "
                    "<scene>.depth beside its video, or choose --model.geometry.unit meters"
                )
            length = mean_distance(center[:, None, None] + depth[..., None] * directions, known)
            center, depth = center / length, depth / length
        # 3. Channels: rays, then points.
        patches = [plucker(directions, center[:, None, None])]
        camera = [plucker(camera_to_world[:, :3, 2], center)]
        if self.requires_depth:
            point = center[:, None, None] + depth[..., None] * directions
            patches.append(torch.cat((point, torch.ones_like(point[..., :1])), -1) * known)
            camera.append(torch.cat((center, torch.ones_like(center[..., :1])), -1))
        tokens = {"patches": torch.cat(patches, -1), "camera_tokens": torch.cat(camera, -1)}
        return {name: (value * valid.view(-1, *[1] * (value.ndim - 1))).to(dtype) for name, value in tokens.items()}


def mean_distance(points: Float[Tensor, "S h w 3"], known: Bool[Tensor, "S h w 1"]) -> Float[Tensor, ""]:
    """Compute the mean distance of the known points from the origin. Scenes without any are rejected when read."""
    distance = points.norm(dim=-1) * known[..., 0]
    return distance.sum() / known.sum().clamp(min=1)


def first_as_world(
    world_to_camera: Float[Tensor, "S 4 4"], has_camera: Bool[Tensor, " S"] | None
) -> Float[Tensor, "S 4 4"]:
    """Return poses relative to the first valid camera, V V_ref^-1, in float64. Identities where there is no camera."""
    poses = world_to_camera.double()
    number = torch.arange(len(poses), device=poses.device)
    valid = torch.ones_like(number, dtype=torch.bool) if has_camera is None else has_camera
    first = valid.int().argmax(0, keepdim=True)
    relative = poses @ invert_se3(poses[first])
    identity = torch.eye(4, dtype=poses.dtype, device=poses.device)
    return torch.where((valid & (number != first))[:, None, None], relative, identity)
