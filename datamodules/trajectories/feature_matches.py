"""Points that are seen in two images: by SIFT where OpenCV is installed, else by the patches around corners.

Patches find the same points in frames of a video that are near in time; photographs from other sides need SIFT
(`pip install opencv-python-headless`).
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor
from torch.nn import functional as F

Matches = tuple[Float64[Tensor, "N 2"], Float64[Tensor, "N 2"]]

MAX_SIDE = 640  # of the images that are matched, in pixels
MAX_CORNERS, CORNER_DISTANCE, PATCH = 600, 9, 15  # corners of an image; pixels
MIN_CORRELATION, MAX_RATIO = 0.8, 0.85  # of two patches; of the second best distance to the best
SIFT_FEATURES, SIFT_RATIO = 2000, 0.75  # Lowe 2004, section 7.1


def match_features(first: UInt8[Tensor, "3 H W"], second: UInt8[Tensor, "3 H W"]) -> Matches:
    """Match points of two images of one size.

    Returns:
        The points in pixels of both images, counted from the corner of the image.
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
    return torch.from_numpy(a) + 0.5, torch.from_numpy(b) + 0.5  # OpenCV counts from the center of the first pixel


def _match_corners(first: Float32[Tensor, "H W"], second: Float32[Tensor, "H W"]) -> Matches:
    """Harris corners whose patches are each other's nearest by normalized correlation."""
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
    """Points of the strongest corners, and the patches around them with mean 0 and norm 1."""
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
