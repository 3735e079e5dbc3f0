"""The geometry of a scene (3D tokens, cameras, depth, points) in one format for all sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from zoo.cameras.poses import invert_se3, rigid_matrix, rotation_parts
from zoo.values import Movable

# the 3D tokens of a `SceneGeometry`, which are the only fields that a cache rounds
TOKENS = ("patches", "camera_tokens", "latents")
OF_SCENE = ("latents",)  # fields without an entry per frame


class SceneGeometry(Movable):
    """The geometry of one scene of S frames. Fields that the source does not provide are None.

    Args:
        patches: 3D tokens on the patch grid of each frame.
        camera_tokens: One additional token per frame, which summarizes its camera.
        latents: 3D tokens of the whole scene, which belong to no frame.
        world_to_camera: One pose per frame, OpenCV axes, float32 or better. In meters where the source is metric.
        K_normalized: Intrinsics per frame, see `zoo.cameras.normalize_intrinsics`.
        has_camera: Frames with a valid camera. The others hold an identity. None is all of them.
        depth: Depth along the camera's z axis, in the unit of the poses. 0 where unknown.
        points: The 3D point of each pixel, in the world and the unit of the poses.
        confidence: Confidence of `points`, or of `depth` if there are no points, in the source's own scale.
    """

    def __init__(
        self,
        *,
        patches: Float[Tensor, "S h w D"] | None = None,
        camera_tokens: Float[Tensor, "S D"] | None = None,
        latents: Float[Tensor, "Q D"] | None = None,
        world_to_camera: Float[Tensor, "S 4 4"] | None = None,
        K_normalized: Float[Tensor, "S 3 3"] | None = None,
        has_camera: Bool[Tensor, " S"] | None = None,
        depth: Float[Tensor, "S H W"] | None = None,
        points: Float[Tensor, "S H W 3"] | None = None,
        confidence: Float[Tensor, "S H W"] | None = None,
    ) -> None:
        self.patches, self.camera_tokens, self.latents = patches, camera_tokens, latents
        self.world_to_camera, self.K_normalized, self.has_camera = world_to_camera, K_normalized, has_camera
        self.depth, self.points, self.confidence = depth, points, confidence

    def present(self) -> dict[str, Tensor]:
        """Return the fields that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __getitem__(self, frames: slice | list[int]) -> SceneGeometry:
        """Return the geometry of some frames."""
        return self._of_frames(lambda value: value[frames])

    def repeated(self, times: int) -> SceneGeometry:
        """Return the geometry with each frame repeated."""
        return self._of_frames(lambda value: value.repeat_interleave(times, 0))

    def _of_frames(self, change: Callable[[Tensor], Tensor]) -> SceneGeometry:
        fields = self.present().items()
        return SceneGeometry(**{name: value if name in OF_SCENE else change(value) for name, value in fields})

    @property
    def has_cameras(self) -> bool:
        """Whether there are poses and intrinsics. `has_camera` marks the frames with a valid camera."""
        return self.world_to_camera is not None and self.K_normalized is not None

    def without_invalid_cameras(self) -> SceneGeometry:
        """Return this geometry, without cameras if no frame has a valid one.

        It reads values, so call it on the host.
        """
        if self.has_camera is None or self.has_camera.any():
            return self
        cameras = ("world_to_camera", "K_normalized", "has_camera")
        return SceneGeometry(**{name: value for name, value in self.present().items() if name not in cameras})

    def cameras(self) -> tuple[Float[Tensor, "S 4 4"], Float[Tensor, "S 3 3"], Bool[Tensor, " S"]]:
        """Return poses, intrinsics, and a mask of the frames with a valid camera.

        Raises:
            ValueError: The scene has no cameras.
        """
        poses, K, valid = self.world_to_camera, self.K_normalized, self.has_camera
        if poses is None or K is None:
            raise ValueError("a scene without cameras where cameras are needed")
        return poses, K, torch.ones(len(poses), dtype=torch.bool, device=poses.device) if valid is None else valid

    @classmethod
    def joined(cls, scenes: Sequence[SceneGeometry]) -> SceneGeometry:
        """Concatenate the frames of scenes of the same size. A field that one of them lacks is None.

        Several scenes have no `latents` in common.
        """
        if len(scenes) == 1:
            return scenes[0]
        shared = set.intersection(*(set(scene.present()) for scene in scenes)) - {*OF_SCENE}
        return cls(**{name: torch.cat([getattr(scene, name) for scene in scenes]) for name in shared})

    def with_tokens_of(self, other: SceneGeometry, scale: float = 1.0) -> SceneGeometry:
        """Return this geometry with the scaled 3D tokens of another."""
        tokens = {name: value * scale for name, value in other.present().items() if name in TOKENS}
        return SceneGeometry(**{**self.present(), **tokens})

    def scaled(self, factor: Float[Tensor, ""] | float) -> SceneGeometry:
        """Return this geometry in another unit of length. 3D tokens are unchanged."""
        changed = {name: value * factor for name, value in self.present().items() if name in ("depth", "points")}
        if self.world_to_camera is not None:
            rotation, translation = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
            changed["world_to_camera"] = rigid_matrix(rotation, translation * factor)
        return SceneGeometry(**{**self.present(), **changed})


