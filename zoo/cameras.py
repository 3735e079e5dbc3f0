"""Cameras and every pose convention of the project, stated once.

Poses are world-to-camera, x_camera = V x_world, with OpenCV axes (x right, y down, z forward), in metres
where the source is metric. Intrinsics are normalised by the image size, without skew: fx/W, fy/H, cx/W - 1/2,
cy/H - 1/2.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROTATION_TOLERANCE = 1e-2  # of max |R^T R - I|: real poses are off by some 4e-4, broken ones by far more


class Cameras:
    """The cameras of a batch, and which token sees through which of them.

    A plain class on purpose: Lightning's half-precision plugins cast the tensors of dataclasses and mappings,
    and poses in bfloat16 would be useless. Never less than float32; float64 stays float64.

    Args:
        world_to_camera: rigid poses (see the module), one a camera.
        K_normalised: intrinsics normalised by the image size, see `normalise_intrinsics`.
        index: the camera that each token belongs to, -1 for none (text, padding, a view without a camera).

    Raises:
        ValueError: shapes that don't agree, numbers that aren't finite, an index beyond the cameras.
    """

    def __init__(
        self,
        world_to_camera: Float[Tensor, "B C 4 4"],
        K_normalised: Float[Tensor, "B C 3 3"],
        index: Int[Tensor, "B L"] | None = None,
    ) -> None:
        shape, K_shape = tuple(world_to_camera.shape), tuple(K_normalised.shape)
        if len(shape) != 4 or shape[2:] != (4, 4) or K_shape != (*shape[:2], 3, 3):
            raise ValueError(f"cameras need shapes (B, C, 4, 4) and (B, C, 3, 3), got {shape} and {K_shape}")
        if not (world_to_camera.isfinite().all() and K_normalised.isfinite().all()):
            raise ValueError("cameras hold NaN or infinite numbers: leave out the views without a pose")
        dtype = _wide(torch.promote_types(world_to_camera.dtype, K_normalised.dtype))
        self.world_to_camera = world_to_camera.to(dtype)
        self.K_normalised = K_normalised.to(dtype)
        self.index: Int[Tensor, "B L"] | None = None
        if index is not None:
            self.index = self.with_index(index).index

    def __len__(self) -> int:
        """B, the size of the batch."""
        return len(self.world_to_camera)

    def __getitem__(self, samples: Any) -> Cameras:
        """The cameras of some samples: `samples` is a slice, a mask, or a tensor or list of integers."""
        index = None if self.index is None else self.index[samples]
        return self._replaced(self.world_to_camera[samples], self.K_normalised[samples], index)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cameras:
        """The same cameras elsewhere, or in another precision; a half precision is taken as float32."""
        dtype = None if dtype is None else _wide(dtype)
        index = None if self.index is None else self.index.to(device)
        return self._replaced(self.world_to_camera.to(device, dtype), self.K_normalised.to(device, dtype), index)

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
        return self._replaced(self.world_to_camera, self.K_normalised, index.to(self.world_to_camera.device))

    def canonical(self, reference: str = "first") -> Cameras:
        """The same cameras in the frame of a reference view: V V_ref^-1, composed in float64, then cast back.

        `first` is camera 0 of each sample, whose pose becomes exactly the identity. A common change of world,
        V -> V G, leaves canonical cameras as they are, so text, which sits in the world's frame, is safe too.

        Raises:
            ValueError: an unknown reference.
        """
        if reference != "first":
            raise ValueError(f"unknown reference view {reference!r}: 'first' is the only one")
        poses = self.world_to_camera.double()
        relative = poses @ invert_se3(poses[:, :1])
        relative[:, :1] = torch.eye(4, dtype=relative.dtype, device=relative.device)
        return self._replaced(relative.to(self.world_to_camera.dtype), self.K_normalised, self.index)

    def _replaced(self, world_to_camera: Tensor, K_normalised: Tensor, index: Tensor | None) -> Cameras:
        """A copy that isn't checked again: on a GPU each check would wait for all work before it."""
        other = copy(self)
        other.world_to_camera, other.K_normalised, other.index = world_to_camera, K_normalised, index
        return other


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def normalise_intrinsics(
    K_px: Float[Tensor, "*batch 3 3"], width: int | float, height: int | float
) -> Float[Tensor, "*batch 3 3"]:
    """Intrinsics in pixels -> normalised by the image size; any skew is dropped.

    The identity is then the camera that sees 53 degrees both ways around a centred principal point.
    As in PRoPE, arXiv 2507.10496.

    Raises:
        ValueError: a width or height that isn't positive.
    """
    if not (width > 0 and height > 0):
        raise ValueError(f"the size of an image must be positive, got {width} x {height}")
    normalised = torch.zeros_like(K_px)
    normalised[..., 0, 0] = K_px[..., 0, 0] / width
    normalised[..., 1, 1] = K_px[..., 1, 1] / height
    normalised[..., 0, 2] = K_px[..., 0, 2] / width - 0.5
    normalised[..., 1, 2] = K_px[..., 1, 2] / height - 0.5
    normalised[..., 2, 2] = 1.0
    return normalised


