"""RayRoPE and URoPE in a decoder's attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from copy import copy
from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras, Scale
from zoo.cameras.rays import ray_directions
from zoo.cameras.token_runs import camera_runs
from zoo.encodings.base import CameraEncoding
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import EncodedCameras, Rope
from zoo.encodings.per_view import Channels, CosSin, PerViewAttention
from zoo.encodings.placements import ChannelRange
from zoo.encodings.rayrope.attention import KNOWN_DEPTHS
from zoo.encodings.rayrope.positions import DepthEncoding, RayPositions, SeenTokens, Space, depth_ends
from zoo.encodings.rayrope.urope import CLAMP, depth_anchors, image_positions, image_rope
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError, check_choice
from zoo.precision import full_precision, to_float32

Applied = Literal["qkvo", "qk"]
DepthSource = Literal["predicted", "known"]
Seen = dict[Space, SeenTokens]
INITIAL_DEPTH = (0.0, 3.0)  # of every token: from 0.05 to 20 m


class PerViewEncoding(CameraEncoding):
    """Base class of encodings whose keys and values depend on the view that looks at them.

    The KV cache holds stock keys and values, so decoded text, and whatever else has no camera, is as in the stock
    decoder; text that a view looks at is not rotated. Only relative poses enter, so no reference view is needed.

    Args:
        apply_to: Queries and keys alone, or values and outputs as well.
        channels: The rotated channels, whose second half pairs with the first. None takes RoPE's own pairs, with which
            the rotations commute, from the first one on, as many as fit.
        scale: Unit of translations and depths, see `CameraEncoding`.
    """

    def __init__(self, apply_to: Applied = "qkvo", channels: ChannelRange | None = None, scale: Scale = "none") -> None:
        super().__init__(reference=None, scale=scale)
        check_choice("apply_to", apply_to, Applied)
        self.apply_to, self.channels = apply_to, channels

    @property
    def attends_per_view(self) -> bool:
        return True

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(
            scale=self.scale != "none", shift=self.channels is None, intrinsics=False, identity_stock=False
        )

    def pairs(self, head: HeadLayout, multiple: int) -> Channels:
        """Return the rotated pairs of channels, a multiple of so many.

        Raises:
            InputError: They do not fit heads of this size.
        """
        if self.channels is None:
            count, first, second = head.dim // 2 // multiple * multiple, 0, head.dim // 2
        else:
            channels = self.channels.head_channels(head)
            count, first, second = len(channels) // 2, channels[0], channels[len(channels) // 2]
        if not count or count % multiple:
            raise InputError(
                f"{type(self).__name__} rotates multiples of {2 * multiple} channels, not {2 * count or head.dim}: set "
                "its channels to a ChannelRange of such a width, or give it fewer rays"
            )
        return Channels(first, second, count)

    def encode_canonical(
        self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype, is_causal: bool = True
    ) -> EncodedCameras:
        index = cameras.required("index")
        runs = camera_runs(index) if cameras.token_runs is None else cameras.token_runs
        if not runs.views:
            return EncodedCameras()
        used = cameras.used_mask()[..., None, None]  # the other cameras may be anything
        poses, K = (
            x.where(used, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device))
            for x in (cameras.world_to_camera, cameras.K_normalized)
        )
        finite = Cameras.trusted(poses, K, index, runs)
        tokens = [getattr(cameras, name) for name in ("patch_centers", "points", "time", "patch_sizes")]
        return self.encode_views(finite.with_tokens(*tokens), head, dtype, is_causal)

    @abstractmethod
    def encode_views(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype, is_causal: bool) -> PerViewAttention:
        """Compute the attention from canonical cameras with `token_runs`, all of them finite; see `encode`."""

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        pairs = self.pairs(head, 1)
        channels = [start + i for start in (pairs.first, pairs.second) for i in range(pairs.count)]
        return set(product(self.apply_to, channels))


class RayRoPE(PerViewEncoding):
    """RayRoPE (arXiv 2601.15275): tokens are rotated by where they could be on their rays, as the looking view sees it.

    Each layer predicts the depth of each token and how vague it is; where it is vague, the rotation shrinks.

    Args:
        points: See `RayPositions`.
        rays: See `RayPositions`.
        depth_encoding: See `RayPositions`.
        freq_base: See `RayPositions`.
        depth: `predicted` by each layer, without supervision; or `known`, the depth of the dataset or, with
            `--model.camera_source predicted`, of the geometry encoder: the median within the token.
        predicts_width: Predict the half width of the log depth too; without, depths are certain.
        world: `apply_to`, `channels` and `scale`, see `PerViewEncoding`.

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
        channels: ChannelRange | None = None,
        scale: Scale = "none",
    ) -> None:
        super().__init__(apply_to, channels, scale)
        check_choice("depth", depth, DepthSource)
        self.positions = RayPositions(points, rays, depth_encoding, float(freq_base))
        self.depth, self.predicts_width = depth, predicts_width
        self.layers: nn.ModuleDict | None = None

    @property
    def uses_points(self) -> bool:
        return self.depth == "known"

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.pairs(decoder.head, len(self.positions.periods))  # raises if it does not fit
        initial = torch.tensor(INITIAL_DEPTH[: 1 + self.predicts_width])
        maps = {}
        for layer in layers:
            maps[str(layer)] = linear = nn.Linear(decoder.hidden_size, len(initial), device=decoder.device)
            nn.init.zeros_(linear.weight)
            linear.bias.data.copy_(initial)
        self.layers = nn.ModuleDict(maps)

    def encode_views(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype, is_causal: bool) -> EncodedRays:
        assert self.layers is not None, "bind_to_decoder comes before encode"
        return EncodedRays(cameras, self.pairs(head, len(self.positions.periods)), self, dtype, is_causal)


