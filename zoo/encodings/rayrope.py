"""RayRoPE (arXiv 2601.15275): rotate tokens by their possible positions on their rays, as seen from another view."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras, Scale, normalize_intrinsics
from zoo.cameras.poses import invert_se3
from zoo.cameras.rays import ray_directions
from zoo.encodings.base import DecoderLayout, HeadLayout, Rope, Symmetries
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
from zoo.encodings.urope import urope_attention as urope_attention  # beside `rayrope_attention` for other code
from zoo.encodings.urope import urope_positions as urope_positions
from zoo.errors import InputError, check_choice
from zoo.precision import full_precision, highest_matmul_precision, to_float32

# ---- Positions of tokens along their rays, and the rotations by them -------------------------------------------------

Space = Literal["pj", "3d"]  # of the attending view: its image plane, or its camera frame in meters
DepthEncoding = Literal["d", "inv_d", "asinh_d"]
KINDS = ("0", "inf", "d")  # in the order of their numbers
CORNERS = {1: ((0.5, 0.5),), 2: ((0.0, 0.0), (1.0, 1.0)), 3: ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))}
LARGEST_LOG_DEPTH = 3.0
DEPTHS = (0.01, 100.0)
CLOSE = 0.01  # radians; a shorter segment is replaced by its first end
METERS, DIRECTIONS = 4.0, 8.0  # longest periods
DEPTH_RANGES: dict[DepthEncoding, tuple[float, float, float]] = {  # longest period, smallest and largest value
    "d": (80.0, -10.0, 10.0),
    "inv_d": (80.0, 0.0, 20.0),
    "asinh_d": (8 * math.asinh(10), -math.asinh(10), math.asinh(10)),
}


class SeenTokens(NamedTuple):
    """Tokens in the space of the attending view. The point at depth d of a ray is (direction + center / d, 1 / d).

    Points are homogeneous, so that they can be at infinity.

    Attributes:
        directions: Directions of each token's rays, at depth 1.
        centers: The camera center of each token.
    """

    directions: Float[Tensor, "*batch L R 3"]
    centers: Float[Tensor, "*batch L 3"]


@dataclass(frozen=True)
class RayPositions:
    """The values by which RayRoPE (arXiv 2601.15275) rotates a token, and their frequencies.

    Attributes:
        points: Kinds of points joined by "+": `0` for the camera center, `d` for the points on the rays at both ends of
            the token's depth range, `inf` for the directions of the rays. Each is either in the attending view's image
            (`_pj`, a direction and a depth) or in meters (`_3d`).
        rays: Number of rays per token: 3 through three corners, 2 through two corners, 1 through the center.
        depth_encoding: How a depth in the image is encoded: itself, its inverse, or its asinh.
        freq_base: Ratio of consecutive frequencies.

    Raises:
        InputError: Points, depth encoding or number of rays are unknown.
    """

    points: str = "d_pj+0_3d"
    rays: int = 3
    depth_encoding: DepthEncoding = "d"
    freq_base: float = 3.0

    def __post_init__(self) -> None:
        check_choice("depth_encoding", self.depth_encoding, DepthEncoding)
        if self.rays not in CORNERS:
            raise InputError(f"rays must be 1, 2 or 3, got {self.rays}")
        pairs = [each.rpartition("_")[::2] for each in self.points.split("+")]
        if any(kind not in KINDS or space not in get_args(Space) for kind, space in pairs):
            raise InputError(f"points must be some of 0, d and inf with _pj or _3d, joined by +, got {self.points!r}")
        if len({kind for kind, _ in pairs}) < len(pairs):
            raise InputError(f"points must name each of 0, d and inf at most once, got {self.points!r}")
        if not self.freq_base > 0:
            raise InputError(f"freq_base must be positive, got {self.freq_base}")

    @cached_property
    def spaces(self) -> dict[str, Space]:
        """The space of each kind of point, in the order of the values."""
        given = dict(each.rpartition("_")[::2] for each in self.points.split("+"))
        return {kind: given[kind] for kind in KINDS if kind in given}  # type: ignore[misc]

    @cached_property
    def periods(self) -> list[float]:
        """The longest period of each value."""
        depth = DEPTH_RANGES[self.depth_encoding][0]
        of_kind = {
            ("0", "3d"): [METERS] * 3,
            ("0", "pj"): [DIRECTIONS] * 2 + [depth],
            ("inf", "3d"): [DIRECTIONS] * 3 * self.rays,
            ("inf", "pj"): [DIRECTIONS] * 3 * self.rays,
            ("d", "3d"): [METERS] * 3 * self.rays,
            ("d", "pj"): [DIRECTIONS] * 2 * self.rays + [depth] * self.rays,
        }
        return [period for pair in self.spaces.items() for period in of_kind[pair]]

    def frequencies(self, channels: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "f n"]:
        """Compute the frequencies of each value for this many rotated channels, without waiting for a GPU.

        Raises:
            InputError: The channels are not a multiple of two per value.
        """
        count = 2 * len(self.periods)
        if channels < count or channels % count:
            raise InputError(
                f"{self.points} of {self.rays} rays has {count // 2} numbers: {channels} channels are not a multiple "
                f"of {count}, take {channels // count * count or count} of them"
            )
        powers = self.freq_base ** torch.arange(channels // count, dtype=dtype)
        return (2 * math.pi / torch.tensor(self.periods, dtype=dtype) * powers[:, None]).to(device, non_blocking=True)

    def corners(self, like: Tensor) -> Float[Tensor, "R 2"]:
        """Return where the rays pass through a token, from (0, 0) to (1, 1)."""
        return torch.tensor(CORNERS[self.rays], dtype=like.dtype).to(like.device, non_blocking=True)

    def seen_from(
        self,
        relative_pose: Float[Tensor, "*batch L 4 4"],
        K_normalized: Float[Tensor, "*batch 3 3"],
        rays: Float[Tensor, "*#batch L R 3"],
    ) -> dict[Space, SeenTokens]:
        """Express tokens in the spaces of an attending view. The result does not depend on their depth.

        Args:
            relative_pose: Pose from the camera of each token to the attending view's camera.
            K_normalized: Intrinsics of the attending view.
            rays: Rays of each token in its own camera, at depth 1, see `ray_directions`.
        """
        metric = SeenTokens(rays @ relative_pose[..., :3, :3].mT, relative_pose[..., :3, 3])
        seen: dict[Space, SeenTokens] = {"3d": metric}
        if "pj" in self.spaces.values():
            focal, principal = K_normalized.diagonal(dim1=-2, dim2=-1)[..., :2], K_normalized[..., :2, 2]
            seen["pj"] = SeenTokens(
                _project(metric.directions, focal[..., None, None, :], principal[..., None, None, :]),
                _project(metric.centers, focal[..., None, :], principal[..., None, :]),
            )
        return seen

    def coefficients(
        self,
        seen: Mapping[Space, SeenTokens],
        depths: Float[Tensor, "*#batch L R ends"],
        frequencies: Float[Tensor, "f n"],
    ) -> CosSin:
        """Compute the cosine and sine of tokens, averaged over the depths between their two ends.

        An uncertain position shrinks the rotation, which is then not orthogonal.

        Args:
            seen: Tokens from `seen_from`.
            depths: Both ends of the depth of each ray, or one depth.
            frequencies: See `frequencies`.

        Returns:
            Cosine and sine of f times n channel pairs, ordered by frequency.
        """
        exact: list[Tensor] = []
        ends: list[list[Tensor]] = [[] for _ in range(depths.shape[-1])]
        for kind, space in self.spaces.items():
            if kind == "d":
                directions, centers = seen[space].directions, seen[space].centers[..., None, :]
                for numbers, depth in zip(ends, depths[..., None].unbind(-2), strict=True):
                    numbers += self._numbers(directions + centers / depth, depth, space)
            elif kind == "0":
                centers = seen[space].centers[..., None, :]
                exact += self._numbers(centers, torch.ones_like(centers[..., :1]), space)
            else:
                exact.append(_unit(seen[space].directions).flatten(-2))
        parts: list[tuple[Tensor, Tensor]] = []
        count = 0
        if exact:
            angles = torch.cat(exact, -1)[..., None, :]
            count = angles.shape[-1]
            angles = angles * frequencies[:, :count]
            parts.append((angles.cos(), angles.sin()))
        if ends[0]:
            bounds = [torch.cat(numbers, -1)[..., None, :] * frequencies[:, count:] for numbers in ends]
            parts.append(_mean_rotation(bounds[0], bounds[-1]))
        cos, sin = (torch.cat(each, -1).flatten(-2) for each in zip(*parts, strict=True))
        return cos, sin

    def _numbers(
        self, points: Float[Tensor, "*batch L R 3"], depth: Float[Tensor, "*#batch L R 1"], space: Space
    ) -> list[Tensor]:
        """Return the values of points times 1 / depth: coordinates, or directions by ray and then depths."""
        if space == "3d":
            return [(points * depth).flatten(-2)]
        _, low, high = DEPTH_RANGES[self.depth_encoding]
        z = (points[..., 2].square() + 1e-9).sqrt().clamp(min=1e-4) * depth[..., 0]  # the sign of z is ignored
        if self.depth_encoding == "inv_d":
            z = 1 / z
        elif self.depth_encoding == "asinh_d":
            z = z.asinh()
        return [_unit(points)[..., :2].flatten(-2), z.clamp(low, high)]


def depth_ends(raw_depth: Float[Tensor, "*batch L ends"]) -> Float[Tensor, "*batch L ends"]:
    """Compute both ends of the tokens' depth range from (log depth, half width of the log depth), or one depth.

    Args:
        raw_depth: Output of a linear map. A negative width exchanges the ends.
    """
    if raw_depth.shape[-1] == 2:
        middle, half = raw_depth.unbind(-1)
        raw_depth = torch.stack((middle - half, middle + half), -1)
    return raw_depth.clamp(max=LARGEST_LOG_DEPTH).exp().clamp(*DEPTHS)


def _project(x: Tensor, focal: Tensor, principal: Tensor) -> Tensor:
    return torch.cat((x[..., :2] * focal + x[..., 2:] * principal, x[..., 2:]), -1)


def _unit(x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    return x / (x.norm(dim=-1, keepdim=True) + 1e-6)


def _mean_rotation(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cosine and sine over the angles between two. If they are close, use the first."""
    width = last - first
    is_close = width.abs() <= CLOSE
    width = width.masked_fill(is_close, 1.0)
    cos_a, sin_a = first.cos(), first.sin()
    return (
        torch.where(is_close, cos_a, (last.sin() - sin_a) / width),
        torch.where(is_close, sin_a, (cos_a - last.cos()) / width),
    )