def invert_se3(M: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """The inverse of rigid transforms in closed form: (R, t) -> (R^T, -R^T t)."""
    rotation_T = M[..., :3, :3].mT
    inverse = torch.zeros_like(M)
    inverse[..., :3, :3] = rotation_T
    inverse[..., :3, 3:] = -(rotation_T @ M[..., :3, 3:])
    inverse[..., 3, 3] = 1.0
    return inverse


def pose_distance(
    world_to_camera_a: Float[Tensor, "*#batch 4 4"], world_to_camera_b: Float[Tensor, "*#batch 4 4"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """How far poses are apart, with broadcasting.

    Returns:
        The angle of the relative rotation in radians, 0 to pi, by atan2: the usual acos of the trace loses
        half of the digits near 0 and pi. And the distance of the camera centres, in the poses' unit.
    """
    relative = world_to_camera_a[..., :3, :3] @ world_to_camera_b[..., :3, :3].mT
    skew = relative - relative.mT
    sine = torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1).norm(dim=-1) / 2
    cosine = (relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    centre_a, centre_b = invert_se3(world_to_camera_a)[..., :3, 3], invert_se3(world_to_camera_b)[..., :3, 3]
    return torch.atan2(sine, cosine), (centre_a - centre_b).norm(dim=-1)


def nearest_rotation(R: Float[Tensor, "*batch 3 3"], what: str = "poses") -> Float[Tensor, "*batch 3 3"]:
    """The rotations nearest to nearly orthonormal matrices (in the Frobenius norm, by SVD).

    Args:
        R: matrices with max |R^T R - I| <= 1e-2.
        what: what they belong to, for the error: the name of a file, for example.

    Raises:
        ValueError: naming `what` and the first matrix that is not finite, further off, or a reflection.
    """
    wide = R.double()
    flat = wide.reshape(-1, 3, 3)
    finite = flat.isfinite().flatten(1).all(1)
    gram = flat.mT @ flat
    deviation = (gram - torch.eye(3, dtype=gram.dtype, device=gram.device)).abs().amax((-1, -2))
    bad = ~finite | (deviation > ROTATION_TOLERANCE) | (torch.linalg.det(flat) < 0)
    if bad.any():
        first = int(bad.nonzero()[0])
        if not finite[first]:
            reason = "holds NaN or infinite numbers"
        elif deviation[first] > ROTATION_TOLERANCE:
            off = float(deviation[first])
            reason = f"is off orthonormal by {off:.2g}, more than {ROTATION_TOLERANCE:g}: is it a rotation?"
        else:
            reason = "is a reflection (its determinant is -1): check the axes"
        raise ValueError(f"{what}: rotation {first} {reason}")
    U, _, Vh = torch.linalg.svd(wide)
    return (U @ Vh).to(R.dtype)
