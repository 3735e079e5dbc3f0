"""Heads of Depth Anything 3: depth and rays of any-view models, depth and sky of the metric model, and cameras."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.cameras.poses import invert_se3, quaternion_to_rotation, rigid_matrix, rotation_to_quaternion
from zoo.geometry.layers import (
    DPT,
    MLP,
    Block,
    ResidualUnit,
    Scratch,
    in_chunks,
    output_branch,
    upsample,
)
from zoo.precision import full_precision, to_float32

LEVELS = 4
FINEST = LEVELS - 1  # the auxiliary output that is used, although released files hold one per level
RAY = 6  # direction and center


class DualDPT(DPT):
    """Depth in the size of the images and a map of rays, from the same four levels by two chains of fusion blocks.

    Args:
        dim_in: Width of the tokens.
        output_dim: Channels of the depth map: depth and confidence.
        features: Width of the merged maps.
        out_channels: Widths of the four maps.
    """

    def __init__(self, dim_in: int, output_dim: int, features: int, out_channels: Sequence[int]) -> None:
        super().__init__(dim_in, out_channels)
        self.scratch = DualScratch(features, output_dim, out_channels)

    def forward(
        self, tokens: Sequence[Float[Tensor, "N patches D"]], height: int, width: int, heads: Collection[str]
    ) -> dict[str, Float[Tensor, "N ..."]]:
        """Predict maps for N views, float32 or better.

        Args:
            tokens: Patch tokens of the four layers.
            height: Height of the images in pixels.
            width: Width of the images in pixels.
            heads: "depth", "ray" or both.

        Returns:
            depth and depth_conf in the size of the images; rays and rays_conf at 8 / 14 of it.
        """
        aspect = width / height

        def predict(chunk: Sequence[Tensor]) -> dict[str, Tensor]:
            levels = self.scratch.levels(self.reassemble(chunk, height, width))
            found: dict[str, Tensor] = {}
            if "depth" in heads:
                merged = upsample(self.scratch.output_conv1(self.scratch.merge(levels)), (height, width))
                depth, confidence = to_float32(self.scratch.output_conv2(self.embed_positions(merged, aspect))).unbind(
                    1
                )
                found |= {"depth": depth.exp(), "depth_conf": 1 + confidence.exp()}
            if "ray" in heads:
                rays = to_float32(self.scratch.rays(levels, lambda x: self.embed_positions(x, aspect)))
                rays, confidence = rays.movedim(1, -1).split([RAY, 1], -1)
                found |= {"rays": rays, "rays_conf": 1 + confidence.squeeze(-1).exp()}
            return found

        return in_chunks(predict, tokens)


class DualScratch(Scratch):
    """`Scratch` with a second chain for the rays."""

    def __init__(self, features: int, output_dim: int, in_channels: Sequence[int]) -> None:
        super().__init__(features, output_dim, in_channels, ResidualUnit)
        self.add_chain("_aux")
        half = features // 2
        widths = (features, half, features, half, features, half)
        self.output_conv1_aux = nn.ModuleList(
            nn.Sequential(*[nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False)])
            for _ in range(LEVELS)
        )
        self.output_conv2_aux = nn.ModuleList(RayBranch(half, level == 0) for level in range(LEVELS))

    def rays(
        self, levels: Sequence[Float[Tensor, "N features _ _"]], embed: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "N 7 _ _"]:
        """Return rays and confidence of the finest level. `embed` adds positions."""
        x = embed(self.output_conv1_aux[FINEST](self.merge(levels, "_aux")))
        return self.output_conv2_aux[FINEST](x, self.output_conv2_aux[0].get_submodule("2"))


class RayBranch(nn.Module):
    """Convolution, LayerNorm, ReLU and convolution, with the official numbers as names.

    Args:
        width: Width of the maps.
        has_norm: Whether the branch holds the LayerNorm, which all levels share.
    """

    def __init__(self, width: int, has_norm: bool) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(width, 32, 3, padding=1))
        if has_norm:
            self.add_module("2", ChannelNorm(32))
        self.add_module("5", nn.Conv2d(32, RAY + 1, 1))

    def forward(self, x: Float[Tensor, "N C H W"], norm: nn.Module) -> Float[Tensor, "N 7 H W"]:
        """Return rays and confidence."""
        return self.get_submodule("5")(F.relu(norm(self.get_submodule("0")(x))))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps."""

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:  # noqa: D102
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SkyDPT(DPT):
    """Depth and sky in the size of the images, without LayerNorm and position embeddings.

    Args:
        dim_in: Width of the tokens.
        output_dim: Channels of the depth map, which is depth alone.
        features: Width of the merged maps.
        out_channels: Widths of the four maps.
    """

    def __init__(self, dim_in: int, output_dim: int, features: int, out_channels: Sequence[int]) -> None:
        super().__init__(dim_in, out_channels)
        self.norm = nn.Identity()
        self.scratch = Scratch(features, output_dim, out_channels, ResidualUnit)
        self.scratch.add_module("sky_output_conv2", output_branch(features, 1))

    def embed_positions(self, x: Float[Tensor, "N C H W"], aspect: float) -> Float[Tensor, "N C H W"]:
        """Return the maps unchanged."""
        return x

    def forward(
        self, tokens: Sequence[Float[Tensor, "N patches D"]], height: int, width: int
    ) -> dict[str, Float[Tensor, "N H W"]]:
        """Predict depth and sky of N views, float32 or better, see `DualDPT`."""

        def predict(chunk: Sequence[Tensor]) -> dict[str, Tensor]:
            levels = self.scratch.levels(self.reassemble(chunk, height, width))
            merged = upsample(self.scratch.output_conv1(self.scratch.merge(levels)), (height, width))
            branches = (self.scratch.output_conv2, self.scratch.get_submodule("sky_output_conv2"))
            depth, sky = (to_float32(branch(merged)[:, 0]) for branch in branches)
            return {"depth": depth.exp(), "sky": F.relu(sky)}

        return in_chunks(predict, tokens)


