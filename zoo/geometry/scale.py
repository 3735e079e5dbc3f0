"""The scale between given and predicted cameras."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.errors import InputError
from zoo.poses import invert_se3

FLAT = 1e-6  # second singular value of centers on a line, relative to the first


@torch.no_grad()
def pose_scale(predicted: Float[Tensor, "S 4 4"], given: Float[Tensor, "S 4 4"]) -> float:
    """The scale of the similarity that maps given camera centers to predicted ones (Umeyama 1991), over all views.

    Depth divided by it is in the unit of the given cameras.

    Args:
        predicted: world-to-camera poses.
        given: the same views.

    Raises:
        InputError: Fewer than three views, or centers on a line: the similarity is not determined.
    """
    target, source = (invert_se3(poses.double())[:, :3, 3] for poses in (predicted, given))
    source, target = source - source.mean(0), target - target.mean(0)
    U, singular, Vh = torch.linalg.svd(target.mT @ source / len(source))
    if len(source) < 3 or singular[1] <= FLAT * singular[0]:
        raise InputError("the scale of poses needs three cameras or more whose centers are not on one line")
    singular[2] *= torch.det(U @ Vh).sign()  # a rotation, no reflection
    return float(singular.sum() / source.square().sum(1).mean())
