"""Two-view geometry: how well a pose explains points that were matched between two images.

A point in one image lies on a line in the other. The relative pose determines the line, except for the length of its
translation and its sign. The sign follows from the depth: what is visible lies in front of both cameras.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor
from torch.nn import functional as F

from datamodules.video import Video, even_steps
from zoo.cameras.poses import intrinsics_in_pixels, invert_se3


def epipolar_error(
    relative: Float[Tensor, "4 4"],
    K_px_a: Float[Tensor, "3 3"],
    K_px_b: Float[Tensor, "3 3"],
    points_a: Float[Tensor, "N 2"],
    points_b: Float[Tensor, "N 2"],
) -> Float[Tensor, " N"]:
    """Compute the Sampson distance of matches to their epipolar lines, in pixels.

    Args:
        relative: Maps points of camera a to camera b: V_b V_a^-1.
        K_px_a: Intrinsics of a in pixels.
        K_px_b: Intrinsics of b in pixels.
        points_a: Matched points in the image of a, in pixels.
        points_b: The same points in the image of b.

    Example:
        >>> import torch
        >>> relative, K = torch.eye(4), torch.eye(3)
        >>> relative[0, 3] = -1.0  # b is to the right of a: points keep their row
        >>> a, b = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[-5.0, 0.0], [-5.0, 2.0]])
        >>> [round(error, 2) for error in epipolar_error(relative, K, K, a, b).tolist()]
        [0.0, 1.41]
    """
    R, (x, y, z) = relative[:3, :3], relative[:3, 3]
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero)).reshape(3, 3)
    F = torch.linalg.inv(K_px_b).mT @ cross @ R @ torch.linalg.inv(K_px_a)
    a, b = _homogeneous(points_a), _homogeneous(points_b)
    line_b, line_a = a @ F.mT, b @ F
    gradient = (line_a[:, :2].square() + line_b[:, :2].square()).sum(1)
    return (b * line_b).sum(1).abs() / gradient.sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)


def triangulated_depths(
    relative: Float[Tensor, "4 4"],
    K_px_a: Float[Tensor, "3 3"],
    K_px_b: Float[Tensor, "3 3"],
    points_a: Float[Tensor, "N 2"],
    points_b: Float[Tensor, "N 2"],
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Compute the depth of matched points in both cameras. The arguments are as in `epipolar_error`.

    Returns:
        Depth along the z axes of a and b. It is negative where the rays meet behind the camera, and NaN where they are
        parallel.

    Example:
        >>> import torch
        >>> relative, K = torch.eye(4), torch.eye(3)
        >>> relative[2, 3] = -1.0  # b is one unit ahead of a
        >>> triangulated_depths(relative, K, K, torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 0.0]]))
        (tensor([2.]), tensor([1.]))
    """
    ray_a = _homogeneous(points_a) @ (relative[:3, :3] @ torch.linalg.inv(K_px_a)).mT  # in b's axes
    ray_b = _homogeneous(points_b) @ torch.linalg.inv(K_px_b).mT
    t = relative[:3, 3].expand_as(ray_a)
    normal = torch.linalg.cross(ray_b, ray_a)
    length = normal.square().sum(1)
    depth_a = -(normal * torch.linalg.cross(ray_b, t)).sum(1) / length
    depth_b = -(normal * torch.linalg.cross(ray_a, t)).sum(1) / length
    return depth_a, depth_b


def _homogeneous(points: Float[Tensor, "N 2"]) -> Float[Tensor, "N 3"]:
    return torch.cat((points, torch.ones_like(points[:, :1])), 1)


# ---- Matching points of two images: by SIFT if OpenCV is installed, otherwise by the patches around corners ---------
# Patches match frames of a video that are near in time. Photographs from different sides need SIFT
# (`pip install opencv-python-headless`)

Matches = tuple[Float64[Tensor, "N 2"], Float64[Tensor, "N 2"]]

