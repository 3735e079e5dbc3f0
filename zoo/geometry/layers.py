"""Layers that VGGT, Depth Anything 3 and Pi3X share. The modules have the official parameter names of all three."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from zoo.geometry.base import BRIGHTEST, DARKEST, check_size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# ---- Images: checks, and ImageNet's normalization --------------------------------------------------------------------


def normalize(images: Float[Tensor, "*batch 3 H W"]) -> Float[Tensor, "*batch 3 H W"]:
    """Normalize by ImageNet's mean and standard deviation per channel."""
    mean, std = (
        torch.tensor(each, dtype=images.dtype).to(images.device, non_blocking=True)[:, None, None]
        for each in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images - mean) / std


def check_images(images: Tensor, patch_size: int, model: str) -> None:
    """Check that images are floating-point and have sides in multiples of the patch size.

    Raises:
        ValueError: The images do not fit.
    """
    check_size(images.shape[-2], images.shape[-1], patch_size)
    if not images.is_floating_point():
        raise ValueError(f"{model} needs images in 0..1, got {images.dtype}: divide by 255")


def check_range(images: Tensor, model: str) -> None:
    """Check that image values are in 0..1. It waits for the GPU, so it is skipped for images converted from bytes.

    Raises:
        ValueError: Values are out of range.
    """
    if not images.is_meta and ((images < DARKEST) | (images > BRIGHTEST)).any():
        low, high = torch.stack(images.aminmax()).tolist()
        raise ValueError(
            f"{model} needs images in 0..1, got {low:.4g} to {high:.4g}: divide by 255, or undo a normalization"
        )


def select_frames(values: Shaped[Tensor, "B S ..."], frames: Int[Tensor, "B chosen"]) -> Shaped[Tensor, "B chosen ..."]:
    """Select frames of each scene."""
    return values[torch.arange(len(frames), device=frames.device)[:, None], frames]


# ---- The patch embedding, with the parameters of a Conv2d ------------------------------------------------------------


