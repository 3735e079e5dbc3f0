"""Do cameras explain the images? Matches between frames under the four usual conventions of a pose.

A dataset's matrices are world-to-camera or camera-to-world, with OpenCV axes (x right, y down, z forward) or OpenGL's
(x right, y up, z back). Read by the wrong convention they are valid poses still, of another path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from datamodules.trajectories.feature_matches import match_features
from datamodules.video import Video, even_steps
from zoo.cameras.epipolar import epipolar_error, triangulated_depths
from zoo.cameras.intrinsics import intrinsics_in_pixels
from zoo.cameras.poses import invert_se3

OPENGL = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
GIVEN = "world-to-camera, OpenCV axes"
# world-to-camera with OpenCV axes of a matrix that was written in each convention
CONVENTIONS: dict[str, Callable[[Float64[Tensor, "N 4 4"]], Float64[Tensor, "N 4 4"]]] = {
    GIVEN: lambda M: M,
    "camera-to-world, OpenCV axes": invert_se3,
    "world-to-camera, OpenGL axes": lambda M: OPENGL @ M,
    "camera-to-world, OpenGL axes": lambda M: OPENGL @ invert_se3(M),
}

NUM_PAIRS = 12
MIN_MATCHES = 25  # of a pair of frames
MOTION, MAX_MOTION = 0.03, 0.25  # of the median match of a pair, as shares of the width
TOLERANCE = 0.005  # of a match, as a share of the width: 3 pixels of 640
FITS, MARGIN = 0.35, 0.1  # share of the matches that the right convention explains at least, and its lead


@dataclass(frozen=True)
class PairMatches:
    """Points that two frames share, in pixels.

    Attributes:
        frames: The two frames.
        points_a: In the first.
        points_b: In the second.
    """

    frames: tuple[int, int]
    points_a: Float64[Tensor, "N 2"]
    points_b: Float64[Tensor, "N 2"]


@dataclass(frozen=True)
class Fit:
    """How a convention explains the matches.

    Attributes:
        error_px: Median distance of a match to its epipolar line, in pixels.
        in_front: Share of the matches whose point lies in front of both cameras.
        explained: Share of the matches that are in front and within 0.5 % of the width of their line.
    """

    error_px: float
    in_front: float
    explained: float


def match_frames(video: Video, frames: Sequence[int], num_pairs: int = NUM_PAIRS) -> list[PairMatches]:
    """Match pairs of frames at even steps, each as far apart that the images have moved.

    Args:
        video: The video.
        frames: The sorted frames that may be used.
        num_pairs: Pairs to try.

    Returns:
        The pairs with enough matches; none of an empty list of frames or without texture.
    """
    pairs = []
    gap = max(1, round(len(frames) / 100))
    for start in even_steps(len(frames) - 1, num_pairs):
        tried: set[int] = set()
        best: tuple[float, PairMatches] | None = None
        while gap not in tried and start + gap < len(frames):
            tried.add(gap)
            pair = (frames[start], frames[start + gap])
            a, b = match_features(*video.read(pair))
            motion = float((a - b).norm(dim=1).median()) / video.width if len(a) >= MIN_MATCHES else math.inf
            if motion <= MAX_MOTION and (best is None or motion > best[0]):
                best = (motion, PairMatches(pair, a, b))
            if motion < MOTION:
                gap *= 2
            elif motion > MAX_MOTION:
                gap = max(1, gap // 2)
        gap = min(gap, max(1, len(frames) // 4))
        if best is not None:
            pairs.append(best[1])
    return pairs


def measure_conventions(
    pairs: Sequence[PairMatches],
    matrices: Float[Tensor, "N 4 4"],
    K_normalized: Float[Tensor, "N 3 3"],
    width: int,
    height: int,
) -> dict[str, Fit]:
    """Measure how each convention explains the matches; pairs without a translation say nothing.

    Args:
        pairs: Matches, at least one.
        matrices: The pose of each frame, in an unknown convention.
        K_normalized: See `zoo.cameras.normalize_intrinsics`.
        width: Of the frames in pixels.
        height: Of the frames in pixels.
    """
    K_px = intrinsics_in_pixels(K_normalized.double(), width, height)
    fits = {}
    for name, read in CONVENTIONS.items():
        errors, in_front = [], []
        for pair in pairs:
            V_a, V_b = read(matrices[list(pair.frames)].double())
            K_a, K_b = K_px[list(pair.frames)]
            seen = V_b @ invert_se3(V_a), K_a, K_b, pair.points_a, pair.points_b
            errors.append(epipolar_error(*seen))
            depth_a, depth_b = triangulated_depths(*seen)
            in_front.append((depth_a > 0) & (depth_b > 0))
        error, front = torch.cat(errors), torch.cat(in_front)
        explained = (error < TOLERANCE * width) & front
        fits[name] = Fit(float(error.median()), float(front.double().mean()), float(explained.double().mean()))
    return fits


def fitting_conventions(fits: dict[str, Fit]) -> list[str]:
    """The conventions that explain the matches, best first: one, several that can't be told apart, or none."""
    order = sorted(fits, key=lambda name: fits[name].explained, reverse=True)
    best = fits[order[0]].explained
    return [name for name in order if fits[name].explained > max(FITS, best - MARGIN)]


def find_better_convention(
    video: Video, world_to_camera: Float[Tensor, "N 4 4"], K_normalized: Float[Tensor, "N 3 3"]
) -> str:
    """Describe the convention that explains a video better than the given one; empty if none does.

    Args:
        video: The video.
        world_to_camera: Pose of each frame as it is read, NaN where unknown.
        K_normalized: See `zoo.cameras.normalize_intrinsics`.
    """
    known = world_to_camera.isfinite().flatten(1).all(1).nonzero().flatten().tolist()
    pairs = match_frames(video, known)
    if not pairs:
        return ""
    fits = measure_conventions(pairs, world_to_camera, K_normalized, video.width, video.height)
    fitting = fitting_conventions(fits)
    return "" if not fitting or GIVEN in fitting else describe_better(fits)


def describe_better(fits: dict[str, Fit]) -> str:
    """Describe the convention that explains the matches best, beside the given one."""
    best = max(fits, key=lambda name: fits[name].explained)
    shares = f"{fits[best].explained:.0%} of the matched points, against {fits[GIVEN].explained:.0%} as they are read"
    return f"read as {best}, they explain {shares}"
