"""The heads of Pi3X: local points and their confidence, cameras, and the metric scale of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.geometry.layers import MLP, Block, rotate
from zoo.geometry.pi3x.conditions import EPS
from zoo.precision import to_float32

LARGEST_LOG_DEPTH = 15.0


class HeadDecoder(nn.Module):
    """Blocks within each view, which every head but the metric one reads through.

    Args:
        dim_in: Width of the trunk's features.
        width: Width of the blocks.
        num_heads: A divisor of the width.
        depth: Number of blocks.
        out: Width of the result.
    """

    def __init__(self, dim_in: int, width: int, num_heads: int, depth: int, out: int) -> None:
        super().__init__()
        self.projects = nn.Linear(dim_in, width)
        self.blocks = nn.ModuleList([Block(width, num_heads, eps=EPS, layer_scale=False) for _ in range(depth)])
        self.linear_out = nn.Linear(width, out)
        self.head_dim = width // num_heads

    def forward(
        self, features: Float[Tensor, "N P D"], rotations: Float[Tensor, "2 P 2 quarter"]
    ) -> Float[Tensor, "N P out"]:
        """Decode the features of N views."""
        x = self.projects(features)
        for block in self.blocks:
            x = block(x, rotations)
        return self.linear_out(x)


# ---- Maps: local points, confidence ----------------------------------------------------------------------------------


class ConvHead(nn.Module):
    """Convolutions that upsample the patch grid three times by 2, then to the size of the images.

    Args:
        dim_in: Width of the tokens.
        upsample: Widths of the three levels, multiples of 16.
        last: Width before the outputs.
        outputs: Channels of each output.
    """

    def __init__(self, dim_in: int, upsample: Sequence[int], last: int, outputs: Sequence[int]) -> None:
        super().__init__()
        levels = zip((dim_in, *upsample), upsample, strict=False)
        self.upsample_blocks = nn.ModuleList([nn.Sequential(*self._level(*widths)) for widths in levels])
        self.output_block = nn.ModuleList(
            [
                nn.Sequential(convolution(upsample[-1] + 2, last), nn.ReLU(), nn.Conv2d(last, channels, 1))
                for channels in outputs
            ]
        )

    @staticmethod
    def _level(width: int, out: int) -> tuple[nn.Module, ...]:
        enlarge = nn.Sequential(nn.ConvTranspose2d(width + 2, out, 2, 2), convolution(out, out))
        return enlarge, ConvUnit(out), ConvUnit(out)

    def forward(
        self, patches: Float[Tensor, "N n C"], grid: tuple[int, int], size_hw: tuple[int, int]
    ) -> list[Float[Tensor, "N _channels H W"]]:
        """Return the maps of each output, float32 or better."""
        aspect = size_hw[1] / size_hw[0]
        x = patches.mT.unflatten(2, grid)
        for level in self.upsample_blocks:
            x = level(append_uv(x, aspect))
        x = append_uv(F.interpolate(x, size_hw, mode="bilinear"), aspect)
        return [to_float32(output(x)) for output in self.output_block]

    def init_pinhole(self) -> None:
        """Let a head of (x / z, y / z) and log z start near a centered pinhole camera and a depth of 1."""
        with torch.no_grad():
            for output in self.output_block:
                last: Any = output.get_submodule("2")
                last.weight.mul_(0.1)
                last.bias.zero_()
            first: Any
            first, last = (self.output_block.get_submodule(f"0.{layer}") for layer in (0, 2))
            first.weight[:4], first.bias[:4] = 0.0, 0.0
            for axis in range(2):
                for sign in (0, 1):  # u = relu(u) - relu(-u)
                    first.weight[2 * axis + sign, axis - 2, 1, 1] = 1.0 - 2 * sign
                    last.weight[axis, 2 * axis + sign] = 1.0 - 2 * sign


class ConvUnit(nn.Module):
    """Two convolutions with a skip connection, each after a GroupNorm and a ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.GroupNorm(1, width), nn.ReLU(), convolution(width, 2 * width)),
            *(nn.GroupNorm(2 * width // 32, 2 * width), nn.ReLU(), convolution(2 * width, width)),
        )

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C h w"]:
        """Refine a map."""
        return x + self.layers(x)


def convolution(width: int, out: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution that repeats the pixels at the border."""
    return nn.Conv2d(width, out, 3, padding=1, padding_mode="replicate")


def append_uv(x: Float[Tensor, "N C h w"], aspect: float) -> Float[Tensor, "N D h w"]:
    """Append the coordinates of the pixels, in units of half the image's diagonal, as two channels.

    Args:
        x: Maps.
        aspect: Width over height of the image.
    """
    diagonal = (1 + aspect**2) ** 0.5
    height, width = x.shape[-2:]
    u, v = (
        torch.linspace(-1, 1, count, dtype=x.dtype, device=x.device) * (half / diagonal * (count - 1) / count)
        for half, count in ((aspect, width), (1.0, height))
    )
    uv = torch.stack((u.expand(height, -1), v[:, None].expand(-1, width)))
    return torch.cat((x, uv.expand(len(x), -1, -1, -1)), 1)


def local_points(slope: Float[Tensor, "N 2 H W"], log_depth: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N H W 3"]:
    """Return the point of each pixel in the camera's axes, up to the metric scale."""
    z = log_depth.clamp(max=LARGEST_LOG_DEPTH).exp()
    return torch.cat((slope * z, z), 1).movedim(1, -1)


def recover_intrinsics(points: Float[Tensor, "*batch H W 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Fit focal lengths to local points or rays by least squares. The principal point is the center of the image.

    The result is in pixels with the origin in the corner. The published example counts from the center of the first
    pixel, so its principal point is half a pixel smaller.
    """
    height, width = points.shape[-3:-1]
    points = to_float32(points)
    slope = points[..., :2] / (points[..., 2:].abs() + 1e-10)
    K_px = points.new_zeros(*points.shape[:-3], 3, 3)
    columns, rows = (torch.arange(side, dtype=points.dtype, device=points.device) for side in (width, height))
    for axis, offset in enumerate((columns - (width - 1) / 2, rows[:, None] - (height - 1) / 2)):
        x = slope[..., axis]
        K_px[..., axis, axis] = (x * offset).sum((-1, -2)) / x.square().sum((-1, -2))
    K_px[..., 0, 2], K_px[..., 1, 2], K_px[..., 2, 2] = width / 2, height / 2, 1.0
    return K_px


# ---- Cameras ---------------------------------------------------------------------------------------------------------


class CameraHead(nn.Module):
    """Predict a camera's position and rotation, as nine numbers, from the mean over its patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.res_conv = nn.ModuleList([PointwiseUnit(width) for _ in range(2)])
        self.more_mlps = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t, self.fc_rot = nn.Linear(width, 3), nn.Linear(width, 9)

    def forward(self, patches: Float[Tensor, "N n C"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"]]:
        """Return centers and camera-to-world rotations."""
        for unit in self.res_conv:
            patches = unit(patches)
        x = self.more_mlps(patches.mean(1))
        return to_float32(self.fc_t(x)), rotation_from_nine(to_float32(self.fc_rot(x)))

    def init_identity_pose(self) -> None:
        """Start near the identity, for training from random weights."""
        with torch.no_grad():
            for layer, bias in ((self.fc_t, torch.zeros(3)), (self.fc_rot, torch.eye(3).flatten())):
                layer.weight.mul_(0.1)
                layer.bias.copy_(bias)


class PointwiseUnit(nn.Module):
    """Three linear layers with a skip connection, each followed by a ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for number in (1, 2, 3):
            self.add_module(f"res_conv{number}", nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "N n C"]) -> Float[Tensor, "N n C"]:
        """Refine tokens."""
        out = x
        for layer in self.children():
            out = F.relu(layer(out))
        return x + out


def rotation_from_nine(rot9: Float[Tensor, "*batch 9"]) -> Float[Tensor, "*batch 3 3"]:
    """Convert nine numbers to the rotation nearest to their 3 x 3 matrix, whose rows are normalized first."""
    M = F.normalize(rot9.unflatten(-1, (3, 3)), dim=-1)
    U, singular, Vh = torch.linalg.svd(M.detach())
    sign = torch.ones_like(singular)
    sign[..., 2] = torch.det(U @ Vh).sign()
    R, signed = (U * sign[..., None, :]) @ Vh, singular * sign
    # The gradient of an SVD divides by differences of singular values, and is NaN near a rotation, where all are 1. The
    # nearest rotation itself only needs their sums: R^-1 dR = W, where W S + S W is the skew part of R^T dM.
    skew = R.mT @ M
    sums = signed[..., :, None] + signed[..., None, :]
    sums = sums.where(sums.abs() > torch.finfo(sums.dtype).tiny, torch.inf)  # no single nearest rotation
    skew = Vh @ (skew - skew.mT) @ Vh.mT / sums
    return R + R @ (Vh.mT @ skew @ Vh)


# ---- The metric scale ------------------------------------------------------------------------------------------------


class MetricDecoder(nn.Module):
    """One token per scene, which attends to the features of all views.

    Args:
        dim_in: Width of the trunk's features, and of the token.
        width: Width of the blocks.
        num_heads: A divisor of the width.
        depth: Number of blocks.
        out: Width of the result.
    """

    def __init__(self, dim_in: int, width: int, num_heads: int, depth: int, out: int) -> None:
        super().__init__()
        self.projects_x, self.projects_y = nn.Linear(dim_in, width), nn.Linear(dim_in, width)
        self.blocks = nn.ModuleList([CrossBlock(width, num_heads) for _ in range(depth)])
        self.linear_out = nn.Linear(width, out)
        self.head_dim = width // num_heads

    def forward(
        self,
        token: Float[Tensor, "B 1 D"],
        features: Float[Tensor, "B N D"],
        rotations: Float[Tensor, "2 N 2 quarter"],
    ) -> Float[Tensor, "B 1 out"]:
        """Decode the token. `rotations` are RoPE of the features; the token is at the origin."""
        x, y = self.projects_x(token), self.projects_y(features)
        for block in self.blocks:
            x = block(x, y, rotations)
        return self.linear_out(x)


class CrossBlock(nn.Module):
    """Pre-norm attention to other tokens, and an MLP."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm2, self.norm_y, self.norm3 = (nn.LayerNorm(dim, EPS) for _ in range(3))
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = MLP(dim, 4 * dim, dim)

    def forward(
        self, x: Float[Tensor, "B 1 C"], y: Float[Tensor, "B N C"], rotations: Float[Tensor, "2 N 2 quarter"]
    ) -> Float[Tensor, "B 1 C"]:
        """Refine the token."""
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), rotations)
        return x + self.mlp(self.norm3(x))


class CrossAttention(nn.Module):
    """Multi-head attention of a token at the origin to other tokens."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self, x: Float[Tensor, "B 1 C"], y: Float[Tensor, "B N C"], rotations: Float[Tensor, "2 N 2 quarter"]
    ) -> Float[Tensor, "B 1 C"]:
        """Attend."""
        q, k, v = (
            project(each).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project, each in ((self.q_proj, x), (self.k_proj, y), (self.v_proj, y))
        )
        out = F.scaled_dot_product_attention(q, rotate(k, rotations), v)
        return self.proj(out.transpose(1, 2).flatten(2))