# ---- A window of images, with its cameras and depth ------------------------------------------------------------------

PER_PIXEL = ("depth", "points", "confidence")


class Window(NamedTuple):
    """A part of images, in pixels.

    Attributes:
        height: Height of the whole images.
        width: Width of the whole images.
        top: First row of the part.
        left: First column of the part.
        rows: Number of rows of the part.
        columns: Number of columns of the part.
    """

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int

    @property
    def place(self) -> tuple[slice, slice]:
        """The rows and columns of the part."""
        return slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns)

    @property
    def inverse(self) -> Window:
        """The whole images as a window of the part, which they exceed."""
        return Window(self.rows, self.columns, -self.top, -self.left, self.height, self.width)

    def crop(self, geometry: SceneGeometry, size: tuple[int, int] | None = None) -> SceneGeometry:
        """Return the geometry of the part, with its intrinsics and pixel values. Poses are unchanged.

        Values of pixels outside of the whole images are zero, an unknown depth.

        Args:
            geometry: Geometry of the whole images, in any size.
            size: Height and width of the result's pixel values, taken from the nearest pixels. None is the part's own
                size.
        """
        fields: dict[str, Any] = geometry.present()
        for name in PER_PIXEL:
            if name in fields:
                fields[name] = self._nearest(fields[name], size or (self.rows, self.columns))
        if geometry.K_normalized is not None:
            K = fields["K_normalized"] = geometry.K_normalized.clone()
            sides = ((self.width, self.columns, self.left), (self.height, self.rows, self.top))
            for axis, (side, kept, start) in enumerate(sides):
                K[:, axis, axis] *= side / kept
                K[:, axis, 2] = ((K[:, axis, 2] + 0.5) * side - start) / kept - 0.5
        return SceneGeometry(**fields)

    def _nearest(
        self, pixels: Shaped[Tensor, "S H W *values"], size: tuple[int, int]
    ) -> Shaped[Tensor, "S h w *values"]:
        """Return the values of the part in this size, each from the nearest pixel."""
        sides = ((self.height, self.rows, self.top), (self.width, self.columns, self.left))
        for axis, (count, (side, kept, start)) in enumerate(zip(size, sides, strict=True), 1):
            centers = start + (torch.arange(count, device=pixels.device) + 0.5) * kept / count
            known = (centers >= 0) & (centers < side)
            nearest = (centers.clamp(0, side - 0.5) * (pixels.shape[axis] / side)).long()
            pixels = pixels.index_select(axis, nearest) * known.view(-1, *[1] * (pixels.ndim - axis - 1))
        return pixels


# ---- Cameras of temporal patches: one for the frames that are merged into one token ----------------------------------

MergedCamera = Literal["first", "last", "mean"]
FRAMES = 2  # frames in a temporal patch
HALF_TURN = 1e-12  # minimum squared cosine of half the angle, because opposite rotations have no unique midpoint


class PatchCameras(NamedTuple):
    """One camera per temporal patch of a scene.

    Attributes:
        world_to_camera: Poses.
        K_normalized: Intrinsics, see `zoo.cameras.normalize_intrinsics`.
        has_camera: Temporal patches with a valid camera.
        is_complete: Whether the host knows that all cameras are valid. False if it would have to wait to find out.
    """

    world_to_camera: Float[Tensor, "t 4 4"]
    K_normalized: Float[Tensor, "t 3 3"]
    has_camera: Bool[Tensor, " t"]
    is_complete: bool = False

    def map(self, change: Callable[[Tensor], Tensor]) -> PatchCameras:
        """Change each tensor, for example move it to a device."""
        return PatchCameras(change(self[0]), change(self[1]), change(self[2]), self.is_complete)


