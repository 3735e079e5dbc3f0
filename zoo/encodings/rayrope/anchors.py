"""URoPE in a decoder's attention."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from zoo.cameras import Cameras, Scale, intrinsics_in_pixels
from zoo.cameras.rays import ray_directions
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.per_view import Channels, CosSin, PerViewAttention
from zoo.encodings.per_view_encoding import Applied, PairedChannels, PerViewEncoding, token_intrinsics
from zoo.encodings.rayrope.urope import CLAMP, depth_anchors, image_positions, image_rope
from zoo.errors import InputError


class URoPE(PerViewEncoding):
    """URoPE (arXiv 2604.18747): each head rotates keys by where the looking view sees them at one depth of their rays.

    Positions are in tokens of the looking view's image, x on the first half of the rotated pairs and y on the second.
    Heads that share keys share a depth. As in PRoPE, and unlike the published two-view code, values are rotated as
    the keys are, and outputs back.

    Args:
        min_depth: Depth of the first key head along the ray, in meters or units of `scale`.
        max_depth: The depth that one more head would have.
        apply_to: See `PerViewEncoding`.
        channels: See `PerViewEncoding`.
        scale: See `PerViewEncoding`.

    Raises:
        InputError: Not 0 < min_depth < max_depth.
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
    """The positions of a batch's tokens in its views, at the depth of each key head.

    Args:
        cameras: See `PerViewAttention`.
        channels: See `PerViewAttention`.
        encoding: Its options.
        anchors: The depth of each key head.
        dtype: Of the rotations.
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
            # in tokens from the image's corner before points are projected: those behind the view depend on the origin
            width, height = call.of_queries(sizes)[:, 0].reciprocal().unbind(-1)
            K_tokens = intrinsics_in_pixels(look.K_normalized, width, height)
            seen = image_positions(look.relative_pose, K_tokens[:, None], call.of_keys(rays), depths)
            seen = seen.clamp(*CLAMP).transpose(0, 1)
            self.places[number] = call.of_queries(own)[:, None].to(dtype), seen.to(dtype)

    def rotations(self, number: int) -> tuple[CosSin, CosSin]:
        own, seen = (image_rope(places, self.num_frequencies) for places in self.places[number])
        return own, seen