MAX_SIDE = 640  # of the matched images, in pixels
MAX_CORNERS, CORNER_DISTANCE, PATCH = 600, 9, 15  # corners per image; pixels; pixels
MIN_CORRELATION, MAX_RATIO = 0.8, 0.85  # correlation of two patches; best distance over second best distance
SIFT_FEATURES, SIFT_RATIO = 2000, 0.75  # Lowe 2004, section 7.1


def match_features(first: UInt8[Tensor, "3 H W"], second: UInt8[Tensor, "3 H W"]) -> Matches:
    """Match points of two images of one size.

    Returns:
        The points in pixels of both images, measured from the corner of the image.
    """
    height, width = first.shape[1:]
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = (round(height * scale), round(width * scale))
    images = torch.stack((first, second)).float().mean(1, keepdim=True)
    gray = F.interpolate(images, size, mode="area")[:, 0]
    match = _match_sift if importlib.util.find_spec("cv2") else _match_corners
    stretch = torch.tensor([width / size[1], height / size[0]], dtype=torch.float64)
    a, b = match(*gray)
    return a * stretch, b * stretch


def _match_sift(first: Float32[Tensor, "H W"], second: Float32[Tensor, "H W"]) -> Matches:
    import cv2

    sift = cv2.SIFT_create(SIFT_FEATURES)
    (points_a, features_a), (points_b, features_b) = (
        sift.detectAndCompute(image.round().byte().numpy(), None) for image in (first, second)
    )
    if features_a is None or features_b is None or len(points_b) < 2:
        return torch.empty(0, 2, dtype=torch.float64), torch.empty(0, 2, dtype=torch.float64)
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(features_a, features_b, k=2)
    kept = [best for best, other in nearest if best.distance < SIFT_RATIO * other.distance]
    a = np.array([points_a[match.queryIdx].pt for match in kept], dtype=np.float64).reshape(-1, 2)
    b = np.array([points_b[match.trainIdx].pt for match in kept], dtype=np.float64).reshape(-1, 2)
    return torch.from_numpy(a) + 0.5, torch.from_numpy(b) + 0.5  # OpenCV's origin is the center of the first pixel


def _match_corners(first: Float32[Tensor, "H W"], second: Float32[Tensor, "H W"]) -> Matches:
    """Match Harris corners whose patches are mutual nearest neighbors by normalized correlation."""
    (points_a, patches_a), (points_b, patches_b) = _corners(first), _corners(second)
    if min(len(points_a), len(points_b)) < 2:
        return points_a[:0], points_b[:0]
    correlation = patches_a @ patches_b.mT
    (best, other), (found, _) = correlation.topk(2).values.mT, correlation.topk(2).indices.mT
    is_mutual = correlation.argmax(0)[found] == torch.arange(len(points_a))
    is_distinct = (1 - best) < MAX_RATIO**2 * (1 - other)  # squared distances of unit vectors
    kept = is_mutual & is_distinct & (best > MIN_CORRELATION)
    return points_a[kept], points_b[found[kept]]


