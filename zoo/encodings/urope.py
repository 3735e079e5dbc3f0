"""URoPE (arXiv 2604.18747): each head places keys at one depth of their rays and rotates by where a view sees them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras import Cameras, Scale, intrinsics_in_pixels
from zoo.cameras.poses import invert_se3
from zoo.cameras.rays import ray_directions
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.encodings.per_view import (
    Applied,
    Channels,
    CosSin,
    PairedChannels,
    PerViewAttention,
    PerViewEncoding,
    rotate_pairs,
    token_intrinsics,
)
from zoo.errors import InputError
from zoo.precision import highest_matmul_precision

# ---- Positions of tokens at the depths of the heads ------------------------------------------------------------------

ROPE_BASE = 100.0
CLAMP = (-64.0, 96.0)  # range of positions, in tokens


def depth_anchors(heads: int, min_depth: float, max_depth: float) -> list[float]:
    """Return the depth of each head, evenly spaced from `min_depth`. `max_depth` is not reached."""
    return [min_depth + head * (max_depth - min_depth) / heads for head in range(heads)]


def image_positions(
    relative_pose: Float[Tensor, "*#batch 4 4"],
    K: Float[Tensor, "*#batch 3 3"],
    rays: Float[Tensor, "*#batch 3"],
    depths: Float[Tensor, " heads"],
) -> Float[Tensor, "heads *batch 2"]:
    """Project the points of rays at each head's depth to the attending view, in the unit of its intrinsics.

    Args:
        relative_pose: Pose from the camera of each ray to the attending view's camera.
        K: Intrinsics of the attending view, with the image corner as origin. The sign of the depth is ignored, so the
            result for points behind the view depends on the origin.
        rays: Rays in their own cameras.
        depths: Depths along the ray, not along the camera's axis.
    """
    directions = (relative_pose[..., :3, :3] @ (rays / rays.norm(dim=-1, keepdim=True))[..., None])[..., 0]
    anchors = depths.view(-1, *[1] * directions.ndim)
    points = relative_pose[..., :3, 3] + anchors * directions
    focal, principal = K.diagonal(dim1=-2, dim2=-1)[..., :2], K[..., :2, 2]
    z = points[..., 2:]
    return (points[..., :2] * focal + z * principal) / (z.abs() + 1e-5)


def image_rope(positions: Float[Tensor, "*batch L 2"], num_frequencies: int) -> CosSin:
    """Compute cosine and sine of RoPE over x, then over y, with base 100.

    Positions are in tokens. Each axis has `num_frequencies` frequencies.
    """
    exponent = torch.arange(num_frequencies, dtype=positions.dtype, device=positions.device) / num_frequencies
    angles = (positions[..., None] * ROPE_BASE**-exponent).flatten(-2)
    return angles.cos(), angles.sin()


def urope_positions(
    world_to_camera: Float[Tensor, "B V 4 4"],
    K_tokens: Float[Tensor, "B 3 3"],
    *,
    height: int,
    width: int,
    depths: Float[Tensor, " heads"],
) -> tuple[Float[Tensor, "L 2"], Float[Tensor, "B heads L 2"]]:
    """Compute the positions of view 0's tokens, and where view 0 sees the last view's tokens.

    Args:
        world_to_camera: One view or two.
        K_tokens: Intrinsics of both, in units of tokens, with pixel centers at + 0.5.
        height: Rows of tokens.
        width: Columns of tokens.
        depths: Depth of each head.
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    queries = torch.stack((x, y), -1).flatten(0, 1).to(K_tokens) + 0.5
    rays = ray_directions(K_tokens[:, None], queries)
    with highest_matmul_precision(K_tokens.device):
        relative = world_to_camera[:, 0] @ invert_se3(world_to_camera[:, -1])
        keys = image_positions(relative[:, None], K_tokens[:, None], rays, depths)
    return queries, keys.transpose(0, 1).clamp(*CLAMP)


# ---- Attention of one view to another, as published ------------------------------------------------------------------


