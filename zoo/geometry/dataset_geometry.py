"""The geometry that came with the data: its cameras and, where there is some, its depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder, SceneGeometry
from zoo.geometry.vggt_encoder import check_size
from zoo.poses import invert_se3
from zoo.precision import full_precision, to_float32
from zoo.rays import patch_depth, patch_directions, plucker

RAY, POINT = 6, 4  # channels


class DatasetGeometry(GeometryEncoder):
    """Rays and points for 3D tokens; nothing is learned. The world is the first frame with a camera.

    A patch's channels are the ray through its center as Plücker coordinates, a unit direction d and the moment
    o x d about the origin (o is the camera's center; arXiv 2402.14817 uses them so), and with depth the 3D point that
    it shows and 1, or four zeros where it has no depth. That point lies on the ray, at the median of the patch's
    depth. The directions have unit length, so that lengths can still be told after a normalization of the token.

    A camera token is the same of the optical axis: its ray and, with depth, the camera's center and 1.

    Frames without a camera have tokens of zeros, and an identity for a camera.

    Args:
        depth: make use of the data's depth as well.
        unit: of lengths in the tokens. "scene" is the mean distance of the scene's points from the first camera, as
            VGGT has it: such tokens know the scene's shape and not its size, as VGGT's would if it never erred.
            Cameras stay in the data's unit.
        patch_size: in pixels; the vision tower's, so that both branches have one grid.
    """

    requires_cameras = True
    requires_frames = True  # for their size

    def __init__(self, depth: bool = True, unit: Literal["meters", "scene"] = "meters", patch_size: int = 14) -> None:
        super().__init__()
        if unit == "scene" and not depth:
            raise InputError("--model.geometry.unit scene goes by the scene's points: set --model.geometry.depth true")
        self.requires_depth, self.unit = depth, unit
        self.patch_size = patch_size
        self.width = RAY + POINT if depth else RAY

    def forward(
        self,
        frames: Sequence[Float[Tensor, "_S 3 _H _W"]],
        given: Sequence[SceneGeometry | None],
        *,
        tokens: bool = True,
        cameras: bool = True,
    ) -> list[SceneGeometry]:
        return [self._encode(i, *scene, tokens) for i, scene in enumerate(zip(frames, given, strict=True))]

    def _encode(self, number: int, frames: Tensor, given: SceneGeometry | None, tokens: bool) -> SceneGeometry:
        height, width = frames.shape[-2:]
        if tokens:
            check_size(height, width, self.patch_size)
        if given is None or given.world_to_camera is None or given.K_normalized is None:
            raise _without_cameras(number)
        if len(given.world_to_camera) != len(frames):
            raise ValueError(f"scene {number}: {len(given.world_to_camera)} cameras for {len(frames)} frames")
        if given.depth is not None and given.depth.shape != (len(frames), height, width):
            raise ValueError(f"scene {number}: depth {tuple(given.depth.shape)} isn't that of {tuple(frames.shape)}")
        present = given.has_camera
        if present is not None and not present.any():
            raise _without_cameras(number)
        with full_precision(frames.device):
            poses = first_as_world(given.world_to_camera, present)
            say = {
                "world_to_camera": poses.to(to_float32(given.world_to_camera).dtype),
                "K_normalized": given.K_normalized,
            }
            if tokens:
                say |= self._tokens(number, poses, given, (height, width), to_float32(frames).dtype)
        return SceneGeometry(**say, has_camera=present, depth=given.depth)

    def _tokens(
        self, number: int, poses: Tensor, given: SceneGeometry, size_hw: tuple[int, int], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        assert given.K_normalized is not None
        rows, columns = (side // self.patch_size for side in size_hw)
        camera_to_world = invert_se3(poses)
        center = camera_to_world[:, :3, 3]
        through = patch_directions(given.K_normalized.double(), rows, columns)
        through = through.flatten(1, 2) @ camera_to_world[:, :3, :3].mT
        through = through.unflatten(1, (rows, columns))
        depth = through.new_zeros(through.shape[:3])
        if self.requires_depth and given.depth is not None:
            depth = patch_depth(given.depth, self.patch_size).to(depth.dtype)
        known = (depth > 0)[..., None]
        if given.has_camera is not None:
            known = known & given.has_camera[:, None, None, None]
        if self.unit == "scene":
            length = mean_distance(center[:, None, None] + depth[..., None] * through, known, number)
            center, depth = center / length, depth / length
        patches = [plucker(through, center[:, None, None])]
        camera = [plucker(camera_to_world[:, :3, 2], center)]
        if self.requires_depth:
            point = center[:, None, None] + depth[..., None] * through
            patches.append(torch.cat((point, torch.ones_like(point[..., :1])), -1) * known)
            camera.append(torch.cat((center, torch.ones_like(center[..., :1])), -1))
        say = {"patches": torch.cat(patches, -1), "camera_tokens": torch.cat(camera, -1)}
        if given.has_camera is not None:
            say = {name: value * given.has_camera.view(-1, *[1] * (value.ndim - 1)) for name, value in say.items()}
        return {name: value.to(dtype) for name, value in say.items()}


def _without_cameras(number: int) -> InputError:
    return InputError(
        f"scene {number} of the batch comes without cameras: put <scene>.cameras.json beside its video, or let VGGT "
        "find them, --model.geometry PretrainedVGGT"
    )


def mean_distance(points: Float[Tensor, "S h w 3"], known: Bool[Tensor, "S h w 1"], number: int) -> Float[Tensor, ""]:
    """Of the known points of scene `number` from the origin.

    Raises:
        InputError: nothing is known.
    """
    if not known.any():
        raise InputError(
            f"scene {number} of the batch comes without depth, which --model.geometry.unit scene goes by: put "
            "<scene>.depth beside its video, or take meters"
        )
    return points.norm(dim=-1)[known[..., 0]].mean()


def first_as_world(
    world_to_camera: Float[Tensor, "S 4 4"], present: Bool[Tensor, " S"] | None
) -> Float[Tensor, "S 4 4"]:
    """V V_ref^-1 in float64, with the first present camera for a reference; identities for what isn't present."""
    first = 0 if present is None else int(present.int().argmax())
    poses = world_to_camera.double()
    relative = poses @ invert_se3(poses[first])
    identity = torch.eye(4, dtype=poses.dtype, device=poses.device)
    relative[first] = identity
    return relative if present is None else torch.where(present[:, None, None], relative, identity)
