"""Dense prediction head: tokens to depth or points, with a confidence."""

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
    """DPT head (Ranftl et al. 2021, arXiv 2103.13413) of VGGT, with the official parameter names.

    The tokens of four layers become maps at 4, 2, 1 and 1/2 times the resolution of the patch grid, which are merged
    from coarse to fine.

    Args:
        dim_in: width of the tokens.
        output_dim: channels of the result, plus one for the confidence.
        activation: `exp` (depth), or `inv_log`: sign(x) (e^|x| - 1) (points).
        conf_activation: `expp1`: 1 + e^x.
        patch_size: in pixels.
        features: width of the merged maps.
        out_channels: widths of the four maps.
        intermediate_layer_idx: the layers of the aggregator, counted from the end where negative.
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
        """Predicts maps for N frames in float32 or better.

        Args:
            tokens: patch tokens of the four `layers`.
            height: of the images in pixels.
            width: of the images in pixels.

        Returns:
            Values in the size of the images, and their confidence, above 1.
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
    """Merges the four maps from coarse to fine; the name is that of the official checkpoints."""

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
        """Merges maps, the finest first, into one of twice the finest size."""
        levels = [self.get_submodule(f"layer{level}_rn")(x) for level, x in enumerate(maps, 1)]
        out = None
        for level in range(len(levels), 0, -1):
            lateral = levels[level - 1]
            finer = levels[level - 2].shape[2:] if level > 1 else [2 * side for side in lateral.shape[2:]]
            out = self.get_submodule(f"refinenet{level}")(out, lateral, tuple(finer))
        return self.output_conv1(out)


class FusionBlock(nn.Module):
    """Adds a refined lateral map to the coarser one, refines the sum and resizes it."""

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
        """Merges two maps; without a coarser one only the lateral map is refined."""
        x = lateral if coarser is None else coarser + self.resConfUnit1(lateral)
        # a pointwise convolution commutes with interpolation, and is cheaper before it
        return upsample(self.out_conv(self.resConfUnit2(x)), size)


class ResidualUnit(nn.Module):
    """Two convolutions with a skip connection that adds relu(x), not x.

    The official unit applies its ReLU in place, which overwrites x before it is added; the released weights were
    trained with that.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Refines a map."""
        x = F.relu(x)
        return self.conv2(F.relu(self.conv1(x))) + x


def upsample(x: Float[Tensor, "N C h w"], size: tuple[int, int]) -> Float[Tensor, "N C H W"]:
    """Bilinear interpolation with aligned corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def add_positions(x: Float[Tensor, "N C H W"], aspect: float) -> Float[Tensor, "N C H W"]:
    """Adds 0.1 times a sinusoidal position embedding: of the column on the first half of the channels, then the row.

    Args:
        x: maps with a multiple of 4 channels.
        aspect: width over height of the image; its half diagonal has length 1.
    """
    channels, height, width = x.shape[1:]
    diagonal = (1 + aspect**2) ** 0.5
    quarter = channels // 4
    frequency = 100 ** (-torch.arange(quarter, dtype=torch.float64, device=x.device) / quarter)

    def embed(half_side: float, count: int) -> Tensor:
        edge = half_side / diagonal * (count - 1) / count  # center of the outermost pixel
        angle = frequency[:, None] * torch.linspace(-edge, edge, count, dtype=x.dtype, device=x.device)
        return POSITION_SCALE * torch.cat((angle.sin(), angle.cos())).to(x.dtype)

    columns = embed(aspect, width)[:, None, :].expand(-1, height, -1)
    rows = embed(1.0, height)[:, :, None].expand(-1, -1, width)
    return x + torch.cat((columns, rows))