def _corners(image: Float32[Tensor, "H W"]) -> tuple[Float64[Tensor, "N 2"], Float32[Tensor, "N D"]]:
    """Return the strongest corners, and the patches around them with mean 0 and norm 1."""
    gray = F.avg_pool2d(image[None, None], 3, 1, 1)
    dy, dx = torch.gradient(gray[0, 0])
    xx, yy, xy = F.avg_pool2d(torch.stack((dx * dx, dy * dy, dx * dy))[:, None], 5, 1, 2)[:, 0]
    response = xx * yy - xy * xy - 0.05 * (xx + yy).square()
    highest = F.max_pool2d(response[None, None], CORNER_DISTANCE, 1, CORNER_DISTANCE // 2)[0, 0]
    margin, inside = PATCH // 2, torch.zeros_like(response, dtype=torch.bool)
    inside[margin:-margin, margin:-margin] = True
    is_corner = (response == highest) & (response > 0) & inside
    rows, columns = is_corner.nonzero().mT
    order = response[rows, columns].argsort(descending=True)[:MAX_CORNERS]
    rows, columns = rows[order], columns[order]
    step = torch.arange(-margin, margin + 1)
    patches = gray[0, 0][rows[:, None, None] + step[:, None], columns[:, None, None] + step].flatten(1)
    patches = F.normalize(patches - patches.mean(1, keepdim=True), dim=1)
    return torch.stack((columns, rows), 1).double() + 0.5, patches


# ---- Checking cameras against the images: matches under the four usual conventions of a pose ------------------------
# A dataset's matrices are world-to-camera or camera-to-world, with OpenCV axes (x right, y down, z forward) or OpenGL
# axes (x right, y up, z back). In the wrong convention they are still valid poses, but of another path

OPENGL = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
GIVEN = "world-to-camera, OpenCV axes"
# convert a matrix of each convention to world-to-camera with OpenCV axes
CONVENTIONS: dict[str, Callable[[Float64[Tensor, "N 4 4"]], Float64[Tensor, "N 4 4"]]] = {
    GIVEN: lambda M: M,
    "camera-to-world, OpenCV axes": invert_se3,
    "world-to-camera, OpenGL axes": lambda M: OPENGL @ M,
    "camera-to-world, OpenGL axes": lambda M: OPENGL @ invert_se3(M),
}

NUM_PAIRS = 12
MIN_MATCHES = 25  # per pair of frames
MOTION, MAX_MOTION = 0.03, 0.25  # bounds of the median motion of a pair's matches, as shares of the width
TOLERANCE = 0.005  # distance of a match to its line, as a share of the width: 3 pixels of 640
FITS, MARGIN = 0.35, 0.1  # smallest share of matches that the right convention explains, and its lead


@dataclass(frozen=True)
class PairMatches:
    """Matched points of two frames, in pixels.

    Attributes:
        frames: The two frames.
        points_a: Points in the first frame.
        points_b: Points in the second frame.
    """

    frames: tuple[int, int]
    points_a: Float64[Tensor, "N 2"]
    points_b: Float64[Tensor, "N 2"]


@dataclass(frozen=True)
class Fit:
    """How well a convention explains the matches.

    Attributes:
        error_px: Median distance of a match to its epipolar line, in pixels.
        in_front: Share of matches whose point lies in front of both cameras.
        explained: Share of matches that are in front and within 0.5 % of the width of their line.
    """

    error_px: float
    in_front: float
    explained: float


def match_frames(video: Video, frames: Sequence[int], num_pairs: int = NUM_PAIRS) -> list[PairMatches]:
    """Match pairs of frames at even steps. The two frames are so far apart that the images have moved.

    Args:
        video: The video.
        frames: The sorted frames that may be used.
        num_pairs: Number of pairs to try.

    Returns:
        The pairs with enough matches. Empty without frames or without texture.
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
    """Measure how well each convention explains the matches. Pairs without a translation are not informative.

    Args:
        pairs: Matches, at least one pair.
        matrices: The pose of each frame, in an unknown convention.
        K_normalized: See `zoo.cameras.normalize_intrinsics`.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
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
    """Return the conventions that explain the matches, best first: one, several indistinguishable ones, or none."""
    order = sorted(fits, key=lambda name: fits[name].explained, reverse=True)
    best = fits[order[0]].explained
    return [name for name in order if fits[name].explained > max(FITS, best - MARGIN)]


def find_better_convention(
    video: Video, world_to_camera: Float[Tensor, "N 4 4"], K_normalized: Float[Tensor, "N 3 3"]
) -> str:
    """Describe the convention that explains a video better than the present one. Empty if there is none.

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
    """Describe the convention that explains the matches best, compared with the present one."""
    best = max(fits, key=lambda name: fits[name].explained)
    shares = f"{fits[best].explained:.0%} of the matched points, against {fits[GIVEN].explained:.0%} as they are read"
    return f"read as {best}, they explain {shares}"
