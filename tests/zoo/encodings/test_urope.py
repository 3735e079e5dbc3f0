"""URoPE in a decoder against the published function, wherever the cameras look."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras import Cameras, intrinsics_in_pixels
from zoo.cameras.poses import invert_se3
from zoo.cameras.rays import grid_centers, patch_directions
from zoo.encodings import URoPE, urope_attention
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.encodings.testing import random_cameras
from zoo.encodings.urope import _rotate as rotate_axes
from zoo.encodings.urope import depth_anchors, image_rope, urope_positions

HEAD, HEADS = HeadLayout.in_row(24, (4, 4, 4)), 4
ROWS, COLUMNS, BATCH = 2, 3, 2
SIZES = {"height": ROWS, "width": COLUMNS}
DEPTHS = (2.0, 20.0)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2), None


def random_heads() -> Tensor:
    """Return q, k and v of a view, then those of the view that looks at it."""
    generator = torch.Generator().manual_seed(0)
    length = 2 * ROWS * COLUMNS
    return torch.randn(3, BATCH, HEADS, length, HEAD.dim, generator=generator, dtype=torch.float64)


def turned(degrees: float) -> tuple[Tensor, Tensor]:
    """Return a view and one that is turned about the vertical axis, with cameras off their images' centers."""
    poses, K = random_cameras(BATCH, 2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, 0, sin, 1.2], [0, 1, 0, -0.5], [-sin, 0, cos, 0.8], [0, 0, 0, 1]], dtype=torch.float64)
    return torch.stack((poses[:, 0], turn @ poses[:, 0]), 1), K


def in_decoder(poses: Tensor, K: Tensor, apply_to: Any, max_depth: float = DEPTHS[1]) -> Tensor:
    """The output (B, H, N, D) of the second view, which attends to the first one alone."""
    encoding, tokens = URoPE(DEPTHS[0], max_depth, apply_to), ROWS * COLUMNS
    encoding.bind_to_decoder(DecoderLayout(HEADS * HEAD.dim, 1, HEADS, HEADS, HEAD), [0])
    centers = grid_centers(ROWS, COLUMNS, poses).flatten(0, 1).repeat(2, 1).expand(BATCH, -1, -1)
    sizes = torch.tensor([1 / COLUMNS, 1 / ROWS], dtype=torch.float64).expand_as(centers)
    index = torch.arange(2).repeat_interleave(tokens).expand(BATCH, -1)
    cameras = Cameras(poses, K, index).with_tokens(centers, patch_sizes=sizes)
    mask = torch.ones(1, 1, 2 * tokens, 2 * tokens, dtype=torch.bool)
    mask[..., tokens:, tokens:] = False
    encoded = encoding.encode(cameras, HEAD, torch.float64)
    return encoded.attend(attention, *random_heads(), mask)[0].transpose(1, 2)[:, :, tokens:]


def published(poses: Tensor, K: Tensor, apply_to: str) -> Tensor:
    """The same by `urope_attention`, given values so that its rotation of them is that of PRoPE, or none."""
    tokens = ROWS * COLUMNS
    (q, k, v), V = random_heads(), poses.flip(1)  # there the first view looks
    q, k, v = (other_pairs(x) for x in (q[:, :, tokens:], k[:, :, :tokens], v[:, :, :tokens]))
    K_tokens = intrinsics_in_pixels(K[:, 0], COLUMNS, ROWS)
    depths = torch.tensor(depth_anchors(HEADS, *DEPTHS), dtype=torch.float64)
    own, seen = (image_rope(x, HEAD.dim // 4) for x in urope_positions(V, K_tokens, depths=depths, **SIZES))
    values = rotate_axes(rotate_axes(v, *seen) if apply_to == "qkvo" else v, *own)
    heads_last = (x.transpose(1, 2).flatten(2) for x in (q, k, values))
    options: dict[str, Any] = {"num_heads": HEADS, "min_depth": DEPTHS[0], "max_depth": DEPTHS[1], **SIZES}
    unmasked = torch.zeros(1, tokens, tokens, dtype=torch.float64)
    out = urope_attention(*heads_last, V, K_tokens, mask=unmasked, **options)
    out = out.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return other_pairs(out if apply_to == "qkvo" else rotate_axes(out, *own))


def other_pairs(x: Tensor) -> Tensor:
    """Exchange the decoder's order of channels, whose halves pair, with the published one: x pairs, then y pairs."""
    return x.unflatten(-1, (2, 2, -1)).transpose(-3, -2).flatten(-3)


@pytest.mark.parametrize("apply_to", ["qk", "qkvo"])
@pytest.mark.parametrize("degrees", [0.0, 40.0, 110.0, 180.0])
def test_a_view_reads_another_as_published(degrees: float, apply_to: str) -> None:
    cameras = turned(degrees)
    expected = published(*cameras, apply_to)
    torch.testing.assert_close(in_decoder(*cameras, apply_to), expected, rtol=0, atol=1e-9)
    for wrong in (in_decoder(*cameras, apply_to, max_depth=10.0), in_decoder(*turned(degrees + 5), apply_to)):
        assert (wrong - expected).abs().max() > 1e-2


def test_cameras_that_turn_see_points_behind_them() -> None:
    """Where a projection that takes depth without its sign depends on the origin of image coordinates."""
    shares = []
    for degrees in (0.0, 110.0, 180.0):
        poses, K = turned(degrees)
        rays = patch_directions(K[:, 0], ROWS, COLUMNS).flatten(1, 2)
        relative = poses[:, 1] @ invert_se3(poses[:, 0])
        z = (20 * rays @ relative[:, :3, :3].mT + relative[:, None, :3, 3])[..., 2]
        shares.append(float((z < 0).double().mean()))
    assert shares[0] == 0 and 0 < shares[1] < 1 and shares[2] == 1
