"""Rigid poses as 4 x 4 matrices: inverse, five distances, path length, and maps to and from SO(3).

Poses are world-to-camera, as defined in `zoo.cameras`. The distances depend only on V_a V_b^-1, so they are invariant
to a change of world V -> V G.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import check_choice

PoseMeasure = Literal["rotation", "center", "euclidean", "sum", "log"]

ROTATION_TOLERANCE = 1e-2  # bound on max |R^T R - I|; recorded poses reach 4e-4, broken ones far more


def invert_se3(M: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Invert rigid transforms in closed form: (R, t) -> (R^T, -R^T t).

    Example:
        >>> import torch
        >>> pose = torch.eye(4)
        >>> pose[0, 3] = 2.0
        >>> invert_se3(pose)[0, 3].item()
        -2.0
    """
    rotation, translation = M[..., :3, :3], M[..., :3, 3:]
    # products and sums instead of a matrix product, which autocast would round to half precision
    return rigid_matrix(rotation.mT, -(rotation * translation).sum(-2))


def rigid_matrix(R: Float[Tensor, "*batch 3 3"], t: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4 4"]:
    """Build the 4 x 4 matrix of a rotation and a translation."""
    M = t.new_zeros(*t.shape[:-1], 4, 4)
    M[..., :3, :3], M[..., :3, 3], M[..., 3, 3] = R, t, torch.ones_like(t[..., 0])
    return M


def pose_distance(
    world_to_camera_a: Float[Tensor, "*#batch 4 4"], world_to_camera_b: Float[Tensor, "*#batch 4 4"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Compute the angle and the distance between two poses, with broadcasting.

    Returns:
        The angle of the relative rotation in radians, 0 to pi, and the distance of the camera centers in the unit of
        the poses. The angle is computed by atan2, because acos of the trace loses half of the digits near 0 and pi.

    Example:
        >>> import torch
        >>> a, b = torch.eye(4), torch.eye(4)
        >>> b[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # 90 degrees about z
        >>> b[0, 3] = 2.0
        >>> [round(x.item(), 4) for x in pose_distance(a, b)]
        [1.5708, 2.0]
    """
    # products and sums instead of a matrix product, which autocast would round to half precision
    relative = (world_to_camera_a[..., :3, None, :3] * world_to_camera_b[..., None, :3, :3]).sum(-1)
    cosine, sine_axis = rotation_parts(relative)
    center_a, center_b = invert_se3(world_to_camera_a)[..., :3, 3], invert_se3(world_to_camera_b)[..., :3, 3]
    return torch.atan2(sine_axis.norm(dim=-1), cosine), (center_a - center_b).norm(dim=-1)


@torch.no_grad()
def pose_distances(
    world_to_camera_a: Float[Tensor, "*#batch 4 4"],
    world_to_camera_b: Float[Tensor, "*#batch 4 4"],
    measure: PoseMeasure = "euclidean",
    translation_weight: int | float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Compute a distance between poses in float64, with broadcasting. Exactly 0 for equal poses, not differentiable.

    With the angle w of the relative rotation (radians), the center distance t, and the weight lambda:

    - `rotation`: w
    - `center`: lambda t
    - `euclidean`: sqrt(w^2 + lambda^2 t^2)
    - `sum`: w + lambda t
    - `log`: the Frobenius norm of log(V_a V_b^-1), sqrt(2 |omega|^2 + lambda^2 |u|^2), with the screw motion
      (omega, u) between the poses

    Args:
        world_to_camera_a: Rigid poses.
        world_to_camera_b: Rigid poses.
        measure: One of the measures above.
        translation_weight: Lambda, in radians per unit of length (per meter for metric poses).

    Raises:
        ValueError: The measure is unknown.

    Example:
        >>> import torch
        >>> a, b = torch.eye(4), torch.eye(4)
        >>> b[0, 3] = 3.0
        >>> pose_distances(a, b, "euclidean", translation_weight=0.5).item()
        1.5
    """
    check_choice("measure", measure, PoseMeasure)
    a, b = world_to_camera_a.double(), world_to_camera_b.double()
    if measure == "log":
        omega, u = se3_log(a @ invert_se3(b)).split(3, -1)
        distance = (2 * omega.square().sum(-1) + translation_weight**2 * u.square().sum(-1)).sqrt()
    else:
        angle, centers = pose_distance(a, b)
        centers = translation_weight * centers
        if measure == "euclidean":
            distance = torch.hypot(angle, centers)
        else:
            distance = {"rotation": angle, "center": centers, "sum": angle + centers}[measure]
    # R R^T is the identity only up to rounding, but equal poses must give the original attention bit for bit
    return distance.masked_fill((a == b).all(-1).all(-1), 0.0)


def path_length(
    world_to_camera: Float[Tensor, "N 4 4"], measure: PoseMeasure = "euclidean", translation_weight: int | float = 1.0
) -> Float[Tensor, " N"]:
    """Compute the length of the path from the first pose to each pose, see `pose_distances`."""
    steps = pose_distances(world_to_camera[1:], world_to_camera[:-1], measure, translation_weight)
    return torch.cat((steps.new_zeros(1), steps.cumsum(0)))[: len(world_to_camera)]


def so3_log(R: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Compute the rotation vector omega with R = exp([omega]x) and |omega| <= pi, in float64.

    The axis is computed from R - R^T for angles up to pi/2 and from R + R^T beyond, so it is accurate at both ends.
    """
    R = R.double()
    cosine, vector = rotation_parts(R)
    angle = torch.atan2(vector.norm(dim=-1), cosine)[..., None]
    near = vector / torch.sinc(angle / torch.pi)  # sinc(x / pi) = sin(x) / x, 1 at 0

    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    outer = (R + R.mT) / 2 - cosine[..., None, None] * eye  # (1 - cos(angle)) * axis axis^T
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    axis = outer.gather(-1, largest[..., None, None].expand(*largest.shape, 3, 1))[..., 0]
    axis = axis / axis.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(R.dtype).tiny)
    sign = torch.where((axis * vector).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return torch.where(cosine[..., None] > 0, near, sign * angle * axis)


def so3_exp(omega: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Compute the rotation exp([omega]x) about omega by |omega| radians, in float64. It is the identity for zeros.

    Example:
        >>> import torch
        >>> so3_exp(torch.tensor([0.0, 0.0, 0.1]))[0].round(decimals=3).tolist()
        [0.995, -0.1, 0.0]
    """
    omega = omega.double()
    angle = omega.norm(dim=-1)[..., None, None]
    x, y, z = omega.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    sine = torch.sinc(angle / torch.pi)  # sin(angle) / angle, 1 at 0
    versine = torch.sinc(angle / (2 * torch.pi)).square() / 2  # (1 - cos(angle)) / angle^2
    return torch.eye(3, dtype=omega.dtype, device=omega.device) + sine * cross + versine * (cross @ cross)


def se3_log(M: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 6"]:
    """Compute the twist (omega, u) with M = exp([[[omega]x, u], [0, 0]]) and |omega| <= pi, in float64."""
    M = M.double()
    omega, t = so3_log(M[..., :3, :3]), M[..., :3, 3]
    square = omega.square().sum(-1, keepdim=True)
    half = square.sqrt() / 2
    # (1 - x cot x) / (4 x^2) with x = |omega| / 2. Its closed form cancels for small x, so a series replaces it there.
    series = 1 / 12 + square / 720 + square.square() / 30240
    closed = (1 - half * half.cos() / half.sin()) / square
    cross = torch.linalg.cross(omega, t)
    u = t - cross / 2 + torch.where(half < 0.01, series, closed) * torch.linalg.cross(omega, cross)
    return torch.cat((omega, u), -1)


def rotation_power(R: Float[Tensor, "*#batch 3 3"], exponent: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch 3 3"]:
    """Compute R^a = exp(a log R) in float64: the rotation about the same axis by a times the angle, with broadcasting.

    R^0 is the identity bit for bit. The derivative with respect to a is exact everywhere, and does not vanish at 0. A
    rotation by pi has two logarithms, of which one is taken.

    Example:
        >>> import torch
        >>> quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # 90 degrees about z
        >>> rotation_power(quarter, torch.tensor(2.0))[:2, :2].round(decimals=6).tolist()
        [[-1.0, -0.0], [0.0, -1.0]]
    """
    return so3_exp(exponent.double()[..., None] * so3_log(R))


def rotation_parts(R: Float[Tensor, "*batch 3 3"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch 3"]]:
    """Return cos(angle) and sin(angle) * axis of rotations."""
    skew = R - R.mT
    sine_axis = torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1) / 2
    return (R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2, sine_axis


def quaternion_to_rotation(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Convert quaternions (x, y, z, w) of any length but 0 to rotations: R = I + 2 (w [v] + [v]^2) / |q|^2."""
    x, y, z, w = quaternion.unbind(-1)
    zero = torch.zeros_like(w)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    # [v]^2 = v v^T - |v|^2 I, written out because autocast would compute a matrix product in half precision
    vector = quaternion[..., :3]
    identity = torch.eye(3, dtype=quaternion.dtype, device=quaternion.device)
    outer = vector[..., :, None] * vector[..., None, :]
    squared = outer - vector.square().sum(-1)[..., None, None] * identity
    length = quaternion.square().sum(-1)[..., None, None]
    return identity + 2 * (w[..., None, None] * cross + squared) / length


def rotation_to_quaternion(R: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Convert rotations to unit quaternions (x, y, z, w) with w >= 0.

    The entries of R yield all products 4 q_i q_j. The row of the largest q_i is divided by that q_i (Shepperd 1978).
    """
    entry = {f"{i}{j}": R[..., i, j] for i in range(3) for j in range(3)}
    xx, yy, zz = entry["00"], entry["11"], entry["22"]
    xy, xz, yz = entry["10"] + entry["01"], entry["20"] + entry["02"], entry["21"] + entry["12"]
    wx, wy, wz = entry["21"] - entry["12"], entry["02"] - entry["20"], entry["10"] - entry["01"]
    rows = (
        (wx, wy, wz, 1 + xx + yy + zz),  # w first, so that it wins a tie
        (1 + xx - yy - zz, xy, xz, wx),
        (xy, 1 - xx + yy - zz, yz, wy),
        (xz, yz, 1 - xx - yy + zz, wz),
    )
    products = torch.stack([torch.stack(row, -1) for row in rows], -2)
    squares = torch.stack((rows[0][3], rows[1][0], rows[2][1], rows[3][2]), -1)
    largest, which = squares.max(-1, keepdim=True)
    row = products.gather(-2, which[..., None].expand(*which.shape, 4)).squeeze(-2)
    quaternion = row / (2 * largest.sqrt())
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def rotation_from_6d(numbers: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Convert six numbers to a rotation: Gram-Schmidt gives two columns, and their cross product the third.

    The map is continuous, unlike maps from quaternions or angles (Zhou et al. 2019, arXiv 1812.07035, section 4).

    Example:
        >>> import torch
        >>> rotation_from_6d(torch.tensor([2.0, 0.0, 0.0, 5.0, 3.0, 0.0])).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    first = F.normalize(numbers[..., :3], dim=-1)
    second = numbers[..., 3:]
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack((first, second, torch.linalg.cross(first, second)), -1)


def nearest_rotation(
    R: Float[Tensor, "*batch 3 3"], source: str = "poses", item: str = "pose"
) -> Float[Tensor, "*batch 3 3"]:
    """Project nearly orthonormal matrices to SO(3), in the Frobenius norm, by SVD.

    Args:
        R: Matrices with max |R^T R - I| <= 1e-2.
        source: Name of the matrices' source for the error message, such as a file name.
        item: Name of one matrix for the error message.

    Raises:
        ValueError: A matrix is not finite, too far from orthonormal, or a reflection.
    """
    matrices = R.double()
    flat = matrices.reshape(-1, 3, 3)
    finite = flat.isfinite().flatten(1).all(1)
    gram = flat.mT @ flat
    deviation = (gram - torch.eye(3, dtype=gram.dtype, device=gram.device)).abs().amax((-1, -2))
    bad = ~finite | (deviation > ROTATION_TOLERANCE) | (torch.linalg.det(flat) < 0)
    if bad.any():
        first = int(bad.nonzero()[0])
        if not finite[first]:
            reason = "contains NaN or infinite values"
        elif deviation[first] > ROTATION_TOLERANCE:
            off = float(deviation[first])
            reason = f"is off orthonormal by {off:.2g}, more than {ROTATION_TOLERANCE:g}: is it a rotation?"
        else:
            reason = "is a reflection (its determinant is -1): check the axes"
        raise ValueError(f"{source}: {item} {first}: the rotation {reason}")
    U, _, Vh = torch.linalg.svd(matrices)
    return (U @ Vh).to(R.dtype)


# ---- Intrinsics in units of the image size, and in pixels -----------------------------------------------------------


def normalize_intrinsics(
    K_px: Float[Tensor, "*batch 3 3"], width: int | float, height: int | float
) -> Float[Tensor, "*batch 3 3"]:
    """Normalize corner-origin pixel intrinsics by the image size, as in PRoPE (arXiv 2507.10496). Skew is dropped.

    The identity is then a centered camera with a field of view of 53 degrees in both directions.

    Raises:
        ValueError: The width or height is not positive.

    Example:
        >>> import torch
        >>> K_px = torch.tensor([[320.0, 0.0, 320.0], [0.0, 480.0, 240.0], [0.0, 0.0, 1.0]])
        >>> normalize_intrinsics(K_px, width=640, height=480).tolist()
        [[0.5, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if not (width > 0 and height > 0):
        raise ValueError(f"the size of an image must be positive, got {width} x {height}")
    normalized = torch.zeros_like(K_px)
    for axis, size in enumerate((width, height)):
        normalized[..., axis, axis] = K_px[..., axis, axis] / size
        normalized[..., axis, 2] = K_px[..., axis, 2] / size - 0.5
    normalized[..., 2, 2] = 1.0
    return normalized


def intrinsics_power(
    K_normalized: Float[Tensor, "*#batch 3 3"], exponent: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch 3 3"]:
    """Compute the matrix power K^a in float64, with broadcasting: K^a K^b = K^(a + b), K^0 = I and K^1 = K.

    The focal lengths are f^a, the principal points c (f^a - 1) / (f - 1), which is a c for f = 1.
    """
    K, exponent = K_normalized.double(), exponent.double()[..., None]
    focal, center = K.diagonal(dim1=-2, dim2=-1)[..., :2], K[..., :2, 2]
    log = focal.log()
    is_one = log == 0
    ratio = torch.expm1(exponent * log) / torch.expm1(log.masked_fill(is_one, 1.0))  # expm1 does not cancel near 1
    power = torch.diag_embed(F.pad(focal**exponent, (0, 1), value=1.0))
    power[..., :2, 2] = center * torch.where(is_one, exponent, ratio)
    return power


def intrinsics_in_pixels(
    K_normalized: Float[Tensor, "*batch 3 3"], width: int | float | Tensor, height: int | float | Tensor
) -> Float[Tensor, "*batch 3 3"]:
    """Convert normalized intrinsics to corner-origin pixel intrinsics, the inverse of `normalize_intrinsics`.

    Args:
        K_normalized: Intrinsics normalized by the image size.
        width: Width of the images in pixels or another unit, such as tokens. One value, or one per camera.
        height: See `width`.
    """
    K_px = torch.zeros_like(K_normalized)
    for axis, size in enumerate((width, height)):
        K_px[..., axis, axis] = K_normalized[..., axis, axis] * size
        K_px[..., axis, 2] = (K_normalized[..., axis, 2] + 0.5) * size
    K_px[..., 2, 2] = 1.0
    return K_px
