"""The transformer block of VGGT and Depth Anything 3, with the official parameter names, and its RoPE.

RoPE rotates the first half of the channels of a head by the row of the patch, the second by its column; within a half,
channel i is paired with channel i + quarter. Patches count from 1; the special tokens before them are at 0, the
identity. Source: RoFormer (arXiv 2104.09864) in two dimensions, as in VGGT.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


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
        self, x: Float[Tensor, "B N C"], rotations: Float[Tensor, "2 N 2 quarter"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """Attend over N tokens; `rotations` of `patch_rotations` are applied to queries and keys."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        # one dtype: under autocast LayerNorm returns float32; contiguous: SDPA is faster with it on a CPU
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v.contiguous(), is_causal=self.causal)
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
    """A gated MLP (Shazeer 2020, arXiv 2002.05202) of about as many parameters as `MLP` with the same arguments.

    Two thirds of the hidden width, rounded up to a multiple of 8, as its three matrices replace two.
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


class Block(nn.Module):
    """Pre-norm attention and MLP with LayerScale.

    Args:
        dim: Width of the tokens.
        num_heads: A divisor of dim.
        mlp_ratio: Hidden width of the MLP over dim.
        qk_norm: See `Attention`; its LayerNorms have eps 1e-5, whatever `eps` is.
        eps: Of the two LayerNorms of the block.
        mlp: `MLP` or `SwiGLU`.
        causal: Mask later tokens.
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
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, num_heads, qk_norm, causal)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = mlp(dim, int(dim * mlp_ratio), dim)
        self.ls2 = LayerScale(dim)

    def forward(
        self, x: Float[Tensor, "B N C"], rotations: Float[Tensor, "2 N 2 quarter"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """Attention, then MLP, each with a residual connection."""
        x = self.ls1(x, self.attn(self.norm1(x), rotations))
        return self.ls2(x, self.mlp(self.norm2(x)))


def patch_rotations(
    grid: tuple[int, int], num_special: int, head_dim: int, base: float, device: torch.device
) -> Float[Tensor, "2 P 2 quarter"]:
    """Cosines and sines of the tokens of one frame, special tokens first; float32.

    Args:
        grid: Rows and columns of patches.
        num_special: Tokens before the patches.
        head_dim: Channels of a head, a multiple of 4.
        base: Of the frequencies: base^(-i / quarter), i = 0 ... quarter - 1.
        device: Of the result.
    """
    rows, columns = (torch.arange(1, side + 1, dtype=torch.float32, device=device) for side in grid)
    position = torch.cat((torch.zeros(num_special, 2, device=device), torch.cartesian_prod(rows, columns)))
    return rotations_at(position, head_dim, base)


def rotations_at(position: Float[Tensor, "N 2"], head_dim: int, base: float) -> Float[Tensor, "2 N 2 quarter"]:
    """Cosines and sines of tokens at positions (row, column); see `patch_rotations`."""
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


def layer_index(layer: int, depth: int) -> int:
    """Convert a layer, counted from the end where negative, to an index from 0.

    Raises:
        ValueError: There is no such layer.
    """
    if not -depth <= layer < depth:
        raise ValueError(f"there is no layer {layer}: the model has {depth}")
    return layer % depth
