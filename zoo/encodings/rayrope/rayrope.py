"""RayRoPE in a decoder's attention."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras, Scale
from zoo.cameras.cameras import camera_runs
from zoo.cameras.rays import grid_centers, ray_directions
from zoo.encodings.base import Rope, Symmetries, ViewSymmetries
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.per_view import (
    Applied,
    Channels,
    CosSin,
    PairedChannels,
    PerViewAttention,
    PerViewEncoding,
    token_intrinsics,
)
from zoo.encodings.rayrope.attention import KNOWN_DEPTHS, DepthEncoding, RayPositions, SeenTokens, Space, depth_ends
from zoo.encodings.view_attention import KeyMask, ViewAttention
from zoo.errors import InputError, check_choice
from zoo.precision import full_precision, to_float32

DepthSource = Literal["predicted", "known"]
Seen = dict[Space, SeenTokens]
INITIAL_DEPTH = (0.0, 3.0)  # of every token: from 0.05 to 20 m


class RayRoPE(PerViewEncoding):
    """RayRoPE (arXiv 2601.15275): tokens are rotated by where they could be on their rays, as the looking view sees it.

    Each layer predicts the depth of each token and how vague it is; where it is vague, the rotation shrinks.

    Args:
        points: See `RayPositions`.
        rays: See `RayPositions`.
        depth_encoding: See `RayPositions`.
        freq_base: See `RayPositions`.
        depth: `predicted` by each layer, under supervision with `RayDepthPrediction`; or `known`, the depth of the
            dataset or, with `--model.camera_source predicted`, of the geometry encoder: the median within the token.
            Where that is unknown, the predicted one.
        predicts_width: Predict the half width of the log depth too; without, depths are certain.
        apply_to: See `PerViewEncoding`.
        channels: See `PerViewEncoding`.
        scale: See `PerViewEncoding`.

    Example:
        >>> from zoo.encodings.decoder_layout import HeadLayout
        >>> RayRoPE().pairs(HeadLayout.in_row(128, (16, 24, 24)), 12)
        Channels(first=0, second=64, count=60)
    """

    def __init__(
        self,
        points: str = "d_pj+0_3d",
        rays: int = 3,
        depth_encoding: DepthEncoding = "d",
        freq_base: float = 3.0,
        depth: DepthSource = "predicted",
        predicts_width: bool = True,
        apply_to: Applied = "qkvo",
        channels: PairedChannels = None,
        scale: Scale = "none",
    ) -> None:
        super().__init__(apply_to, channels, scale)
        check_choice("depth", depth, DepthSource)
        self.positions = RayPositions(points, rays, depth_encoding, float(freq_base))
        self.depth, self.predicts_width = depth, predicts_width
        if not self.rotates_by_depth and (depth == "known" or not predicts_width):
            raise InputError(
                "depth and predicts_width have no effect without d_pj or d_3d in points: leave them out, or name one"
            )
        if depth_encoding != "d" and not {"0_pj", "d_pj"} & set(points.split("+")):
            raise InputError("depth_encoding has no effect without 0_pj or d_pj in points: leave it out, or name one")
        if rays != 3 and self.positions.spaces.keys() == {"0"}:
            raise InputError("rays has no effect on camera centers alone: leave it out, or name d or inf in points")
        if scale != "none" and self.positions.spaces.keys() == {"inf"}:
            raise InputError("scale has no effect on directions alone: leave it out, or name a point with a length")
        self.layers: nn.ModuleDict | None = None

    @property
    def symmetries(self) -> Symmetries:
        base, spaces = super().symmetries, self.positions.spaces
        are_directions = spaces.keys() == {"inf"}  # which have no length
        return replace(base, scale=base.scale or are_directions, intrinsics=spaces == {"0": "3d"})

    @property
    def rotates_by_depth(self) -> bool:
        """Whether a point at a token's depth is among those that it is rotated by."""
        return "d" in self.positions.spaces

    @property
    def predicts_depth(self) -> bool:
        """Whether each layer predicts the depth that it rotates by, in the unit of the poses."""
        return self.depth == "predicted" and self.rotates_by_depth and self.scale == "none"

    @property
    def uses_points(self) -> bool:
        return self.depth == "known" and self.rotates_by_depth

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        super().bind_to_decoder(decoder, layers)
        self.pairs(decoder.head, len(self.positions.periods))  # raises if it does not fit
        initial = torch.tensor(INITIAL_DEPTH[: 1 + self.predicts_width], device=decoder.device)
        maps = {}
        for layer in layers if self.rotates_by_depth else ():
            maps[str(layer)] = linear = nn.Linear(decoder.hidden_size, len(initial), device=decoder.device)
            nn.init.zeros_(linear.weight)
            linear.bias.data = initial.clone()
        self.layers = nn.ModuleDict(maps)

    def raw_depth(self, layer: int, hidden_states: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch ends"] | None:
        """Predict the depth of tokens in one layer, see `depth_ends`; None where the encoding does not act.

        Args:
            layer: Number of the layer, from 0.
            hidden_states: Input of the layer's projections.
        """
        assert self.layers is not None, "bind_to_decoder comes first"
        if str(layer) not in self.layers:
            return None
        linear: Any = self.layers[str(layer)]
        with full_precision(hidden_states.device):
            hidden = to_float32(hidden_states)
            return F.linear(hidden, linear.weight.to(hidden), linear.bias.to(hidden))

    def encode_views(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype, is_causal: bool) -> EncodedRays:
        assert self.layers is not None, "bind_to_decoder comes before encode"
        return EncodedRays(cameras, self.pairs(head, len(self.positions.periods)), self, dtype, is_causal)


class EncodedRays(PerViewAttention):
    """The rays of a batch as its views see them, and in `at_layer` their depths.

    Args:
        cameras: See `PerViewAttention`.
        channels: See `PerViewAttention`.
        encoding: Its options, and what predicts depth in each layer.
        dtype: Of the rotations.
        is_causal: See `PerViewAttention`.
    """

    def __init__(
        self, cameras: Cameras, channels: Channels, encoding: RayRoPE, dtype: torch.dtype, is_causal: bool
    ) -> None:
        super().__init__(cameras, channels, encoding.apply_to == "qkvo", is_causal)
        self.encoding, self.scheme = encoding, encoding.positions
        self.frequencies = self.scheme.frequencies(2 * channels.count, dtype, self.index.device)
        self.known_depth = _known_depth(cameras).to(dtype) if encoding.uses_points else None
        centers, sizes = (cameras.required(name)[:, :, None] for name in ("patch_centers", "patch_sizes"))
        corners = self.scheme.corners(centers) - 0.5
        rays = ray_directions(token_intrinsics(cameras)[:, :, None], centers + corners * sizes)
        self.depths: Float[Tensor, "B L R ends"] = torch.ones_like(rays[..., :1])  # until `at_layer`
        self._raw_depths: dict[int, Tensor] = {}
        self.seen: dict[int, tuple[Seen, Seen]] = {}
        for number, look in self.looks.items():
            queries, keys = self.calls[number].of_queries(rays), self.calls[number].of_keys(rays)
            same = torch.eye(4, dtype=rays.dtype, device=rays.device).expand(*queries.shape[:2], 4, 4)
            own, seen = (
                self.scheme.seen_from(pose, look.K_normalized, each)
                for pose, each in ((same, queries), (look.relative_pose, keys))
            )
            self.seen[number] = _cast(own, dtype), _cast(seen, dtype)

    @property
    def raw_depths(self) -> Mapping[int, Tensor]:
        return self._raw_depths

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedRays:
        if (raw_depth := self.encoding.raw_depth(layer, hidden_states)) is None:
            return self
        if self.encoding.predicts_depth:
            self._raw_depths.setdefault(layer, raw_depth)  # a recomputed one has no gradient, and keeps its activations
        depths = depth_ends(raw_depth)
        if self.known_depth is not None:
            known = self.known_depth[..., None].to(depths)
            depths = torch.where(known.isfinite(), known, depths)
        other = copy(self)
        other.depths = depths[:, :, None].expand(-1, -1, self.scheme.rays, -1)
        return other

    def rotations(self, number: int) -> tuple[CosSin, CosSin]:
        call, (own, seen) = self.calls[number], self.seen[number]
        return self._rotation(own, call.of_queries(self.depths)), self._rotation(seen, call.of_keys(self.depths))

    def _rotation(self, seen: Seen, depths: Tensor) -> CosSin:
        cos, sin = self.scheme.coefficients(seen, depths.to(seen["3d"].centers), self.frequencies)
        return cos[:, None], sin[:, None]


def _known_depth(cameras: Cameras) -> Float[Tensor, "B L"]:
    """The depth of each token's point in its own camera; NaN where it is not known, or behind the camera."""
    index = cameras.required("index")
    pose = cameras.world_to_camera[torch.arange(len(cameras), device=index.device)[:, None], index.clamp(min=0)]
    depth = (pose[..., 2, :3] * cameras.required("points")).sum(-1) + pose[..., 2, 3]
    return depth.clamp(*KNOWN_DEPTHS).where(depth > 0, torch.nan)


def _cast(seen: Seen, dtype: torch.dtype) -> Seen:
    return {space: SeenTokens(*(x.to(dtype) for x in tokens)) for space, tokens in seen.items()}


# ---- RayRoPE and URoPE between the 2D tokens of the views, before the decoder ---------------------------------------


class RayAttention(ViewAttention):
    """x + o(attention(norm(x))) over all 2D tokens of a scene, each view's keys being where it sees them.

    As `ViewAttention`, but for the encoding. RayRoPE predicts the depth of a token from norm(x), under supervision with
    `RayDepthPrediction`, or takes the known one.

    Args:
        width: D, of the tokens.
        head_dim: Channels per head, a multiple of 8 that divides the width.
        encoding: `RayRoPE` (the default, with predicted depth) or `URoPE`.

    Raises:
        InputError: Head_dim does not fit the width or the encoding.
    """

    def __init__(self, width: int, head_dim: int = 32, encoding: PerViewEncoding | None = None) -> None:
        super().__init__(width, head_dim)
        encoding = encoding or RayRoPE()
        self.head = HeadLayout.in_row(head_dim, (head_dim // 2,))
        heads = width // head_dim
        encoding.bind_to_decoder(DecoderLayout(width, 1, heads, heads, self.head), [0])
        self.encoding, self.parts = encoding, (encoding,)  # type: ignore[assignment]

    @property
    def symmetries(self) -> ViewSymmetries:
        of_encoding = self.encoding.symmetries
        return ViewSymmetries(True, canonical=True, scale=of_encoding.scale, intrinsics=of_encoding.intrinsics)

    def raw_depth(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N ends"] | None:
        encoding = self.encoding
        if not (isinstance(encoding, RayRoPE) and encoding.predicts_depth):
            return None
        return encoding.raw_depth(0, self.norm(tokens.to(self.norm.weight.dtype)))

    def attend(
        self,
        q: Float[Tensor, "B H N d"],
        k: Float[Tensor, "B H N d"],
        v: Float[Tensor, "B H N d"],
        hidden: Float[Tensor, "B N D"],
        cameras: Cameras,
        rows: int,
        columns: int,
        keys: KeyMask = None,
    ) -> Float[Tensor, "B H N d"]:
        encoding, views, count = self.encoding, cameras.required("index"), rows * columns
        assert isinstance(encoding, PerViewEncoding)
        # 1. The camera and the place of each token; the host knows where views are without reading a tensor.
        numbers = torch.arange(views.shape[1]).repeat_interleave(count).expand(len(views), -1)
        index = views.repeat_interleave(count, 1, output_size=views.shape[1] * count)
        centers = grid_centers(rows, columns, cameras.world_to_camera).flatten(0, 1)
        centers = centers.repeat(views.shape[1], 1).expand(*index.shape, 2)
        sizes = torch.tensor([1 / columns, 1 / rows], dtype=torch.float64)
        sizes = sizes.to(index.device, non_blocking=True).expand(*index.shape, 2)
        located = cameras.with_token_runs(index, camera_runs(numbers)).with_tokens(centers, patch_sizes=sizes)
        # 2. Attention without a causal mask.
        dtype = torch.promote_types(q.dtype, torch.float32)
        encoded = encoding.encode_canonical(encoding.canonical(located), self.head, dtype, is_causal=False)
        acting = encoded.at_layer(0, hidden, (hidden, hidden))
        assert acting is not None
        mask = None if keys is None else keys.expand(-1, -1, q.shape[2], -1)
        return acting.attend(_attention, q, k, v, mask)[0].transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2), None
