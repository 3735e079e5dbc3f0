"""Cameras and every pose convention of the project, stated once.

Poses are world-to-camera, V x_world = x_camera, with OpenCV axes (x right, y down, z forward), in metres where
the source is metric. Intrinsics are normalised by the image size: fx/W, fy/H, cx/W - 1/2, cy/H - 1/2, no skew.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROTATION_TOLERANCE = 1e-2  # of max |R^T R - I|: real poses are off by some 4e-4, broken ones by far more


class Cameras:
    """The cameras of a batch, and which token sees through which of them.

    A plain class on purpose: Lightning's half-precision plugins cast the tensors of dataclasses and mappings, and
    poses in bfloat16 would be useless. Never less than float32; float64 stays float64.

    Args:
        world_to_camera: rigid poses (see the module), one a camera.
        K_normalised: intrinsics normalised by the image size, see `normalise_intrinsics`.
        index: the camera that each token belongs to, -1 for none (text, padding, a view without a camera).

    Raises:
        ValueError: shapes or devices that don't agree, poses that aren't finite, a camera that doesn't exist.
    """

    def __init__(
        self,
        world_to_camera: Float[Tensor, "B C 4 4"],
        K_normalised: Float[Tensor, "B C 3 3"],
        index: Int[Tensor, "B L"] | None = None,
    ) -> None:
        batch = tuple(world_to_camera.shape[:-2])
        if len(batch) != 2 or world_to_camera.shape[-2:] != (4, 4) or K_normalised.shape != (*batch, 3, 3):
            shapes = tuple(world_to_camera.shape), tuple(K_normalised.shape)
            raise ValueError(f"cameras need shapes (B,C,4,4) and (B,C,3,3), got {shapes[0]} and {shapes[1]}")
        if index is not None:
            if index.ndim != 2 or index.shape[0] != batch[0]:
                raise ValueError(f"the camera index needs shape (B={batch[0]},L), got {tuple(index.shape)}")
            if index.numel() and not -1 <= int(index.min()) <= int(index.max()) < batch[1]:
                raise ValueError(f"the camera index must lie in -1 to {batch[1] - 1}")
        dtype = _wide(torch.promote_types(world_to_camera.dtype, K_normalised.dtype))
        self.world_to_camera = world_to_camera.to(dtype)
        self.K_normalised = K_normalised.to(dtype)
        self.index = index
        if not (self.world_to_camera.isfinite().all() and self.K_normalised.isfinite().all()):
            raise ValueError("cameras hold NaN or infinite numbers: leave out the views without a pose")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cameras:
        """The same cameras elsewhere, or in another precision; a half precision is taken as float32."""
        dtype = None if dtype is None else _wide(dtype)
        index = None if self.index is None else self.index.to(device)
        return Cameras(self.world_to_camera.to(device, dtype), self.K_normalised.to(device, dtype), index)

    def with_index(self, index: Int[Tensor, "B L"]) -> Cameras:
        """The same cameras for a sequence of tokens."""
        return Cameras(self.world_to_camera, self.K_normalised, index)

    def canonical(self, reference: str = "first") -> Cameras:
        """The same cameras in the frame of a reference view: V V_ref^-1, composed in float64, then cast back.

        `first` is camera 0 of each sample, whose pose becomes exactly the identity. A common change of world,
        V -> V G, leaves canonical cameras as they are, so text tokens too see the same world.

        Raises:
            ValueError: an unknown reference.
        """
        if reference != "first":
            raise ValueError(f"unknown reference view {reference!r}: only 'first' is known")
        if not self.world_to_camera.shape[1]:
            return self
        poses = self.world_to_camera.double()
        relative = poses @ invert_se3(poses[:, :1])
        relative[:, 0] = torch.eye(4, dtype=torch.float64, device=poses.device)
        return Cameras(relative.to(self.world_to_camera.dtype), self.K_normalised, self.index)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def normalise_intrinsics(K_px: Float[Tensor, "*batch 3 3"], width: float, height: float) -> Float[Tensor, "*batch 3 3"]:
    """Intrinsics in pixels -> normalised by the image size; the skew is dropped.

    The identity is then a camera with the principal point in the middle and a field of view of 53 degrees both ways.
    PRoPE, arXiv 2507.10496, section 3.2.

    Raises:
        ValueError: a width or height that isn't positive.
    """
    if not (width > 0 and height > 0):
        raise ValueError(f"the image size must be positive, got {width} x {height}")
    normalised = torch.zeros_like(K_px)
    normalised[..., 0, 0] = K_px[..., 0, 0] / width
    normalised[..., 1, 1] = K_px[..., 1, 1] / height
    normalised[..., 0, 2] = K_px[..., 0, 2] / width - 0.5
    normalised[..., 1, 2] = K_px[..., 1, 2] / height - 0.5
    normalised[..., 2, 2] = 1.0
    return normalised


def invert_se3(M: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """The inverse of rigid transforms, analytically: (R, t) -> (R^T, -R^T t)."""
    rotation_T = M[..., :3, :3].transpose(-1, -2)
    inverse = torch.zeros_like(M)
    inverse[..., :3, :3] = rotation_T
    inverse[..., :3, 3:] = -(rotation_T @ M[..., :3, 3:])
    inverse[..., 3, 3] = 1.0
    return inverse


def pose_distance(
    world_to_camera_a: Float[Tensor, "*#batch 4 4"], world_to_camera_b: Float[Tensor, "*#batch 4 4"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """How far two poses are apart, with broadcasting: the angle of the relative rotation in radians (0 to pi), and
    the distance of the camera centres in the poses' unit.

    The angle is an atan2 of sine and cosine: the usual acos of the trace loses half of the digits near 0 and pi.
    """
    rotation_a, rotation_b = world_to_camera_a[..., :3, :3], world_to_camera_b[..., :3, :3]
    relative = rotation_a @ rotation_b.transpose(-1, -2)
    skew = relative - relative.transpose(-1, -2)
    sine = torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1).norm(dim=-1) / 2
    cosine = (relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    centre_a = invert_se3(world_to_camera_a)[..., :3, 3]
    centre_b = invert_se3(world_to_camera_b)[..., :3, 3]
    return torch.atan2(sine, cosine), (centre_a - centre_b).norm(dim=-1)


def nearest_rotation(R: Float[Tensor, "*batch 3 3"], what: str = "rotation") -> Float[Tensor, "*batch 3 3"]:
    """Projects nearly orthonormal matrices to the nearest rotations (in the Frobenius norm, by SVD).

    Args:
        R: matrices with max |R^T R - I| <= 1e-2.
        what: what they are, for the error, such as the name of the file.

    Raises:
        ValueError: NaN or infinite numbers, matrices further off, reflections; names `what` and the first one.
    """
    wide = R.double()
    flat = wide.reshape(-1, 3, 3)
    gram = flat.transpose(-1, -2) @ flat
    deviation = (gram - torch.eye(3, dtype=gram.dtype, device=gram.device)).abs().amax((-1, -2))
    mirrored = torch.linalg.det(flat) < 0
    bad = ~flat.isfinite().all(-1).all(-1) | ~(deviation <= ROTATION_TOLERANCE) | mirrored
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        if not flat[first].isfinite().all():
            reason = "holds NaN or infinite numbers"
        elif deviation[first] > ROTATION_TOLERANCE:
            reason = f"is off orthonormal by {deviation[first].item():.2g} (at most {ROTATION_TOLERANCE:g})"
        else:
            reason = "is a reflection (determinant -1): check the axes' convention"
        raise ValueError(f"{what}: rotation {first} {reason}")
    U, _, Vh = torch.linalg.svd(wide)
    return (U @ Vh).to(R.dtype)
