"""The reference view of a clip, whose frame is its world, and the length that its translations are divided by."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.cameras.poses import invert_se3, pose_distance

SCALE_FLOOR = 1e-2  # smallest length to divide by, in the unit of the poses, for a static camera

ReferenceView = Literal["first", "middle", "medoid", "saddle_balanced"]
Scale = Literal["none", "mean", "max", "rms", "median_depth"]


def choose_view(
    world_to_camera: Float[Tensor, "B C 4 4"],
    used: Bool[Tensor, "B C"],
    reference: Literal["first", "middle", "medoid"],
) -> Int[Tensor, " B"]:
    """Choose one of the used cameras of each sample by their poses, see `Cameras.reference_view`."""
    if reference == "first":
        return used.int().argmax(1)
    if reference == "middle":
        return (used.cumsum(1) > used.sum(1, keepdim=True) // 2).int().argmax(1)
    poses = world_to_camera.double()
    angle, distance = pose_distance(poses[:, :, None], poses[:, None])
    pairs = used[:, :, None] & used[:, None]
    mean = (distance * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
    cost = ((angle + distance / mean.clamp(min=SCALE_FLOOR)[:, None, None]) * pairs).sum(2)
    cost = cost.masked_fill(~used, torch.inf)
    # the tolerance keeps rounding from choosing between two equally good views, such as the only two
    return (cost <= cost.amin(1, keepdim=True) * (1 + 1e-6) + 1e-9).int().argmax(1)


def spread_of_centers(
    world_to_camera: Float[Tensor, "B C 4 4"],
    used: Bool[Tensor, "B C"],
    scale: Literal["mean", "max", "rms"],
) -> Float[Tensor, " B"]:
    """Compute the `mean`, `max` or `rms` distance of the used camera centers from their mean, in float64."""
    used = used[..., None]
    count = used.sum(1).clamp(min=1)
    centers = invert_se3(world_to_camera.double())[..., :3, 3] * used
    distance = ((centers - (centers.sum(1) / count)[:, None]) * used).norm(dim=-1)
    if scale == "max":
        return distance.amax(1)
    if scale == "rms":
        square = distance.square().sum(1) / count[:, 0]
        return square.clamp(min=SCALE_FLOOR**2).sqrt()  # before the root, whose gradient at 0 is infinite
    return distance.sum(1) / count[:, 0]
