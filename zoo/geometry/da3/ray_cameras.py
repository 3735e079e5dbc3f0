"""Cameras from maps of rays, in closed form but for the weights against outliers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras.poses import rigid_matrix
from zoo.precision import full_precision

STEPS = 40  # of the reweighting; each divides the influence of outliers by about 3
SMALLEST_RESIDUAL = 1e-9  # relative to the median length of the directions


@torch.no_grad()
def rays_to_cameras(
    rays: Float[Tensor, "B S h w 6"], rays_conf: Float[Tensor, "B S h w"], image_size_hw: tuple[int, int]
) -> tuple[Float[Tensor, "B S 4 4"], Float[Tensor, "B S 3 3"]]:
    """World-to-camera poses and intrinsics in pixels, with their principal point, from predicted rays.

    A direction R^T K^-1 p is linear in the pixel p. The matrix R^T K^-1 that minimizes the confidence-weighted sum of
    distances, which outliers hardly move, is a rotation times an upper triangular matrix. The center is the
    confidence-weighted mean. Not differentiable.

    Args:
        rays: Direction (not unit length) and camera center of each ray, in the world.
        rays_conf: Their confidence.
        image_size_hw: Of the images in pixels, which the rays cover evenly.
    """
    rows, columns = rays.shape[2:4]
    height, width = image_size_hw
    with full_precision(rays.device):
        direction, center = rays.double().flatten(2, 3).split(3, -1)
        confidence = rays_conf.double().flatten(2, 3)[..., None]
        y = (torch.arange(rows).to(direction) + 0.5) * height / rows
        x = (torch.arange(columns).to(direction) + 0.5) * width / columns
        pixel = torch.cartesian_prod(y, x).flip(-1)
        pixel = torch.cat((pixel, torch.ones_like(pixel[:, :1])), -1)

        # 1. The linear map from pixels to directions, by iteratively reweighted least squares.
        smallest = SMALLEST_RESIDUAL * direction.norm(dim=-1, keepdim=True).median(2, keepdim=True).values
        weight = confidence
        for _ in range(STEPS):
            weighted = (weight * pixel).mT
            linear = torch.linalg.solve(weighted @ pixel, weighted @ direction).mT
            residual = (direction - pixel @ linear.mT).norm(dim=-1, keepdim=True)
            weight = confidence / residual.clamp(min=smallest)

        # 2. Rotation and intrinsics: linear = R^T K^-1, with a positive diagonal.
        rotation, upper = torch.linalg.qr(linear)
        sign = upper.diagonal(dim1=-2, dim2=-1).sign()
        rotation, K_inverse = rotation * sign[..., None, :], sign[..., None] * upper
        K_px = torch.linalg.inv(K_inverse)
        K_px = K_px / K_px[..., 2:, 2:]

        # 3. The center, and the pose.
        center = (confidence * center).sum(2) / confidence.sum(2)
        translation = -(rotation.mT @ center[..., None])[..., 0]
    return rigid_matrix(rotation.mT, translation).to(rays.dtype), K_px.to(rays.dtype)
