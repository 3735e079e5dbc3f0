"""Tokens to dense maps: depth or points, with a confidence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.precision import to_float32

FRAMES_AT_A_TIME = 8  # bounds the memory: the last maps have the size of the images
POSITION_SCALE = 0.1


class DPTHead(nn.Module):
    """DPT (Ranftl et al. 2021, arXiv 2103.13413) as VGGT has it. Names are the official ones.

    Four layers' tokens become maps at 4, 2, 1 and 1/2 times the patch grid, which are merged from the
    coarsest to the finest.

    Args:
        dim_in: width of the tokens.
        output_dim: channels of the result, and one for the confidence.
        activation: `exp` (depth), or `inv_log`: sign(x) (e^|x| - 1) (points).
        conf_activation: `expp1`: 1 + e^x.
        patch_size: in pixels.
        features: width of the merged maps.
        out_channels: widths of the four maps.
        intermediate_layer_idx: the aggregator's layers that they come from, counted from the end where negative.
    """

    def __init__(
        self,
        dim_in: int = 2048,
        output_dim: int = 4,
        activation: str = "inv_log",
        conf_activation: str = "expp1",
        patch_size: int = 14,
        features: int = 256,
        out_channels: Sequence[int] = (256, 512, 1024, 1024),
        intermediate_layer_idx: Sequence[int] = (4, 11, 17, 23),
    ) -> None:
        super().__init__()
        if activation not in ("exp", "inv_log") or conf_activation != "expp1":
            raise ValueError(f"unknown activations {activation!r}, {conf_activation!r}: use exp or inv_log, then expp1")
        self.activation = activation
        self.patch_size = patch_size
        self.layers = tuple(intermediate_layer_idx)
        self.norm = nn.LayerNorm(dim_in)
        self.projects = nn.ModuleList([nn.Conv2d(dim_in, width, 1) for width in out_channels])
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(out_channels[0], out_channels[0], 4, 4),
                nn.ConvTranspose2d(out_channels[1], out_channels[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(out_channels[3], out_channels[3], 3, 2, padding=1),
            ]
        )
        self.scratch = Scratch(features, output_dim, out_channels)

    def forward(
        self, tokens: Sequence[Float[Tensor, "N patches D"]], height: int, width: int
    ) -> tuple[Float[Tensor, "N H W C"], Float[Tensor, "N H W"]]:
        """Maps of N frames in the size of the images, float32 or better, and their confidence, above 1.

        Args:
            tokens: patch tokens of the four `layers`.
            height: of the images in pixels.
            width: of the images in pixels.
        """
        chunks = zip(*(layer.split(FRAMES_AT_A_TIME) for layer in tokens), strict=True)
        out = torch.cat([self._maps(chunk, height, width) for chunk in chunks])
        values, confidence = out.movedim(1, -1).split([out.shape[1] - 1, 1], -1)
        values = values.exp() if self.activation == "exp" else values.sign() * values.abs().expm1()
        return values, 1 + confidence.squeeze(-1).exp()

    def _maps(self, tokens: Sequence[Tensor], height: int, width: int) -> Tensor:
        grid = (height // self.patch_size, width // self.patch_size)
        maps = []
        for layer, project, resize in zip(tokens, self.projects, self.resize_layers, strict=True):
            patches = project(self.norm(layer).mT.unflatten(2, grid))
            maps.append(resize(add_positions(patches, width / height)))
        merged = upsample(self.scratch.merge(maps), (height, width))
        return to_float32(self.scratch.output_conv2(add_positions(merged, width / height)))


class Scratch(nn.Module):
    """Merges the four maps from coarse to fine; called so in the official checkpoints."""

    def __init__(self, features: int, output_dim: int, in_channels: Sequence[int]) -> None:
        super().__init__()
        for level, width in enumerate(in_channels, 1):
            self.add_module(f"layer{level}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
            self.add_module(f"refinenet{level}", FusionBlock(features, lateral=level < len(in_channels)))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, output_dim, 1)
        )

    def merge(self, maps: Sequence[Float[Tensor, "N _ _ _"]]) -> Float[Tensor, "N features _ _"]:
        levels = [self.get_submodule(f"layer{level}_rn")(x) for level, x in enumerate(maps, 1)]
        out = None
        for level in range(len(levels), 0, -1):
            lateral = levels[level - 1]
            finer = levels[level - 2].shape[2:] if level > 1 else [2 * side for side in lateral.shape[2:]]
            out = self.get_submodule(f"refinenet{level}")(out, lateral, tuple(finer))
        return self.output_conv1(out)


class FusionBlock(nn.Module):
    """The coarser map plus a refined lateral one, refined and brought to the next size."""

    def __init__(self, features: int, lateral: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if lateral:
            self.resConfUnit1 = ResidualUnit(features)
        self.resConfUnit2 = ResidualUnit(features)

    def forward(
        self,
        coarser: Float[Tensor, "N features h w"] | None,
        lateral: Float[Tensor, "N features h w"],
        size: tuple[int, int],
    ) -> Float[Tensor, "N features H W"]:
        x = lateral if coarser is None else coarser + self.resConfUnit1(lateral)
        # a pointwise convolution and an interpolation commute: before it, there are fewer pixels to compute
        return upsample(self.out_conv(self.resConfUnit2(x)), size)


class ResidualUnit(nn.Module):
    """Two convolutions and a skip, which adds relu(x) and not x.

    The official unit applies its ReLU in place, so that x is overwritten before it is added; the released
    weights were trained with that.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        x = F.relu(x)
        return self.conv2(F.relu(self.conv1(x))) + x


def upsample(x: Float[Tensor, "N C h w"], size: tuple[int, int]) -> Float[Tensor, "N C H W"]:
    """Bilinear, with the corner pixels' centers kept in the corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def add_positions(x: Float[Tensor, "N C H W"], aspect: float) -> Float[Tensor, "N C H W"]:
    """x plus a tenth of a sinusoidal embedding of the pixel's place: its column on the first half.

    Args:
        x: maps with a multiple of 4 channels.
        aspect: width over height of the image; its half diagonal has length 1.
    """
    channels, height, width = x.shape[1:]
    diagonal = (1 + aspect**2) ** 0.5
    quarter = channels // 4
    frequency = 100 ** (-torch.arange(quarter, dtype=torch.float64, device=x.device) / quarter)

    def embed(half_side: float, count: int) -> Tensor:
        edge = half_side / diagonal * (count - 1) / count  # the center of the outermost pixel
        angle = frequency[:, None] * torch.linspace(-edge, edge, count, dtype=x.dtype, device=x.device)
        return POSITION_SCALE * torch.cat((angle.sin(), angle.cos())).to(x.dtype)

    columns = embed(aspect, width)[:, None, :].expand(-1, height, -1)
    rows = embed(1.0, height)[:, :, None].expand(-1, -1, width)
    return x + torch.cat((columns, rows))
