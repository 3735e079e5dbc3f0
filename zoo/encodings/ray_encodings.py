"""Ray encodings: GTA with one frame per token along its ray, and rays as an additive embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.cameras import Cameras, ReferenceView
from zoo.cameras.poses import invert_se3, rigid_matrix
from zoo.cameras.rays import patch_directions, plucker, ray_directions
from zoo.encodings.base import Grid, HasCamera, ViewMixer
from zoo.encodings.gta import GTA
from zoo.encodings.symmetries import Symmetries, ViewSymmetries
from zoo.errors import check_choice

Rays = Literal["plucker", "directions"]


class RayEncoding(GTA):
    """GTA with one frame per token, V = [R_ray 0; 0 1] V_camera: at the camera center, z along the token's ray.

    The relative ray encoding of UCPE (arXiv 2512.07237): x is the camera's y axis (down) cross z, and y is z cross x,
    so the frame of the central ray is the camera's own. Attention between two tokens depends on the rigid transform
    from ray to ray, and therefore also on their places in the views and on the intrinsics. UCPE's absolute orientation
    map (pitch and roll) and its adapter beside the attention are not included, and lenses other than pinholes are not
    supported. Arguments as `GTA`.
    """

    uses_intrinsics = True

    @property
    def symmetries(self) -> Symmetries:
        gta = super().symmetries
        # identity cameras still have different rays
        return replace(gta, identity_stock=gta.identity_stock and self.pose_component == "translation")

    def canonical(self, cameras: Cameras) -> Cameras:
        """Return one canonical camera per token, see `ray_cameras`."""
        return ray_cameras(super().canonical(cameras))


def ray_cameras(cameras: Cameras) -> Cameras:
    """Replace the camera of each token by one at the same center that looks along the token's ray.

    Raises:
        ValueError: Cameras without an index or without patch centers.
    """
    index, patch_centers = cameras.required("index"), cameras.required("patch_centers")
    sample = torch.arange(len(cameras), device=index.device)[:, None]
    camera = index.clamp(min=0)
    K = cameras.K_normalized[sample, camera]
    # a token without a camera may read invalid intrinsics
    K = torch.where((index >= 0)[..., None, None], K, torch.eye(3, dtype=K.dtype, device=K.device))
    z = ray_directions(K, patch_centers)
    z = z / z.norm(dim=-1, keepdim=True)
    x = torch.stack((z[..., 2], torch.zeros_like(z[..., 0]), -z[..., 0]), -1)  # the camera's y axis cross z
    x = x / x.norm(dim=-1, keepdim=True)
    camera_to_ray = rigid_matrix(torch.stack((x, torch.linalg.cross(z, x), z), -2), torch.zeros_like(z))
    intrinsics = torch.eye(3, dtype=z.dtype, device=z.device).expand(*z.shape[:2], 3, 3)
    token = torch.arange(z.shape[1], device=z.device).where(index >= 0, -1)
    runs = None if cameras.token_runs is None else cameras.token_runs.with_one_camera_per_token()
    return Cameras.trusted(camera_to_ray @ cameras.world_to_camera[sample, camera], intrinsics, token, runs)


class RayEmbedding(ViewMixer):
    """x + MLP(ray), the baseline of all encodings: an embedding of each token's ray, added to its 2D token.

    The MLP has one hidden layer; its last projection starts at zero, so the untrained model is unchanged.

    Args:
        width: Of the tokens and the hidden layer.
        rays: `plucker` for Plücker coordinates in the frame of the `reference` view; `directions` for
            K^-1 [u, v, 1], without the pose.
        reference: See `Cameras.reference_view`; null keeps the world of the data.
    """

    def __init__(self, width: int, rays: Rays = "plucker", reference: ReferenceView | None = "first") -> None:
        super().__init__()
        check_choice("rays", rays, Rays)
        self.rays, self.reference = rays, reference
        first, last = nn.Linear(6 if rays == "plucker" else 3, width), nn.Linear(width, width)
        self.embed = nn.Sequential(first, nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @property
    def symmetries(self) -> ViewSymmetries:
        no_pose = self.rays == "directions"
        return ViewSymmetries(no_pose, canonical=no_pose or self.reference is not None, scale=no_pose, intrinsics=False)

    def forward(
        self, tokens: Float[Tensor, "N D"], cameras: Cameras, grid: Grid, has_camera: HasCamera = None
    ) -> Float[Tensor, "N D"]:
        """Add the embedding of the rays, see `ViewMixer.forward`."""
        steps, rows, columns = (int(side) for side in grid)
        if has_camera is not None:  # the reference is one of the views with a camera
            views = torch.arange(steps, device=has_camera.device)
            cameras = cameras.with_token_runs(views.where(has_camera, -1), None)
        rays = patch_directions(cameras.K_normalized.flatten(0, 1).double(), rows, columns)
        if self.rays == "plucker":
            poses = cameras.to(dtype=torch.float64).canonical(self.reference).world_to_camera
            camera_to_world = invert_se3(poses.flatten(0, 1))[:, None, None]
            directions = (camera_to_world[..., :3, :3] @ rays[..., None])[..., 0]
            rays = plucker(directions, camera_to_world[..., :3, 3])
        embedding = self.embed(rays.to(next(self.parameters()).dtype))
        if has_camera is not None:
            embedding = embedding * has_camera.flatten()[:, None, None, None]
        return tokens + embedding.flatten(0, 2).to(tokens.dtype)
