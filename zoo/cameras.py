"""Cameras and every pose convention of the project, stated once.

Poses are world-to-camera, x_camera = V x_world, with OpenCV axes (x right, y down, z forward), in meters
where the source is metric. Intrinsics are normalized by the image size, without skew: fx/W, fy/H, cx/W - 1/2,
cy/H - 1/2.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.poses import invert_se3, pose_distance

SCALE_FLOOR = 1e-2  # the shortest unit of `Cameras.scaled`: a camera that stands still has no length of its own

Reference = Literal["first", "middle", "medoid", "given"]
Scale = Literal["none", "mean", "max", "rms", "median_depth"]


class Cameras:
    """The cameras of a batch, and which token sees through which of them.

    A plain class on purpose: Lightning's half-precision plugins cast the tensors of dataclasses and mappings,
    and poses in bfloat16 would be useless. Never less than float32; float64 stays float64.

    Args:
        world_to_camera: rigid poses (see the module), one a camera.
        K_normalized: intrinsics normalized by the image size, see `normalize_intrinsics`.
        index: the camera that each token belongs to, -1 for none (text, padding, a view without a camera).
        reference: a reference view a sample that something else chose, such as a model by its tokens.
        median_depth: of what a sample's views see, in the unit of the poses.

    Raises:
        ValueError: shapes that don't agree, numbers that aren't finite, an index beyond the cameras.
    """

    def __init__(
        self,
        world_to_camera: Float[Tensor, "B C 4 4"],
        K_normalized: Float[Tensor, "B C 3 3"],
        index: Int[Tensor, "B L"] | None = None,
        *,
        reference: Int[Tensor, " B"] | None = None,
        median_depth: Float[Tensor, " B"] | None = None,
    ) -> None:
        shape, K_shape = tuple(world_to_camera.shape), tuple(K_normalized.shape)
        if len(shape) != 4 or shape[2:] != (4, 4) or K_shape != (*shape[:2], 3, 3):
            raise ValueError(f"cameras need shapes (B, C, 4, 4) and (B, C, 3, 3), got {shape} and {K_shape}")
        if not (world_to_camera.isfinite().all() and K_normalized.isfinite().all()):
            raise ValueError("cameras hold NaN or infinite numbers: leave out the views without a pose")
        dtype = _wide(torch.promote_types(world_to_camera.dtype, K_normalized.dtype))
        self.world_to_camera = world_to_camera.to(dtype)
        self.K_normalized = K_normalized.to(dtype)
        self.reference = reference
        self.median_depth = None if median_depth is None else median_depth.to(dtype)
        self.index: Int[Tensor, "B L"] | None = None
        self.patch_centers: Float[Tensor, "B L 2"] | None = None
        self.points: Float[Tensor, "B L 3"] | None = None
        if index is not None:
            self.index = self.with_index(index).index

    def __len__(self) -> int:
        """B, the size of the batch."""
        return len(self.world_to_camera)

    def __getitem__(self, samples: Any) -> Cameras:
        """The cameras of some samples: `samples` is a slice, a mask, or a tensor or list of integers."""
        return self._each(lambda tensor: tensor[samples])

    def span(self, first: Int[Tensor, " B"] | int, count: int) -> Cameras:
        """So many cameras of each sample from its first on, without what is known of tokens.

        Where a sample has fewer, its last one stands in for those that it lacks.
        """
        sample, view = self.spanned(first, count)
        return self._replaced(
            world_to_camera=self.world_to_camera[sample, view],
            K_normalized=self.K_normalized[sample, view],
            reference=None if self.reference is None else (self.reference - view[:, 0]).clamp(0, count - 1),
            **dict.fromkeys(("index", "patch_centers", "points")),
        )

    def spanned(self, first: Int[Tensor, " B"] | int, count: int) -> tuple[Int[Tensor, "B 1"], Int[Tensor, "B count"]]:
        """The indices (sample, view) of what `span` takes."""
        batch, num_cameras = self.world_to_camera.shape[:2]
        device = self.world_to_camera.device
        start = torch.as_tensor(first, device=device).expand(batch)
        view = start[:, None] + torch.arange(count, device=device)
        return torch.arange(batch, device=device)[:, None], view.clamp(max=num_cameras - 1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cameras:
        """The same cameras elsewhere, or in another precision; a half precision is taken as float32."""
        dtype = None if dtype is None else _wide(dtype)
        return self._each(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def with_index(self, index: Int[Tensor, "B L"]) -> Cameras:
        """The same cameras for a sequence of tokens, see the class."""
        batch, num_cameras = self.world_to_camera.shape[:2]
        if index.ndim != 2 or len(index) != batch:
            raise ValueError(f"the camera index needs shape (B={batch}, L), got {tuple(index.shape)}")
        if index.numel() and not -1 <= int(index.min()) <= int(index.max()) < num_cameras:
            raise ValueError(
                f"the camera index goes from {int(index.min())} to {int(index.max())}, "
                f"but there are {num_cameras} cameras a sample (-1 is for none)"
            )
        return self._replaced(index=index.to(self.world_to_camera.device))

    def with_tokens(
        self, patch_centers: Float[Tensor, "B L 2"] | None = None, points: Float[Tensor, "B L 3"] | None = None
    ) -> Cameras:
        """The same cameras with more about each token, for the encodings that go by it.

        Args:
            places: the center of a token in its view, see `zoo.positions.view_patch_centers`.
            points: what it shows, in the world and the unit of the poses; NaN where that isn't known.
        """
        given = {"patch_centers": patch_centers, "points": points}
        like = self.world_to_camera
        return self._replaced(**{name: x.to(like) for name, x in given.items() if x is not None})

    def with_poses(self, world_to_camera: Float[Tensor, "B C 4 4"]) -> Cameras:
        """The same cameras with other poses, which are not checked."""
        return self._replaced(world_to_camera=world_to_camera)

    def with_reference(self, reference: Int[Tensor, " B"]) -> Cameras:
        """The same cameras with the reference view of each sample, see the class."""
        return self._replaced(reference=reference.to(self.world_to_camera.device))

    def with_median_depth(self, median_depth: Float[Tensor, " B"]) -> Cameras:
        """The same cameras with the median depth of what each sample's views see, in the unit of the poses."""
        return self._replaced(median_depth=median_depth.to(self.world_to_camera))

    def used_mask(self) -> Bool[Tensor, "B C"]:
        """Which cameras some token sees through; all of them where there is no index."""
        batch, num_cameras = self.world_to_camera.shape[:2]
        if self.index is None:
            return torch.ones(batch, num_cameras, dtype=torch.bool, device=self.world_to_camera.device)
        seen = torch.zeros(batch, num_cameras + 1, dtype=torch.bool, device=self.index.device)
        return seen.scatter(1, self.index + 1, True)[:, 1:]

    def reference_view(self, choice: Reference | Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The camera of each sample whose frame is to be the world, among those that are seen.

        Args:
            choice: the `first` or `middle` one; the `medoid`, which is nearest to the others in angle (radians)
                plus distance (in units of the mean distance); `given`, which came with the cameras; or indices.

        Raises:
            ValueError: an unknown choice, or `given` where nothing was.
        """
        if isinstance(choice, Tensor):
            return choice
        if choice == "given":
            if self.reference is None:
                raise ValueError("the reference view is to be 'given', but these cameras come without one")
            return self.reference
        seen = self.used_mask()
        if choice == "first":
            return seen.int().argmax(1)
        if choice == "middle":
            return (seen.cumsum(1) > seen.sum(1, keepdim=True) // 2).int().argmax(1)
        if choice != "medoid":
            raise ValueError(f"unknown reference view {choice!r}: it is one of {', '.join(get_args(Reference))}")
        poses = self.world_to_camera.double()
        angle, distance = pose_distance(poses[:, :, None], poses[:, None])
        both = seen[:, :, None] & seen[:, None]
        mean = (distance * both).sum((1, 2)) / both.sum((1, 2)).clamp(min=1)
        apart = (angle + distance / mean.clamp(min=SCALE_FLOOR)[:, None, None]) * both
        cost = apart.sum(2).masked_fill(~seen, torch.inf)
        # two views are equally far from each other: rounding must not choose between them
        return (cost <= cost.amin(1, keepdim=True) * (1 + 1e-6) + 1e-9).int().argmax(1)

    def canonical(self, reference: Reference | Int[Tensor, " B"] = "first") -> Cameras:
        """The same cameras in the frame of a reference view: V V_ref^-1, composed in float64, then cast back.

        The reference's pose becomes exactly the identity. A common change of world, V -> V G, leaves canonical
        cameras as they are, so text, which sits in the world's frame, is safe too. See `reference_view`.
        """
        view = self.reference_view(reference).to(self.world_to_camera.device)
        sample = torch.arange(len(view), device=view.device)
        poses = self.world_to_camera.double()
        relative = poses @ invert_se3(poses[sample, view])[:, None]
        relative[sample, view] = torch.eye(4, dtype=relative.dtype, device=relative.device)
        moved = {"world_to_camera": relative.to(self.world_to_camera.dtype)}
        if self.points is not None:
            points = self.points.double() @ poses[sample, view, :3, :3].mT + poses[sample, view, None, :3, 3]
            moved["points"] = points.to(self.points.dtype)
        return self._replaced(**moved)

    def scaled(self, scale: Scale) -> Cameras:
        """The same cameras with translations in another unit; `none` leaves them as they are, metric.

        The unit is the `mean`, `max` or `rms` distance of the seen cameras' centers from their mean, or the
        `median_depth` that came with the cameras; at least `SCALE_FLOOR`, for a camera that stands still.

        Raises:
            ValueError: an unknown scale, or `median_depth` where the cameras have none.
        """
        if scale == "none":
            return self
        if scale == "median_depth":
            if self.median_depth is None:
                raise ValueError("the scale is to be the median depth, but these cameras come without one")
            unit = self.median_depth.double()
        else:
            seen = self.used_mask()[..., None]
            count = seen.sum(1).clamp(min=1)
            centers = invert_se3(self.world_to_camera.double())[..., :3, 3] * seen
            distance = ((centers - (centers.sum(1) / count)[:, None]) * seen).norm(dim=-1)
            if scale == "mean":
                unit = distance.sum(1) / count[:, 0]
            elif scale == "rms":
                unit = (distance.square().sum(1) / count[:, 0]).sqrt()
            elif scale == "max":
                unit = distance.amax(1)
            else:
                raise ValueError(f"unknown scale {scale!r}: it is one of {', '.join(get_args(Scale))}")
        unit = unit.clamp(min=SCALE_FLOOR)[:, None, None]
        poses = self.world_to_camera.to(torch.float64, copy=True)
        poses[..., :3, 3] /= unit
        moved = {"world_to_camera": poses.to(self.world_to_camera.dtype)}
        if self.points is not None:
            moved["points"] = (self.points.double() / unit).to(self.points.dtype)
        return self._replaced(**moved)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cameras:
        return self._replaced(**{name: change(tensor) for name, tensor in vars(self).items() if tensor is not None})

    def _replaced(self, **tensors: Tensor | None) -> Cameras:
        """A copy that isn't checked again: on a GPU each check would wait for all work before it."""
        other = copy(self)
        vars(other).update(tensors)
        return other


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def normalize_intrinsics(
    K_px: Float[Tensor, "*batch 3 3"], width: int | float, height: int | float
) -> Float[Tensor, "*batch 3 3"]:
    """Intrinsics in pixels -> normalized by the image size; any skew is dropped.

    The identity is then the camera that sees 53 degrees both ways around a centerd principal point.
    As in PRoPE, arXiv 2507.10496.

    Raises:
        ValueError: a width or height that isn't positive.
    """
    if not (width > 0 and height > 0):
        raise ValueError(f"the size of an image must be positive, got {width} x {height}")
    normalized = torch.zeros_like(K_px)
    normalized[..., 0, 0] = K_px[..., 0, 0] / width
    normalized[..., 1, 1] = K_px[..., 1, 1] / height
    normalized[..., 0, 2] = K_px[..., 0, 2] / width - 0.5
    normalized[..., 1, 2] = K_px[..., 1, 2] / height - 0.5
    normalized[..., 2, 2] = 1.0
    return normalized


def intrinsics_in_pixels(
    K_normalized: Float[Tensor, "*batch 3 3"], width: int | float, height: int | float
) -> Float[Tensor, "*batch 3 3"]:
    """The inverse of `normalize_intrinsics`: in pixels of an image of this size, from its corner."""
    K_px = torch.zeros_like(K_normalized)
    K_px[..., 0, 0] = K_normalized[..., 0, 0] * width
    K_px[..., 1, 1] = K_normalized[..., 1, 1] * height
    K_px[..., 0, 2] = (K_normalized[..., 0, 2] + 0.5) * width
    K_px[..., 1, 2] = (K_normalized[..., 1, 2] + 0.5) * height
    K_px[..., 2, 2] = 1.0
    return K_px
