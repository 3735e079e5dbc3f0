"""Rotary position embedding over the two axes of the patch grid.

The first half of the channels of a head is rotated by the row, the second by the column; within a half, channel i is
paired with channel i + quarter. Patches count from 1; the special tokens before them are at 0, the identity.
Source: RoFormer (arXiv 2104.09864) in two dimensions, as in VGGT.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def patch_rotations(
    rows: int, columns: int, num_special: int, head_dim: int, base: float, device: torch.device
) -> Float[Tensor, "2 P 2 quarter"]:
    """Cosines and sines of the tokens of one frame, special tokens first; float32.

    Args:
        rows: of the patch grid.
        columns: of the patch grid.
        num_special: tokens before the patches.
        head_dim: channels of a head, a multiple of 4.
        base: of the frequencies: base^(-i / quarter), i = 0 ... quarter - 1.
        device: of the result.
    """
    quarter = head_dim // 4
    frequency = base ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    row = torch.arange(1, rows + 1, dtype=torch.float32, device=device)
    column = torch.arange(1, columns + 1, dtype=torch.float32, device=device)
    position = torch.zeros(num_special + rows * columns, 2, device=device)
    position[num_special:, 0] = row[:, None].expand(rows, columns).flatten()
    position[num_special:, 1] = column[None, :].expand(rows, columns).flatten()
    angle = position[:, :, None] * frequency
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Float[Tensor, "B heads N D"], rotations: Float[Tensor, "2 N 2 quarter"]) -> Float[Tensor, "B heads N D"]:
    """Rotates queries or keys by `patch_rotations`."""
    cosine, sine = rotations.to(x.dtype)
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack((first * cosine - second * sine, second * cosine + first * sine), -2)
    return turned.flatten(-3)