# ---- The pose encoding, and the networks that decode and encode it ---------------------------------------------------
# The encoding is camera-to-world (VGGT's is world-to-camera): translation (3), quaternion (4) as (x, y, z, w), vertical
# and horizontal field of view in radians; the principal point is the center of the image

ENCODING = 9
SMALLEST_TANGENT = 1e-6  # a field of view of 0 is a huge focal length, not an infinite one
SMALLEST_DISTANCE = 0.1  # minimum distance that given poses are divided by


def pose_encoding_to_cameras(
    pose_enc: Float[Tensor, "*batch 9"], image_size_hw: tuple[int, int]
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 3 3"]]:
    """Convert pose encodings to world-to-camera poses and intrinsics in pixels, float32 or better."""
    pose_enc = to_float32(pose_enc)
    height, width = image_size_hw
    camera_to_world = rigid_matrix(quaternion_to_rotation(pose_enc[..., 3:7]), pose_enc[..., :3])
    tangent = torch.tan(pose_enc[..., 7:] / 2).clamp(min=SMALLEST_TANGENT)
    K_px = pose_enc.new_zeros(*pose_enc.shape[:-1], 3, 3)
    K_px[..., 0, 0], K_px[..., 1, 1] = width / 2 / tangent[..., 1], height / 2 / tangent[..., 0]
    K_px[..., 0, 2], K_px[..., 1, 2], K_px[..., 2, 2] = width / 2, height / 2, 1.0
    return invert_se3(camera_to_world), K_px


def cameras_to_pose_encoding(
    world_to_camera: Float[Tensor, "*batch 4 4"],
    K_px: Float[Tensor, "*batch 3 3"],
    image_size_hw: tuple[int, int],
) -> Float[Tensor, "*batch 9"]:
    """Invert `pose_encoding_to_cameras`, with unit quaternions and w >= 0. The principal point is dropped."""
    camera_to_world, K_px = invert_se3(to_float32(world_to_camera)), to_float32(K_px)
    height, width = image_size_hw
    fov_h = 2 * torch.atan((height / 2) / K_px[..., 1, 1])
    fov_w = 2 * torch.atan((width / 2) / K_px[..., 0, 0])
    quaternion = rotation_to_quaternion(camera_to_world[..., :3, :3])
    return torch.cat((camera_to_world[..., :3, 3], quaternion, fov_h[..., None], fov_w[..., None]), -1)


def normalize_poses(world_to_camera: Float[Tensor, "B S 4 4"]) -> Float[Tensor, "B S 4 4"]:
    """Make poses relative to the first view, and divide them by the median distance to it, at least 0.1.

    The camera encoder expects such poses. The median is the lower one and counts the first view itself, as in the
    official code, so for two views it is 0.
    """
    poses = to_float32(world_to_camera)
    with full_precision(poses.device):
        relative = poses @ invert_se3(poses[:, :1])
    # |t| of world-to-camera is the distance of the center from the world's origin
    distance = relative[..., :3, 3].norm(dim=-1).median(1).values.clamp(min=SMALLEST_DISTANCE)
    return rigid_matrix(relative[..., :3, :3], relative[..., :3, 3] / distance[:, None, None])


class CameraDecoder(nn.Module):
    """Converts camera tokens to pose encodings.

    Args:
        dim_in: Width of the trunk's outputs.
    """

    def __init__(self, dim_in: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(dim_in, dim_in), nn.ReLU(), nn.Linear(dim_in, dim_in), nn.ReLU())
        self.fc_t = nn.Linear(dim_in, 3)
        self.fc_qvec = nn.Linear(dim_in, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim_in, 2), nn.ReLU())

    def forward(self, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B S 9"]:
        """Return the pose encoding of each view, float32 or better. A field of view can be exactly 0."""
        x = self.backbone(tokens)
        return to_float32(torch.cat((self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)), -1))

    @torch.no_grad()
    def init_identity_pose(self) -> None:
        """Make an untrained decoder predict roughly the identity and a field of view of one radian.

        With random weights the field of view is often below 0, where the ReLU passes no gradient.
        """
        for layer, bias in ((self.fc_t, [0, 0, 0]), (self.fc_qvec, [0, 0, 0, 1]), (self.fc_fov, [1, 1])):
            weight, start = layer.parameters()
            weight.mul_(0.1)
            start.copy_(start.new_tensor(bias))