def merge_cameras(scene: SceneGeometry, merged_camera: MergedCamera = "first") -> PatchCameras:
    """Merge the cameras of every two frames into one per temporal patch, without waiting for a GPU.

    Args:
        scene: A scene with cameras for an even number of frames.
        merged_camera: The camera of a temporal patch: its `first` or `last` frame's, or the `mean` (mean center and
            intrinsics, and the midpoint of the rotations). If one frame has no camera, the other frame's is used.

    Returns:
        The merged cameras. Invalid ones are replaced by the first valid camera, because a reference view may be chosen
        among them.

    Raises:
        ValueError: The scene has no cameras.
    """
    # not unflatten, because text alone has no frames
    poses, K, present = (each.reshape(len(each) // FRAMES, FRAMES, *each.shape[1:]) for each in scene.cameras())
    wanted = FRAMES - 1 if merged_camera == "last" else 0
    alone = torch.where(present[:, wanted], wanted, FRAMES - 1 - wanted)
    row = torch.arange(len(poses), device=poses.device)
    patch_poses, patch_K, has_camera = poses[row, alone], K[row, alone], present.any(1)
    if merged_camera == "mean":
        both = present.all(1)[:, None, None]
        patch_poses = torch.where(both, _midpoint(poses), patch_poses)
        patch_K = torch.where(both, K.mean(1), patch_K)
    if len(poses):
        stand_in = has_camera.int().argmax(0, keepdim=True)  # index 0 where no camera is valid
        known = has_camera[:, None, None]
        patch_poses = torch.where(known, patch_poses, patch_poses[stand_in])
        patch_K = torch.where(known, patch_K, patch_K[stand_in])
    return PatchCameras(patch_poses, patch_K, has_camera)


def stack_cameras(
    rows: Sequence[Sequence[PatchCameras]],
) -> tuple[Float[Tensor, "B C 4 4"], Float[Tensor, "B C 3 3"], Bool[Tensor, "B C"]]:
    """Concatenate the cameras of each row's scenes. Shorter rows are filled with identities.

    Args:
        rows: The cameras of the scenes of each row, at least one in total.

    Returns:
        Poses and intrinsics in the widest dtype of all, and a mask of valid cameras.
    """
    some = next(scene for row in rows for scene in row)
    empty = some.map(lambda tensor: tensor[:0])
    joined = [[torch.cat(parts) for parts in zip(*(each[:3] for each in (empty, *row)), strict=True)] for row in rows]
    dtype = reduce(torch.promote_types, (poses.dtype for poses, _, _ in joined))
    longest = max(len(poses) for poses, _, _ in joined)
    like = some.world_to_camera
    filled = [torch.eye(n, dtype=dtype, device=like.device).repeat(len(rows), longest, 1, 1) for n in (4, 3)]
    filled.append(torch.zeros(len(rows), longest, dtype=torch.bool, device=like.device))
    for i, row in enumerate(joined):
        for target, values in zip(filled, row, strict=True):
            target[i, : len(values)] = values
    return filled[0], filled[1], filled[2]


def _midpoint(poses: Float[Tensor, "N pair 4 4"]) -> Float[Tensor, "N 4 4"]:
    """Compute the midpoint of the slerp between two rotations, in closed form, and the mean center."""
    camera_to_world = invert_se3(poses.double())
    first, second = camera_to_world[:, 0, :3, :3], camera_to_world[:, 1, :3, :3]
    cosine, sine_axis = rotation_parts(first.mT @ second)
    half_cosine = ((1 + cosine) / 2).clamp(min=HALF_TURN).sqrt()[:, None]
    half = sine_axis / (2 * half_cosine)  # sin(angle / 2) times the axis
    zero = torch.zeros_like(half[:, 0])
    x, y, z = half.unbind(-1)
    skew = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=skew.dtype, device=skew.device)
    rotation = first @ (identity + skew + skew @ skew / (1 + half_cosine[..., None]))  # Rodrigues' formula
    return invert_se3(rigid_matrix(rotation, camera_to_world[..., :3, 3].mean(1))).to(poses.dtype)
