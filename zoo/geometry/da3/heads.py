"""Dense heads of Depth Anything 3: depth and rays of the any-view models, depth and sky of the metric model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.geometry.dpt import DPT, ResidualUnit, Scratch, in_chunks, output_branch, upsample
from zoo.precision import to_float32

LEVELS = 4
FINEST = LEVELS - 1  # the auxiliary output that is used; released files hold one per level
RAY = 6  # direction and center


class DualDPT(DPT):
    """Depth at the size of the images, and a map of rays, from the same four levels by two chains of fusion blocks.

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
            height: Of the images in pixels.
            width: Of the images in pixels.
            heads: "depth", "ray" or both.

        Returns:
            depth and depth_conf at the size of the images; rays and rays_conf at 8 / 14 of it.
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
        """Rays and confidence of the finest level; `embed` adds positions."""
        x = embed(self.output_conv1_aux[FINEST](self.merge(levels, "_aux")))
        return self.output_conv2_aux[FINEST](x, self.output_conv2_aux[0].get_submodule("2"))


class RayBranch(nn.Module):
    """Convolution, LayerNorm, ReLU and convolution, by the official numbers.

    Args:
        width: Of the maps.
        has_norm: Whether it holds the LayerNorm, which is one for all levels.
    """

    def __init__(self, width: int, has_norm: bool) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(width, 32, 3, padding=1))
        if has_norm:
            self.add_module("2", ChannelNorm(32))
        self.add_module("5", nn.Conv2d(32, RAY + 1, 1))

    def forward(self, x: Float[Tensor, "N C H W"], norm: nn.Module) -> Float[Tensor, "N 7 H W"]:
        """Rays and confidence."""
        return self.get_submodule("5")(F.relu(norm(self.get_submodule("0")(x))))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps."""

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:  # noqa: D102
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SkyDPT(DPT):
    """Depth, and what is sky, at the size of the images: without LayerNorm and without position embeddings.

    Args:
        dim_in: Width of the tokens.
        output_dim: Channels of the depth map: depth alone.
        features: Width of the merged maps.
        out_channels: Widths of the four maps.
    """

    def __init__(self, dim_in: int, output_dim: int, features: int, out_channels: Sequence[int]) -> None:
        super().__init__(dim_in, out_channels)
        self.norm = nn.Identity()
        self.scratch = Scratch(features, output_dim, out_channels, ResidualUnit)
        self.scratch.add_module("sky_output_conv2", output_branch(features, 1))

    def embed_positions(self, x: Float[Tensor, "N C H W"], aspect: float) -> Float[Tensor, "N C H W"]:
        """Add nothing."""
        return x

    def forward(
        self, tokens: Sequence[Float[Tensor, "N patches D"]], height: int, width: int
    ) -> dict[str, Float[Tensor, "N H W"]]:
        """Predict depth and sky of N views, float32 or better; see `DualDPT`."""

        def predict(chunk: Sequence[Tensor]) -> dict[str, Tensor]:
            levels = self.scratch.levels(self.reassemble(chunk, height, width))
            merged = upsample(self.scratch.output_conv1(self.scratch.merge(levels)), (height, width))
            branches = (self.scratch.output_conv2, self.scratch.get_submodule("sky_output_conv2"))
            depth, sky = (to_float32(branch(merged)[:, 0]) for branch in branches)
            return {"depth": depth.exp(), "sky": F.relu(sky)}

        return in_chunks(predict, tokens)