class CameraEncoder(nn.Module):
    """Converts given cameras to camera tokens, which replace the learned ones.

    Args:
        dim_out: Width C of the trunk's tokens.
        trunk_depth: Number of self-attention blocks over the views of a scene.
        num_heads: Number of heads of these blocks.
    """

    def __init__(self, dim_out: int, trunk_depth: int = 4, num_heads: int = 16) -> None:
        super().__init__()
        self.pose_branch = MLP(ENCODING, dim_out // 2, dim_out)
        self.token_norm = nn.LayerNorm(dim_out)
        self.trunk = nn.Sequential(*[Block(dim_out, num_heads) for _ in range(trunk_depth)])
        self.trunk_norm = nn.LayerNorm(dim_out)

    def forward(
        self,
        world_to_camera: Float[Tensor, "B S 4 4"],
        K_px: Float[Tensor, "B S 3 3"],
        image_size_hw: tuple[int, int],
    ) -> Float[Tensor, "B S C"]:
        """Return one token per camera. Poses are used without normalization, see `normalize_poses`."""
        encoding = cameras_to_pose_encoding(world_to_camera, K_px, image_size_hw)
        tokens = self.pose_branch(encoding.to(self.token_norm.weight.dtype))
        return self.trunk_norm(self.trunk(self.token_norm(tokens)))


# ---- Cameras from maps of rays, in closed form except for the robust weights -----------------------------------------

STEPS = 40  # reweighting steps; each divides the influence of outliers by about 3
SMALLEST_RESIDUAL = 1e-9  # relative to the median length of the directions


@torch.no_grad()
def rays_to_cameras(
    rays: Float[Tensor, "B S h w 6"], rays_conf: Float[Tensor, "B S h w"], image_size_hw: tuple[int, int]
) -> tuple[Float[Tensor, "B S 4 4"], Float[Tensor, "B S 3 3"]]:
    """Compute world-to-camera poses and intrinsics in pixels, with principal points, from predicted rays.

    A direction R^T K^-1 p is linear in the pixel p. The matrix R^T K^-1 minimizes the confidence-weighted sum of
    distances, so outliers hardly move it. It is a rotation times an upper triangular matrix. The center is the
    confidence-weighted mean. Not differentiable.

    Args:
        rays: Direction (not unit length) and camera center of each ray, in the world.
        rays_conf: Confidence of the rays.
        image_size_hw: Size of the images in pixels, which the rays cover evenly.
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

        # 1. Linear map from pixels to directions, by iteratively reweighted least squares.
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
