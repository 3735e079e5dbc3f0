"""World points to pixels: the way back from `zoo.cameras.rays.unproject_depth`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from zoo.precision import full_precision, to_float32


def project_points(
    points: Float[Tensor, "*#batch N 3"],
    world_to_camera: Float[Tensor, "*#batch 4 4"],
    K_px: Float[Tensor, "*#batch 3 3"],
) -> tuple[Float[Tensor, "*batch N 2"], Float[Tensor, "*batch N 3"]]:
    """Projects world points to pixels, with broadcasting; float32 or better.

    Returns:
        Pixel coordinates, and the points in the camera's frame. Coordinates are valid in front of the camera (z > 0).
    """
    points, world_to_camera, K_px = to_float32(points), to_float32(world_to_camera), to_float32(K_px)
    with full_precision(points.device):
        in_camera = points @ world_to_camera[..., :3, :3].mT + world_to_camera[..., None, :3, 3]
        on_plane = in_camera / in_camera[..., 2:]
        pixels = on_plane @ K_px.mT
    return pixels[..., :2], in_camera