def urope_attention(
    q: Float[Tensor, "B L C"],
    k: Float[Tensor, "B L C"],
    v: Float[Tensor, "B L C"],
    world_to_camera: Float[Tensor, "B V 4 4"],
    K_tokens: Float[Tensor, "B 3 3"],
    *,
    height: int,
    width: int,
    num_heads: int,
    min_depth: float = 2.0,
    max_depth: float = 20.0,
    num_splits: int = 1,
    mask: Float[Tensor, "windows n n"] | None = None,
    shift: bool = False,
) -> Float[Tensor, "B L C"]:
    """Compute the attention of view 0 to the last view, as in the published two-view code.

    Values are rotated by the key's place in its own view, and outputs once more by the query's place. Their angles add
    up, whereas PRoPE's cancel. `URoPE` in a decoder treats values as PRoPE does.

    Args:
        q: Queries of view 0, ordered by row and column.
        k: Keys of the last view.
        v: Values of the last view.
        world_to_camera: One view or two.
        K_tokens: Intrinsics of both, in units of tokens, with pixel centers at + 0.5.
        height: Rows of tokens.
        width: Columns of tokens.
        num_heads: Number of heads, each with its own depth. Their width is a multiple of 4. Self-attention, with one
            view, uses a single head.
        min_depth: Depth of the first head, along the ray.
        max_depth: Depth that one more head would have.
        num_splits: Windows per side. Tokens attend within their window.
        mask: Added to the scores of each window.
        shift: Roll the windows by half a window.

    Returns:
        The output, in the dtype of the inputs.
    """
    num_heads = num_heads if world_to_camera.shape[1] > 1 else 1
    head_dim = q.shape[-1] // num_heads
    depths = torch.tensor(depth_anchors(num_heads, min_depth, max_depth)).to(q)
    at_queries, at_keys = urope_positions(world_to_camera, K_tokens, height=height, width=width, depths=depths)
    own, seen = image_rope(at_queries, head_dim // 4), image_rope(at_keys, head_dim // 4)
    q, k, v = (x.unflatten(-1, (num_heads, head_dim)).transpose(1, 2) for x in (q, k, v))
    q, k, v = _rotate(q, *own), _rotate(k, *seen), _rotate(v, own[0], -own[1])
    rows, columns = height // num_splits, width // num_splits
    roll = (rows // 2, columns // 2) if shift else (0, 0)

    def to_windows(x: Tensor) -> Tensor:
        grid = x.unflatten(2, (height, width)).roll((-roll[0], -roll[1]), (2, 3))
        split = grid.unflatten(3, (num_splits, columns)).unflatten(2, (num_splits, rows))
        return split.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(1, 2)  # (B, windows, heads, n, D)

    bias = None if mask is None else mask[:, None]
    out = F.scaled_dot_product_attention(to_windows(q), to_windows(k), to_windows(v), bias)
    out = out.unflatten(1, (num_splits, num_splits)).unflatten(4, (rows, columns)).permute(0, 3, 1, 4, 2, 5, 6)
    out = out.flatten(4, 5).flatten(2, 3).roll(roll, (2, 3)).flatten(2, 3)
    return _rotate(out, own[0], -own[1]).transpose(1, 2).flatten(2)


def _rotate(x: Float[Tensor, "*batch L D"], cos: Tensor, sin: Tensor) -> Float[Tensor, "*batch L D"]:
    """Rotate the pairs within each half of the channels, first by x, then by y."""
    of_axes = (each.chunk(2, -1) for each in (x, cos, sin))
    return torch.cat([rotate_pairs(*of_axis) for of_axis in zip(*of_axes, strict=True)], -1)


# ---- URoPE in a decoder's attention ----------------------------------------------------------------------------------


class URoPE(PerViewEncoding):
    """URoPE (arXiv 2604.18747): each head rotates keys by where the attending view sees them at a depth of their rays.

    Positions are in tokens of the attending view's image, x on the first half of the rotated pairs and y on the second.
    Heads that share keys share a depth. As in PRoPE, and unlike the published two-view code, values are rotated like
    keys, and outputs are rotated back.

    Args:
        min_depth: Depth of the first key head along the ray, in meters or units of `scale`.
        max_depth: Depth that one more key head would have.
        apply_to: See `PerViewEncoding`.
        channels: See `PerViewEncoding`.
        scale: See `PerViewEncoding`.

    Raises:
        InputError: 0 < min_depth < max_depth does not hold.
    """

    def __init__(
        self,
        min_depth: int | float = 2.0,
        max_depth: int | float = 20.0,
        apply_to: Applied = "qkvo",
        channels: PairedChannels = None,
        scale: Scale = "none",
    ) -> None:
        super().__init__(apply_to, channels, scale)
        if not 0 < min_depth < max_depth:
            raise InputError(f"URoPE requires 0 < min_depth < max_depth, got {min_depth} and {max_depth}")
        self.min_depth, self.max_depth = min_depth, max_depth
        self.num_heads: int | None = None

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        super().bind_to_decoder(decoder, layers)
        self.pairs(decoder.head, 2)  # raises if it does not fit
        self.num_heads = decoder.num_key_value_heads

    def encode_views(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype, is_causal: bool) -> EncodedAnchors:
        assert self.num_heads is not None, "bind_to_decoder comes before encode"
        anchors = depth_anchors(self.num_heads, self.min_depth, self.max_depth)
        return EncodedAnchors(cameras, self.pairs(head, 2), self, anchors, dtype, is_causal)


class EncodedAnchors(PerViewAttention):
    """The positions of a batch's tokens in its views, at each key head's depth.

    Args:
        cameras: See `PerViewAttention`.
        channels: See `PerViewAttention`.
        encoding: The encoding with its options.
        anchors: The depth of each key head.
        dtype: Dtype of the rotations.
        is_causal: See `PerViewAttention`.
    """

    def __init__(
        self,
        cameras: Cameras,
        channels: Channels,
        encoding: URoPE,
        anchors: list[float],
        dtype: torch.dtype,
        is_causal: bool,
    ) -> None:
        super().__init__(cameras, channels, encoding.apply_to == "qkvo", is_causal)
        self.num_frequencies = channels.count // 2
        centers = cameras.required("patch_centers")
        sizes = cameras.required("patch_sizes").where((self.index >= 0)[..., None], 1.0)
        depths = torch.tensor(anchors, dtype=centers.dtype).to(centers.device, non_blocking=True)
        rays, own = ray_directions(token_intrinsics(cameras), centers), (centers + 0.5) / sizes
        self.places: dict[int, tuple[Tensor, Tensor]] = {}
        for number, look in self.looks.items():
            call = self.calls[number]
            # points are projected in tokens from the image corner, because points behind the view depend on the origin
            width, height = call.of_queries(sizes)[:, 0].reciprocal().unbind(-1)
            K_tokens = intrinsics_in_pixels(look.K_normalized, width, height)
            seen = image_positions(look.relative_pose, K_tokens[:, None], call.of_keys(rays), depths)
            seen = seen.clamp(*CLAMP).transpose(0, 1)
            self.places[number] = call.of_queries(own)[:, None].to(dtype), seen.to(dtype)

    def rotations(self, number: int) -> tuple[CosSin, CosSin]:
        own, seen = (image_rope(places, self.num_frequencies) for places in self.places[number])
        return own, seen
