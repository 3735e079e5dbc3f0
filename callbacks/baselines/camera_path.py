"""Numbers that describe the cameras of a video, whatever the world frame and the number of frames."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from jaxtyping import Float, Float64

FRAMES = 8  # evenly spread ones, of which each pair is compared
SMALLEST_M = 1e-3  # of a length whose logarithm is taken
PAIRS = tuple(zip(*combinations(range(FRAMES), 2), strict=True))


def describe_path(
    world_to_camera: Float[np.ndarray, "T 4 4"], K_normalized: Float[np.ndarray, "T 3 3"]
) -> Float64[np.ndarray, " F"] | None:
    """Return lengths, extents, pairwise distances and angles of a path; lengths as logarithms of meters.

    They are the length of the path, its extents and spreads along its principal axes, of `FRAMES` evenly spread frames
    the distance and the angle of each pair, and place and viewing direction in the first camera's frame, and of all
    frames the mean of the focal lengths' logarithms and of the principal points.

    Args:
        world_to_camera: Poses of all frames of the video, OpenCV axes; those that aren't finite are left out.
        K_normalized: Their intrinsics, see `zoo.cameras.normalize_intrinsics`.

    Returns:
        None for a path without a pose.
    """
    poses = np.asarray(world_to_camera, np.float64)
    valid = np.isfinite(poses).all((1, 2))
    poses, K = poses[valid], np.asarray(K_normalized, np.float64)[valid]
    if not len(poses):
        return None
    # 1. The whole path.
    camera_to_world = np.linalg.inv(poses)
    centers = camera_to_world[:, :3, 3]
    centered = centers - centers.mean(0)
    spreads, axes = np.linalg.eigh(centered.T @ centered / len(centered))
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
    lengths = [steps.sum(), *np.ptp(centered @ axes, axis=0), *np.sqrt(np.maximum(spreads, 0))]
    # 2. Some of its frames, seen from the first.
    chosen = np.linspace(0, len(poses) - 1, FRAMES).round().astype(int)
    from_first = poses[0] @ camera_to_world[chosen]
    places, directions = from_first[:, :3, 3], from_first[:, :3, 2]
    first, second = PAIRS
    distances = np.linalg.norm(places[list(first)] - places[list(second)], axis=1)
    angles = np.arccos(np.clip((directions[list(first)] * directions[list(second)]).sum(1), -1, 1))
    logarithms = np.log(np.maximum([*lengths, *distances], SMALLEST_M))
    # 3. What the frames show of the space in front of them.
    intrinsics = [*np.log(K[:, (0, 1), (0, 1)]).mean(0), *K[:, :2, 2].mean(0)]
    return np.concatenate([logarithms, angles, places[1:].ravel(), directions[1:].ravel(), intrinsics])