class PatchConvolution(nn.Conv2d):
    """A convolution with the patch as kernel and stride. On a GPU, a matrix product with patches cut out before.

    cuDNN may be far slower in bfloat16, see `zoo.backbones.vision`. On a CPU the results equal the published code's,
    bit for bit.

    Args:
        patch_size: Patch size in pixels.
        embed_dim: Width of the tokens.
        channels: Channels of the images.
    """

    def __init__(self, patch_size: int, embed_dim: int, channels: int = 3) -> None:
        super().__init__(channels, embed_dim, patch_size, patch_size)

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "N channels H W"]
    ) -> Float[Tensor, "N D rows columns"]:
        """Embed the patches of images. A remainder of a side that is smaller than a patch is left out."""
        return super().forward(images) if images.device.type == "cpu" else self.multiply(images)

    def multiply(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N D rows columns"]:
        """Embed the patches by a matrix product."""
        side = self.kernel_size[0]
        patches = images.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


# ---- The transformer block, and its RoPE -----------------------------------------------------------------------------
# RoPE rotates the first half of a head's channels by the row of the patch, the second half by its column. Within a
# half, channel i is paired with channel i + quarter. Patches count from 1. The special tokens before them are at 0,
# which is the identity. Source: RoFormer (arXiv 2104.09864) in two dimensions, as in VGGT.

Heads = tuple[Float[Tensor, "B heads N D"], Float[Tensor, "B heads N D"], Float[Tensor, "B heads N D"]]  # q, k, v


class Attention(nn.Module):
    """Multi-head self-attention by scaled_dot_product_attention.

    Args:
        dim: Width of the tokens.
        num_heads: A divisor of dim.
        qk_norm: LayerNorm over each head's channels of queries and keys, before RoPE.
        causal: Mask later tokens.
    """

    def __init__(self, dim: int, num_heads: int, qk_norm: bool, causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm: nn.Module = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        rotations: Float[Tensor, "2 N 2 quarter"] | None = None,
        mask: Bool[Tensor, "B 1 N N"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Attend over N tokens, or where `mask` is true.

        `rotations` from `patch_rotations` are applied to queries and keys.
        """
        q, k, v = self.queries_keys_values(x)
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        # one dtype: under autocast LayerNorm returns float32; contiguous: SDPA is faster with it on a CPU
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v.contiguous(), mask, is_causal=self.causal)
        return self.output(out)

    def queries_keys_values(self, x: Float[Tensor, "B N C"]) -> Heads:
        """Project tokens, and normalize queries and keys."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def output(self, out: Float[Tensor, "B heads N D"]) -> Float[Tensor, "B N C"]:
        """Join the heads, and project."""
        return self.proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch D"]:
        """Map each token."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """A gated MLP (Shazeer 2020, arXiv 2002.05202) with about as many parameters as `MLP` with the same arguments.

    It uses two thirds of the hidden width, rounded up to a multiple of 8, because three matrices replace two.
    """

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        gated = -(-(2 * hidden // 3) // 8) * 8
        self.w12 = nn.Linear(dim, 2 * gated)
        self.w3 = nn.Linear(gated, out)

    def forward(self, x: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch D"]:
        """Map each token."""
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """Add a residual branch with one learned factor per channel (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float = 0.01) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Float[Tensor, "*batch C"], branch: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
        """Compute x + gamma * branch."""
        return torch.addcmul(x, branch, self.gamma)


class Residual(nn.Module):
    """Add a residual branch as it is, in place of `LayerScale`."""

    def forward(self, x: Float[Tensor, "*batch C"], branch: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
        """Compute x + branch."""
        return x + branch


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection.

    Args:
        dim: Width of the tokens.
        num_heads: A divisor of dim.
        mlp_ratio: Hidden width of the MLP over dim.
        qk_norm: See `Attention`. Its LayerNorms have eps 1e-5, independent of `eps`.
        eps: Epsilon of the block's two LayerNorms.
        mlp: `MLP` or `SwiGLU`.
        causal: Mask later tokens.
        layer_scale: Whether the residual branches have a `LayerScale`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        eps: float = 1e-5,
        mlp: Callable[[int, int, int], nn.Module] = MLP,
        causal: bool = False,
        layer_scale: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, num_heads, qk_norm, causal)
        self.ls1: nn.Module = LayerScale(dim) if layer_scale else Residual()
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = mlp(dim, int(dim * mlp_ratio), dim)
        self.ls2: nn.Module = LayerScale(dim) if layer_scale else Residual()

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        rotations: Float[Tensor, "2 N 2 quarter"] | None = None,
        mask: Bool[Tensor, "B 1 N N"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Apply attention, then the MLP, each with a residual connection."""
        x = self.ls1(x, self.attn(self.norm1(x), rotations, mask))
        return self.ls2(x, self.mlp(self.norm2(x)))


def patch_rotations(
    grid: tuple[int, int], num_special: int, head_dim: int, base: float, device: torch.device
) -> Float[Tensor, "2 P 2 quarter"]:
    """Compute the cosines and sines of the tokens of one frame, special tokens first. Float32.

    Args:
        grid: Rows and columns of patches.
        num_special: Tokens before the patches.
        head_dim: Channels of a head, a multiple of 4.
        base: Base of the frequencies base^(-i / quarter), i = 0 ... quarter - 1.
        device: Device of the result.
    """
    rows, columns = (torch.arange(1, side + 1, dtype=torch.float32, device=device) for side in grid)
    position = torch.cat((torch.zeros(num_special, 2, device=device), torch.cartesian_prod(rows, columns)))
    return rotations_at(position, head_dim, base)


def rotations_at(position: Float[Tensor, "N 2"], head_dim: int, base: float) -> Float[Tensor, "2 N 2 quarter"]:
    """Compute the cosines and sines of tokens at positions (row, column), see `patch_rotations`."""
    quarter = head_dim // 4
    frequency = base ** (-torch.arange(quarter, dtype=torch.float32, device=position.device) / quarter)
    angle = position[:, :, None] * frequency
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Float[Tensor, "B heads N D"], rotations: Float[Tensor, "2 N 2 quarter"]) -> Float[Tensor, "B heads N D"]:
    """Rotate queries or keys by `patch_rotations`."""
    cosine, sine = rotations.to(x.dtype)
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack((first * cosine - second * sine, second * cosine + first * sine), -2)
    return turned.flatten(-3)


def convert_matrices(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Convert the linear layers and convolutions to a dtype, and nothing else. None keeps theirs."""
    for part in module.modules():
        if dtype is not None and isinstance(part, nn.Linear | nn.Conv2d):
            part.to(dtype)


def products_in(dtype: torch.dtype, rest: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Return autocast to the matrices' dtype, if the rest of the network has another one."""
    return nullcontext() if dtype == rest or device.type == "meta" else torch.autocast(device.type, dtype)


def layer_index(layer: int, depth: int) -> int:
    """Convert a layer number, which counts from the end if negative, to an index from 0.

    Raises:
        ValueError: There is no such layer.
    """
    if not -depth <= layer < depth:
        raise ValueError(f"there is no layer {layer}: the model has {depth}")
    return layer % depth


# ---- From tokens of four layers to one merged map, for dense predictions (DPT, Ranftl et al. 2021) -------------------
FRAMES_AT_A_TIME = 8  # bounds the memory: the last maps have the size of the images
POSITION_SCALE = 0.1


class DPT(nn.Module):
    """DPT (arXiv 2103.13413) up to the maps of its four levels. Subclasses add `scratch` and the outputs.

    The tokens of four layers become maps at 4, 2, 1 and 1/2 times the resolution of the patch grid.

    Args:
        dim_in: Width of the tokens.
        out_channels: Widths of the four maps.
        patch_size: Patch size in pixels.
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
        """Add the position embedding of this head to maps, see `add_positions`."""
        return add_positions(x, aspect)

    def reassemble(
        self, tokens: Sequence[Float[Tensor, "N patches D"]], height: int, width: int
    ) -> list[Float[Tensor, "N _ _ _"]]:
        """Return maps of the four levels, finest first, from patch tokens of images of height x width pixels."""
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
        """Merge maps, finest first, into one map of `upscale` times the finest size, by the chain of this suffix."""
        out = None
        for level in range(len(levels), 0, -1):
            lateral = levels[level - 1]
            finer = levels[level - 2].shape[2:] if level > 1 else [upscale * side for side in lateral.shape[2:]]
            out = self.get_submodule(f"refinenet{level}{suffix}")(out, lateral, tuple(finer))
        assert out is not None
        return out


class Scratch(FusionChain):
    """`FusionChain` with the output convolutions. The name is the official checkpoints'.

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
    """Return the last convolutions of a head, in the size of the images."""
    return nn.Sequential(nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, output_dim, 1))


class FusionBlock(nn.Module):
    """Add a refined lateral map to the coarser one, refine the sum and resize it."""

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
        """Merge two maps. Without a coarser map only the lateral map is refined."""
        x = lateral if coarser is None else coarser + self.resConfUnit1(lateral)
        # a pointwise convolution commutes with interpolation, and is cheaper before it
        return upsample(self.out_conv(self.resConfUnit2(x)), size)


class ResidualUnit(nn.Module):
    """Two convolutions, each after a ReLU, with a skip connection."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Refine a map."""
        return self.conv2(F.relu(self.conv1(F.relu(x)))) + x


def upsample(x: Float[Tensor, "N C h w"], size: tuple[int, int]) -> Float[Tensor, "N C H W"]:
    """Interpolate bilinearly with aligned corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def add_positions(x: Float[Tensor, "N C H W"], aspect: float) -> Float[Tensor, "N C H W"]:
    """Add 0.1 times a sinusoidal position embedding: columns on the first half of the channels, rows on the second.

    Args:
        x: Maps with a multiple of 4 channels.
        aspect: Width over height of the image. Its half diagonal has length 1.
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
