"""Rays: a camera a token that looks along the token's own ray, and rays as an embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.encodings.gta import GTA
from zoo.encodings.reference import ReferenceView, to_reference_frame
from zoo.encodings.symmetries import Symmetries, ViewSymmetries
from zoo.encodings.view_mixer import ViewMixer, check_scenes
from zoo.errors import check_choice
from zoo.poses import invert_se3
from zoo.rays import patch_directions, plucker, ray_directions

Rays = Literal["plucker", "directions"]


class RayEncoding(GTA):
    """GTA with a frame a token: from the camera's center, z along the token's ray. Arguments as `GTA`.

    Relative ray encoding (UCPE, arXiv 2512.07237): x is the camera's y axis (down) cross z, y is z cross x, so
    that the frame of a ray through the middle is the camera's own. Two tokens see the rigid transform from ray to
    ray, which tells where in their views they are as well, with the intrinsics. Of UCPE it is the relative part
    alone: not its absolute orientation (pitch and roll as an added map), nor its adapter beside the attention;
    and other lenses than pinholes would need their rays in the place of K^-1 [u, v, 1].
    """

    uses_intrinsics = True

    @property
    def symmetries(self) -> Symmetries:
        kept = super().symmetries
        turned = self.pose_component != "translation"  # but for a ray through the middle
        return replace(kept, identity_stock=kept.identity_stock and not turned)

    def canonical(self, cameras: Cameras) -> Cameras:
        """One camera a token.

        Raises:
            ValueError: cameras that don't say where in their views the tokens are.
        """
        return ray_cameras(super().canonical(cameras))


def ray_cameras(cameras: Cameras) -> Cameras:
    """A camera for each token that has one: turned, about its center, to look along the token's ray.

    Raises:
        ValueError: cameras that don't say where in their views the tokens are.
    """
    if cameras.index is None or cameras.patch_centers is None:
        raise ValueError(
            "rays go by where in their view the tokens are: give view_patch_centers to Cameras.with_tokens"
        )
    sample = torch.arange(len(cameras), device=cameras.index.device)[:, None]
    camera = cameras.index.clamp(min=0)
    K = cameras.K_normalized[sample, camera]
    # the camera of a token that has none may be anything
    K = torch.where((cameras.index >= 0)[..., None, None], K, torch.eye(3, dtype=K.dtype, device=K.device))
    z = ray_directions(K, cameras.patch_centers)
    z = z / z.norm(dim=-1, keepdim=True)
    x = torch.stack((z[..., 2], torch.zeros_like(z[..., 0]), -z[..., 0]), -1)  # the camera's y axis times z
    x = x / x.norm(dim=-1, keepdim=True)
    turn = torch.zeros_like(cameras.world_to_camera[sample, camera])
    turn[..., :3, :3], turn[..., 3, 3] = torch.stack((x, torch.linalg.cross(z, x), z), -2), 1.0
    intrinsics = torch.eye(3, dtype=turn.dtype, device=turn.device).expand(*turn.shape[:2], 3, 3)
    token = torch.arange(turn.shape[1], device=turn.device).where(cameras.index >= 0, -1)
    return Cameras(turn @ cameras.world_to_camera[sample, camera], intrinsics, token)


class RayEmbedding(ViewMixer):
    """The baseline that encodings are to beat: the ray of each visual token, embedded and added to it.

    A perceptron with one hidden layer; its last projection starts at zero, and with it the effect.

    Args:
        width: of the tokens, and of the hidden layer.
        rays: `plucker` for the unit direction and the moment, from the `reference` view; `directions` for
            K^-1 [u, v, 1], in which there is no pose.
        reference: see `Cameras.reference_view`; null for the data's own world.
    """

    def __init__(
        self,
        width: int,
        rays: Rays = "plucker",
        reference: ReferenceView | None = "first",
    ) -> None:
        super().__init__()
        check_choice("rays", rays, Rays)
        if reference is not None:
            check_choice("reference", reference, ReferenceView)
        self.rays, self.reference = rays, reference
        self.embed = nn.Sequential(nn.Linear(6 if rays == "plucker" else 3, width), nn.GELU(), nn.Linear(width, width))
        last = self.embed[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @property
    def symmetries(self) -> ViewSymmetries:
        posed = self.rays == "plucker"
        canonical = not posed or self.reference is not None
        return ViewSymmetries(not posed, canonical, scale=not posed, intrinsics=False)

    def forward(
        self,
        tokens: Float[Tensor, "N D"],
        cameras: Cameras,
        grid: tuple[int, int, int] | Int[Tensor, " 3"],
        has_camera: Bool[Tensor, "B t"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """The tokens with their rays added, see `ViewMixer.forward`."""
        _, rows, columns = check_scenes(tokens, cameras, grid)
        rays = patch_directions(cameras.K_normalized.flatten(0, 1).double(), rows, columns)
        if self.rays == "plucker":
            cameras = to_reference_frame(cameras.to(dtype=torch.float64), self.reference)
            camera_to_world = invert_se3(cameras.world_to_camera.flatten(0, 1))[:, None, None]
            turned = (camera_to_world[..., :3, :3] @ rays[..., None])[..., 0]
            rays = plucker(turned, camera_to_world[..., :3, 3])
        added = self.embed(rays.to(next(self.parameters()).dtype))
        if has_camera is not None:
            added = added * has_camera.flatten()[:, None, None, None]
        return tokens + added.flatten(0, 2).to(tokens.dtype)