class EncodedRays(PerViewAttention):
    """The rays of a batch as its views see them, and in `at_layer` their depths.

    Args:
        cameras: See `PerViewAttention`.
        channels: See `PerViewAttention`.
        encoding: Its options, and its depth map of each layer.
        dtype: Of the rotations.
        is_causal: See `PerViewAttention`.
    """

    def __init__(
        self, cameras: Cameras, channels: Channels, encoding: RayRoPE, dtype: torch.dtype, is_causal: bool
    ) -> None:
        super().__init__(cameras, channels, encoding.apply_to == "qkvo", is_causal)
        assert encoding.layers is not None
        self.scheme, self.layers = encoding.positions, encoding.layers
        self.num_frequencies = channels.count // len(self.scheme.periods)
        self.known_depth = _known_depth(cameras).to(dtype) if encoding.depth == "known" else None
        self.depths: Float[Tensor, "B L R ends"]  # in `at_layer`
        centers, sizes = (cameras.required(name)[:, :, None] for name in ("patch_centers", "patch_sizes"))
        corners = self.scheme.corners(centers) - 0.5
        rays = ray_directions(_token_intrinsics(cameras)[:, :, None], centers + corners * sizes)
        self.seen: dict[int, tuple[Seen, Seen]] = {}
        for number, look in self.looks.items():
            queries, keys = self.calls[number].of_queries(rays), self.calls[number].of_keys(rays)
            same = torch.eye(4, dtype=rays.dtype, device=rays.device).expand(*queries.shape[:2], 4, 4)
            own, seen = (
                self.scheme.seen_from(pose, look.K_normalized, each)
                for pose, each in ((same, queries), (look.relative_pose, keys))
            )
            self.seen[number] = _cast(own, dtype), _cast(seen, dtype)

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedRays:
        linear: Any = self.layers[str(layer)]
        with full_precision(hidden_states.device):
            hidden = to_float32(hidden_states)
            depths = depth_ends(F.linear(hidden, linear.weight.to(hidden), linear.bias.to(hidden)))
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
        cos, sin = self.scheme.coefficients(seen, depths.to(seen["3d"].centers), self.num_frequencies)
        return cos[:, None], sin[:, None]


class URoPE(PerViewEncoding):
    """URoPE (arXiv 2604.18747): each head rotates keys by where the looking view sees them at one depth of their rays.

    Positions are in tokens of the looking view's image, x on the first half of the rotated pairs and y on the second.
    Heads that share keys share a depth. As in PRoPE, and unlike the published two-view code, values are rotated as
    the keys are, and outputs back.

    Args:
        min_depth: Depth of the first key head along the ray, in meters or units of `scale`.
        max_depth: The depth that one more head would have.
        world: `apply_to`, `channels` and `scale`, see `PerViewEncoding`.

    Raises:
        InputError: Not 0 < min_depth < max_depth.
    """

    def __init__(
        self,
        min_depth: int | float = 2.0,
        max_depth: int | float = 20.0,
        apply_to: Applied = "qkvo",
        channels: ChannelRange | None = None,
        scale: Scale = "none",
    ) -> None:
        super().__init__(apply_to, channels, scale)
        if not 0 < min_depth < max_depth:
            raise InputError(f"URoPE requires 0 < min_depth < max_depth, got {min_depth} and {max_depth}")
        self.min_depth, self.max_depth = min_depth, max_depth
        self.num_heads: int | None = None

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
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
        rays, own = ray_directions(_token_intrinsics(cameras), centers), (centers + 0.5) / sizes
        self.places: dict[int, tuple[Tensor, Tensor]] = {}
        for number, look in self.looks.items():
            call = self.calls[number]
            seen = image_positions(look.relative_pose, look.K_normalized[:, None], call.of_keys(rays), depths)
            seen = ((seen + 0.5) / call.of_queries(sizes)[:, :1]).clamp(*CLAMP).transpose(0, 1)
            self.places[number] = call.of_queries(own)[:, None].to(dtype), seen.to(dtype)

    def rotations(self, number: int) -> tuple[CosSin, CosSin]:
        own, seen = (image_rope(places, self.num_frequencies) for places in self.places[number])
        return own, seen


def _token_intrinsics(cameras: Cameras) -> Float[Tensor, "B L 3 3"]:
    """The intrinsics of each token; those of the first camera for tokens without one."""
    index = cameras.required("index")
    return cameras.K_normalized[torch.arange(len(cameras), device=index.device)[:, None], index.clamp(min=0)]


def _known_depth(cameras: Cameras) -> Float[Tensor, "B L"]:
    """The depth of each token's point in its own camera; NaN where it is not known, or behind the camera."""
    index = cameras.required("index")
    pose = cameras.world_to_camera[torch.arange(len(cameras), device=index.device)[:, None], index.clamp(min=0)]
    depth = (pose[..., 2, :3] * cameras.required("points")).sum(-1) + pose[..., 2, 3]
    return depth.clamp(*KNOWN_DEPTHS).where(depth > 0, torch.nan)


def _cast(seen: Seen, dtype: torch.dtype) -> Seen:
    return {space: SeenTokens(*(x.to(dtype) for x in tokens)) for space, tokens in seen.items()}
