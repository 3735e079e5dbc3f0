"""Positions of tokens along their rays, as another view sees them, and the rotations by them (RayRoPE)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.errors import InputError, check_choice

Space = Literal["pj", "3d"]  # of the looking view: its image, or the meters of its axes
DepthEncoding = Literal["d", "inv_d", "asinh_d"]
CosSin = tuple[Float[Tensor, "*batch L F"], Float[Tensor, "*batch L F"]]

KINDS = ("0", "inf", "d")  # in the order of their numbers
CORNERS = {1: ((0.5, 0.5),), 2: ((0.0, 0.0), (1.0, 1.0)), 3: ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))}
LARGEST_LOG_DEPTH = 3.0
DEPTHS = (0.01, 100.0)
CLOSE = 0.01  # radians between the ends of a segment, below which it is its first end
METERS, DIRECTIONS = 4.0, 8.0  # longest periods
DEPTH_RANGES: dict[DepthEncoding, tuple[float, float, float]] = {  # longest period, least and largest number
    "d": (80.0, -10.0, 10.0),
    "inv_d": (80.0, 0.0, 20.0),
    "asinh_d": (8 * math.asinh(10), -math.asinh(10), math.asinh(10)),
}


class SeenTokens(NamedTuple):
    """Tokens in the space of a looking view: the point of a ray at depth d is (direction + center / d, 1 / d).

    Points are homogeneous, as those at infinity are.

    Attributes:
        directions: Of the rays of each token, at depth 1.
        centers: The camera center of each token.
    """

    directions: Float[Tensor, "*batch L R 3"]
    centers: Float[Tensor, "*batch L 3"]


@dataclass(frozen=True)
class RayPositions:
    """The numbers by which RayRoPE (arXiv 2601.15275) rotates a token, and their frequencies.

    Attributes:
        points: Joined by "+": `0` for the camera center, `d` for the rays at the two ends of the token's depth, `inf`
            for their directions; each in the looking view's image (`_pj`, a direction and a depth) or in meters
            (`_3d`).
        rays: Through three corners of a token, two, or its center.
        depth_encoding: The depth in an image itself, its inverse, or its asinh.
        freq_base: Ratio of consecutive frequencies.

    Raises:
        InputError: Unknown points, depth encoding or number of rays.
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
        """The space of each kind of point, in the order of the numbers."""
        given = dict(each.rpartition("_")[::2] for each in self.points.split("+"))
        return {kind: given[kind] for kind in KINDS if kind in given}  # type: ignore[misc]

    @cached_property
    def periods(self) -> list[float]:
        """The longest period of each number."""
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
        """Compute the frequencies of each number that rotate this many channels, without waiting for a GPU.

        Raises:
            InputError: The channels are not a multiple of two per number.
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
        """Express tokens in the spaces of a looking view; nothing of it depends on their depth.

        Args:
            relative_pose: From the camera of each token to that of the looking view.
            K_normalized: Of the looking view.
            rays: Of each token in its own camera, at depth 1, see `ray_directions`.
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

        A position that is vague shrinks the rotation, which is then not orthogonal.

        Args:
            seen: From `seen_from`.
            depths: Both ends of the depth of each ray, or one depth.
            frequencies: See `frequencies`.

        Returns:
            Of f times n channel pairs, frequency by frequency.
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
        """The numbers of points times 1 / depth: coordinates, or directions ray by ray and then depths."""
        if space == "3d":
            return [(points * depth).flatten(-2)]
        _, low, high = DEPTH_RANGES[self.depth_encoding]
        z = (points[..., 2].square() + 1e-9).sqrt().clamp(min=1e-4) * depth[..., 0]  # behind the view as before it
        if self.depth_encoding == "inv_d":
            z = 1 / z
        elif self.depth_encoding == "asinh_d":
            z = z.asinh()
        return [_unit(points)[..., :2].flatten(-2), z.clamp(low, high)]


def depth_ends(raw_depth: Float[Tensor, "*batch L ends"]) -> Float[Tensor, "*batch L ends"]:
    """Compute the depths between which tokens are, from (log depth, half width of the log depth), or one depth.

    Args:
        raw_depth: As a linear map predicts them. A negative width exchanges the ends.
    """
    if raw_depth.shape[-1] == 2:
        middle, half = raw_depth.unbind(-1)
        raw_depth = torch.stack((middle - half, middle + half), -1)
    return raw_depth.clamp(max=LARGEST_LOG_DEPTH).exp().clamp(*DEPTHS)


def rotate_pairs(
    x: Float[Tensor, "*batch L D"], cos: Float[Tensor, "*#batch L F"], sin: Float[Tensor, "*#batch L F"]
) -> Float[Tensor, "*batch L D"]:
    """Rotate the pairs (c, c + D/2) by minus their angles; with minus the sine, back."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), -1)


def _project(x: Tensor, focal: Tensor, principal: Tensor) -> Tensor:
    return torch.cat((x[..., :2] * focal + x[..., 2:] * principal, x[..., 2:]), -1)


def _unit(x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    return x / (x.norm(dim=-1, keepdim=True) + 1e-6)


def _mean_rotation(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of cosine and sine over the angles between two; where those are close, of the first."""
    width = last - first
    is_close = width.abs() <= CLOSE
    width = width.masked_fill(is_close, 1.0)
    cos_a, sin_a = first.cos(), first.sin()
    return (
        torch.where(is_close, cos_a, (last.sin() - sin_a) / width),
        torch.where(is_close, sin_a, (cos_a - last.cos()) / width),
    )
