"""What the dense prediction heads share: from tokens of four layers to one merged map (Ranftl et al. 2021).

The modules carry the official parameter names of VGGT and Depth Anything 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FRAMES_AT_A_TIME = 8  # bounds the memory: the last maps have the size of the images
POSITION_SCALE = 0.1


class DPT(nn.Module):
    """DPT (arXiv 2103.13413) up to the maps of its four levels; subclasses add `scratch` and the outputs.

    The tokens of four layers become maps at 4, 2, 1 and 1/2 times the resolution of the patch grid.

    Args:
        dim_in: Width of the tokens.
        out_channels: Widths of the four maps.
        patch_size: In pixels.
    """

    def __init__(self, dim_in: int, out_channels: Sequence[int], patch_size: int = 14) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm: nn.Module = nn.LayerNorm(dim_in)
        self.projects = nn.ModuleList([nn.Conv2d(dim_in, width, 1) for width in out_channels])
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(out_channels[0], out_channels[0], 4, 4),
                nn.ConvTranspose2d(out_channels[1], out_channels[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(out_channels[3], out_channels[3], 3, 2, padding=1),
            ]
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        return next(self.projects.parameters()).dtype

    def embed_positions(self, x: Float[Tensor, "N C H W"], aspect: float) -> Float[Tensor, "N C H W"]:
        """Add the position embedding of this head to maps; see `add_positions`."""
        return add_positions(x, aspect)

    def reassemble(
        self, tokens: Sequence[Float[Tensor, "N patches D"]], height: int, width: int
    ) -> list[Float[Tensor, "N _ _ _"]]:
        """Maps of the four levels, the finest first, from the patch tokens of images of height x width pixels."""
        grid = (height // self.patch_size, width // self.patch_size)
        maps = []
        for layer, project, resize in zip(tokens, self.projects, self.resize_layers, strict=True):
            patches = project(self.norm(layer).mT.unflatten(2, grid))
            maps.append(resize(self.embed_positions(patches, width / height)))
        return maps


def in_chunks(
    predict: Callable[[Sequence[Tensor]], dict[str, Tensor]], tokens: Sequence[Float[Tensor, "N patches D"]]
) -> dict[str, Tensor]:
    """Apply a head to a few frames at a time."""
    chunks = [predict(chunk) for chunk in zip(*(layer.split(FRAMES_AT_A_TIME) for layer in tokens), strict=True)]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


class FusionChain(nn.Module):
    """Merge the four maps from coarse to fine.

    Args:
        features: Width of the merged maps.
        in_channels: Widths of the four maps.
        unit: The residual unit of the fusion blocks.
    """

    def __init__(self, features: int, in_channels: Sequence[int], unit: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.features, self.unit = features, unit
        for level, width in enumerate(in_channels, 1):
            self.add_module(f"layer{level}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
        self.add_chain("")

    def add_chain(self, suffix: str) -> None:
        """Add four fusion blocks, `refinenet1<suffix>` to `refinenet4<suffix>`."""
        for level in range(1, 5):
            self.add_module(f"refinenet{level}{suffix}", FusionBlock(self.features, level < 4, self.unit))

    def levels(self, maps: Sequence[Float[Tensor, "N _ _ _"]]) -> list[Float[Tensor, "N features _ _"]]:
        """Bring the maps to one width."""
        return [self.get_submodule(f"layer{level}_rn")(x) for level, x in enumerate(maps, 1)]

    def merge(
        self, levels: Sequence[Float[Tensor, "N features _ _"]], suffix: str = "", upscale: int = 2
    ) -> Float[Tensor, "N features _ _"]:
        """Merge maps, the finest first, into one of `upscale` times the finest size by the chain of this suffix."""
        out = None
        for level in range(len(levels), 0, -1):
            lateral = levels[level - 1]
            finer = levels[level - 2].shape[2:] if level > 1 else [upscale * side for side in lateral.shape[2:]]
            out = self.get_submodule(f"refinenet{level}{suffix}")(out, lateral, tuple(finer))
        assert out is not None
        return out


class Scratch(FusionChain):
    """`FusionChain` with the output convolutions; the name is that of the official checkpoints.

    Args:
        features: Width of the merged maps.
        output_dim: Channels of the result.
        in_channels: Widths of the four maps.
        unit: The residual unit of the fusion blocks.
    """

    def __init__(
        self, features: int, output_dim: int, in_channels: Sequence[int], unit: Callable[[int], nn.Module]
    ) -> None:
        super().__init__(features, in_channels, unit)
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = output_branch(features, output_dim)


def output_branch(features: int, output_dim: int) -> nn.Sequential:
    """The last convolutions of a head, at the size of the images."""
    return nn.Sequential(nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, output_dim, 1))


class FusionBlock(nn.Module):
    """Add a refined lateral map to the coarser one, refines the sum and resize it."""

    def __init__(self, features: int, lateral: bool, unit: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if lateral:
            self.resConfUnit1 = unit(features)
        self.resConfUnit2 = unit(features)

    def forward(
        self,
        coarser: Float[Tensor, "N features h w"] | None,
        lateral: Float[Tensor, "N features h w"],
        size: tuple[int, int],
    ) -> Float[Tensor, "N features H W"]:
        """Merge two maps; without a coarser one only the lateral map is refined."""
        x = lateral if coarser is None else coarser + self.resConfUnit1(lateral)
        # a pointwise convolution commutes with interpolation, and is cheaper before it
        return upsample(self.out_conv(self.resConfUnit2(x)), size)


class ResidualUnit(nn.Module):
    """Two convolutions, each behind a ReLU, with a skip connection."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Refine a map."""
        return self.conv2(F.relu(self.conv1(F.relu(x)))) + x


def upsample(x: Float[Tensor, "N C h w"], size: tuple[int, int]) -> Float[Tensor, "N C H W"]:
    """Bilinear interpolation with aligned corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def add_positions(x: Float[Tensor, "N C H W"], aspect: float) -> Float[Tensor, "N C H W"]:
    """Add 0.1 times a sinusoidal position embedding: of the column on the first half of the channels, then the row.

    Args:
        x: Maps with a multiple of 4 channels.
        aspect: Width over height of the image; its half diagonal has length 1.
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