# ---- Attention between views, as published ---------------------------------------------------------------------------

KNOWN_DEPTHS = (1e-4, 100.0)
KeyViews = tuple[Float[Tensor, "B V 4 4"], Float[Tensor, "B V 3 3"], Float[Tensor, "B N ends"]]


def rayrope_attention(
    q: Float[Tensor, "B H L D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    world_to_camera: Float[Tensor, "B C 4 4"],
    K_px: Float[Tensor, "B C 3 3"],
    raw_depth: Float[Tensor, "B L ends"],
    *,
    patches_x: int,
    patches_y: int,
    image_width: int | float,
    image_height: int | float,
    points: str = "d_pj+0_3d",
    rays: int = 3,
    depth_encoding: DepthEncoding = "d",
    freq_base: float = 3.0,
    transform_values: bool = True,
    known_depth: Float[Tensor, "B n height width 1"] | None = None,
    keys: KeyViews | None = None,
) -> Float[Tensor, "B H L D"]:
    """Compute attention between views with RayRoPE.

    For each view, all keys and values are rotated by their positions as seen from it, its queries are rotated by their
    positions in their own view, and the output is rotated back.

    Args:
        q: Queries, ordered by camera, patch row and patch column; L = C * patches_y * patches_x.
        k: Keys in the same order.
        v: Values in the same order.
        world_to_camera: Rigid poses, OpenCV axes.
        K_px: Intrinsics in pixels of the image, skew ignored.
        raw_depth: Log depth and half width of the log depth of each token. With a last axis of 1 there is no width.
        patches_x: Patches per row.
        patches_y: Patches per column.
        image_width: In pixels.
        image_height: In pixels.
        points: See `RayPositions`.
        rays: See `RayPositions`.
        depth_encoding: See `RayPositions`.
        freq_base: See `RayPositions`.
        transform_values: Rotate values and outputs as well.
        known_depth: Depth maps of the first n key views, which replace their predicted depth.
        keys: Poses, intrinsics and depth of the key views in cross-attention. None uses the queries' views.

    Returns:
        The output, in the dtype of the inputs.

    Raises:
        InputError: D is not a multiple of two per number of `RayPositions`.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 1, 2, 8, 24).double()  # 2 heads; 2 cameras of 2 x 2 patches
        >>> V = torch.eye(4).double().repeat(1, 2, 1, 1)
        >>> V[:, 1, 0, 3] = 0.5
        >>> K = torch.tensor([[30.0, 0, 14], [0, 30, 14], [0, 0, 1]]).double().expand(1, 2, 3, 3)
        >>> depth = torch.tensor([0.0, 3.0]).double().expand(1, 8, 2)  # from 0.05 to 20 m
        >>> size = {"patches_x": 2, "patches_y": 2, "image_width": 28, "image_height": 28}
        >>> out = rayrope_attention(q, k, v, V, K, depth, **size)
        >>> world = torch.eye(4).double()
        >>> world[:3, 3] = torch.tensor([1.0, -2.0, 3.0])
        >>> torch.allclose(out, rayrope_attention(q, k, v, V @ world, K, depth, **size))  # a change of world cancels
        True
    """
    own, seen = rayrope_coefficients(
        world_to_camera,
        K_px,
        raw_depth,
        head_dim=q.shape[-1],
        patches_x=patches_x,
        patches_y=patches_y,
        image_width=image_width,
        image_height=image_height,
        points=points,
        rays=rays,
        depth_encoding=depth_encoding,
        freq_base=freq_base,
        known_depth=known_depth,
        keys=keys,
    )
    outputs = []
    of_views = (x.split(patches_x * patches_y, -2) for x in (q, own[0][:, None], own[1][:, None]))
    for queries, cos, sin, of_keys in zip(*of_views, seen, strict=True):
        cos_kv, sin_kv = (x[:, None] for x in of_keys)
        values = rotate_pairs(v, cos_kv, sin_kv) if transform_values else v
        output = F.scaled_dot_product_attention(
            rotate_pairs(queries, cos, sin), rotate_pairs(k, cos_kv, sin_kv), values
        )
        outputs.append(rotate_pairs(output, cos, -sin) if transform_values else output)
    return torch.cat(outputs, -2)


def rayrope_coefficients(
    world_to_camera: Float[Tensor, "B C 4 4"],
    K_px: Float[Tensor, "B C 3 3"],
    raw_depth: Float[Tensor, "B L ends"],
    *,
    head_dim: int,
    patches_x: int,
    patches_y: int,
    image_width: int | float,
    image_height: int | float,
    known_depth: Float[Tensor, "B n height width 1"] | None = None,
    keys: KeyViews | None = None,
    transform_values: bool = True,
    **positions: Any,
) -> tuple[CosSin, list[CosSin]]:
    """Compute the rotations of `rayrope_attention`.

    The arguments are the same, without q, k and v, and with `head_dim`, the number of channels per head.
    `transform_values` does not change the result.

    Returns:
        Cosine and sine (B, L, D/2) of the queries in their own views, and for each view those of all keys.
    """
    scheme = RayPositions(**positions)
    frequencies = scheme.frequencies(head_dim, world_to_camera.dtype, world_to_camera.device)
    views = partial(_Views.of, scheme, (patches_x, patches_y), (image_width, image_height))
    queries = views((world_to_camera, K_px, raw_depth), known_depth if keys is None else None)
    of_keys = queries if keys is None else views(keys, known_depth)
    # 1. Queries, each in its own view.
    rays, depths = (x.unflatten(1, (-1, patches_x * patches_y)) for x in (queries.rays, queries.depths))
    same = torch.eye(4, dtype=rays.dtype, device=rays.device).expand(*rays.shape[:3], 4, 4)
    seen = []
    with highest_matmul_precision(raw_depth.device):
        own = scheme.coefficients(scheme.seen_from(same, queries.K, rays), depths, frequencies)
        # 2. All keys, as seen from each query view.
        for view in range(world_to_camera.shape[1]):
            relative = queries.poses[:, view, None] @ invert_se3(of_keys.poses)
            relative = relative.repeat_interleave(patches_x * patches_y, 1)
            tokens = scheme.seen_from(relative, queries.K[:, view], of_keys.rays)
            seen.append(scheme.coefficients(tokens, of_keys.depths, frequencies))
    return (own[0].flatten(1, 2), own[1].flatten(1, 2)), seen


class _Views(NamedTuple):
    """Views, and the rays of their tokens in their own cameras."""

    poses: Float[Tensor, "B V 4 4"]
    K: Float[Tensor, "B V 3 3"]
    rays: Float[Tensor, "B N R 3"]
    depths: Float[Tensor, "B N R ends"]

    @classmethod
    def of(
        cls,
        scheme: RayPositions,
        patches: tuple[int, int],
        image_size: tuple[int | float, int | float],
        views: KeyViews,
        known_depth: Tensor | None,
    ) -> _Views:
        (poses, K_px, raw_depth), (patches_x, patches_y) = views, patches
        K = normalize_intrinsics(K_px, *image_size)
        y, x = torch.meshgrid(torch.arange(patches_y), torch.arange(patches_x), indexing="ij")
        places = torch.stack((x, y), -1).flatten(0, 1).to(raw_depth)  # (P, 2)
        size = torch.tensor(patches).to(raw_depth)
        corners = (places[:, None] + scheme.corners(raw_depth)) / size  # (P, R, 2), from 0 to 1
        rays = ray_directions(K[:, :, None, None], corners - 0.5)
        depths = depth_ends(raw_depth)[:, :, None].expand(-1, -1, scheme.rays, -1)
        if known_depth is not None:
            height, width = known_depth.shape[2:4]
            pixel = (corners * torch.tensor([width, height]).to(raw_depth) - 0.5).round().long()  # half to even
            column, row = pixel[..., 0].clamp(0, width - 1), pixel[..., 1].clamp(0, height - 1)
            known = known_depth[:, :, row, column].clamp(*KNOWN_DEPTHS).flatten(1, 2)
            known = known.expand(-1, -1, -1, depths.shape[-1])  # all ends are the same
            depths = torch.cat((known.to(depths), depths[:, known.shape[1] :]), 1)
        return cls(poses, K, rays.flatten(1, 2), depths)


# ---- RayRoPE in a decoder's attention --------------------------------------------------------------------------------

DepthSource = Literal["predicted", "known"]
Seen = dict[Space, SeenTokens]
INITIAL_DEPTH = (0.0, 3.0)  # initial raw depth of every token: from 0.05 to 20 m


class RayRoPE(PerViewEncoding):
    """RayRoPE (arXiv 2601.15275): rotate tokens by where they may be on their rays, as the attending view sees them.

    Each layer predicts the depth of each token and its uncertainty. An uncertain depth shrinks the rotation.

    Args:
        points: See `RayPositions`.
        rays: See `RayPositions`.
        depth_encoding: See `RayPositions`.
        freq_base: See `RayPositions`.
        depth: `predicted`: each layer predicts the depth, supervised by `RayDepthPrediction`. `known`: the median depth
            within the token, from the dataset or, with `--model.camera_source predicted`, from the geometry encoder.
            Where it is unknown, the predicted depth is used.
        predicts_width: Also predict the half width of the log depth. Otherwise depths are certain.
        apply_to: See `PerViewEncoding`.
        channels: See `PerViewEncoding`.
        scale: See `PerViewEncoding`.

    Example:
        >>> from zoo.encodings.base import HeadLayout
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
        are_directions = spaces.keys() == {"inf"}  # directions have no length
        return replace(base, scale=base.scale or are_directions, intrinsics=spaces == {"0": "3d"})

    @property
    def rotates_by_depth(self) -> bool:
        """Whether the rotation uses a point at the token's depth."""
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
        """Predict the depth of tokens in one layer, see `depth_ends`. None where the encoding does not act."""
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
    """The rays of a batch as its views see them. `at_layer` adds their depths.

    Args:
        cameras: See `PerViewAttention`.
        channels: See `PerViewAttention`.
        encoding: The encoding, with its options and each layer's depth prediction.
        dtype: Dtype of the rotations.
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
            # keeps the first one: a recomputed prediction has no gradient, and would keep its activations
            self._raw_depths.setdefault(layer, raw_depth)
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
    """Return the depth of each token's point in its own camera. NaN where it is unknown or behind the camera."""
    index = cameras.required("index")
    pose = cameras.world_to_camera[torch.arange(len(cameras), device=index.device)[:, None], index.clamp(min=0)]
    depth = (pose[..., 2, :3] * cameras.required("points")).sum(-1) + pose[..., 2, 3]
    return depth.clamp(*KNOWN_DEPTHS).where(depth > 0, torch.nan)


def _cast(seen: Seen, dtype: torch.dtype) -> Seen:
    return {space: SeenTokens(*(x.to(dtype) for x in tokens)) for space, tokens in seen.items()}
