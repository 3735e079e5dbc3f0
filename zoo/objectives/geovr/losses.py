"""GeoVR's losses, and the scale that it learns; each of one video."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import check_choice
from zoo.geometry.da3.metric import SKY, to_meters
from zoo.geometry.da3.nested import fit_scale
from zoo.geometry.vggt.pose_encoding import pose_encoding_to_cameras
from zoo.objectives.geovr.teachers import find_teacher

DepthLoss = Literal["l1", "silog"]
MAX_ERROR = 100.0  # of a number of the translation, and of a gradient of depth
FIELD_OF_VIEW_WEIGHT = 0.5
STRIDES, FEWEST_PIXELS = (1, 2, 4, 8), 10
QUANTILE, FEWEST_VALUES, MOST_VALUES = 0.98, 1000, 10**7
SILOG_MEAN = 0.5


def camera_loss(pred: Float[Tensor, "T 9"], target: Float[Tensor, "T 9"]) -> dict[str, Float[Tensor, ""]]:
    """Return the mean absolute errors of `translation`, `rotation` and `focal`, and their weighted sum `total`."""
    error = (pred - target).abs()
    translation, rotation, focal = error[:, :3].clamp(max=MAX_ERROR).mean(), error[:, 3:7].mean(), error[:, 7:].mean()
    total = translation + rotation + FIELD_OF_VIEW_WEIGHT * focal
    return {"translation": translation, "rotation": rotation, "focal": focal, "total": total}


def depth_loss(
    pred: Float[Tensor, "T H W"], target: Float[Tensor, "T H W"], kind: DepthLoss = "l1"
) -> dict[str, Float[Tensor, ""]]:
    """Compare depth maps.

    Args:
        pred: The prediction.
        target: The teacher's, in its own unit.
        kind: `l1`: the mean absolute error `l1` without outliers, plus that of the `gradient` at four resolutions.
            `silog`: the scale-invariant error of the logarithms (arXiv 1406.2283) alone.
    """
    check_choice("kind", kind, DepthLoss)
    if kind == "silog":
        difference = pred.log() - target.log()
        return {"total": (difference.square().mean() - SILOG_MEAN * difference.mean().square() + 1e-6).sqrt()}
    error = pred - target
    l1, gradient = without_outliers(error.abs().flatten()).mean(), _gradient_loss(error)
    return {"l1": l1, "gradient": gradient, "total": l1 + gradient}


def _gradient_loss(error: Float[Tensor, "T H W"]) -> Float[Tensor, ""]:
    total = error.new_zeros(())
    for stride in STRIDES:
        coarse = error[:, ::stride, ::stride]
        if min(coarse.shape[1:]) > 1 and coarse.numel() >= FEWEST_PIXELS:
            for axis in (1, 2):
                total = total + coarse.diff(dim=axis).abs().clamp(max=MAX_ERROR).mean()
    return total / len(STRIDES)


def without_outliers(values: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    """Return the values up to their 98 % quantile, and up to 100; all of them if few would be left.

    The quantile of many values is that of a random million of them, the same in any process.
    """
    if len(values) <= FEWEST_VALUES:
        return values
    drawn = values.detach()
    if len(drawn) > MOST_VALUES:
        generator = torch.Generator(drawn.device).manual_seed(0)
        drawn = drawn[torch.randint(len(drawn), (10**6,), generator=generator, device=drawn.device)]
    threshold = drawn.kthvalue(math.ceil(QUANTILE * (len(drawn) - 1)) + 1).values.clamp(max=MAX_ERROR)
    kept = values[values <= threshold]
    return kept if len(kept) > FEWEST_VALUES else values


def pool_teacher(features: Float[Tensor, "T h w C"]) -> Float[Tensor, "T H W C"]:
    """Average the teacher's tokens over double patches."""
    return F.avg_pool2d(features.movedim(-1, 1), 2).movedim(1, -1)


def distill_loss(pred: Float[Tensor, "T h w C"], target: Float[Tensor, "T h w C"]) -> Float[Tensor, ""]:
    """Return the mean cosine distance of tokens."""
    return 1 - F.cosine_similarity(pred, target, dim=-1).mean()


def scale_loss(pred: Float[Tensor, " B"], target: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return the mean absolute error of log(1 + scale)."""
    return (pred.log1p() - target.log1p()).abs().mean()


@torch.no_grad()
def scale_target(
    depth: Float[Tensor, "T H W"],
    conf: Float[Tensor, "T H W"],
    pose: Float[Tensor, "T 9"],
    metric_depth: Float[Tensor, "T h w"],
    sky: Float[Tensor, "T h w"],
    *,
    teacher: str,
) -> float:
    """Fit meters per unit of the teacher's depth to a metric model's, over confident pixels that are not sky.

    Args:
        depth: The teacher's.
        conf: Its confidence.
        pose: Its pose encodings, whose fields of view give the focal length.
        metric_depth: Of the metric model (DA3METRIC), for a focal length of 300 pixels. Its images may have another
            size: VGGT-Omega's are resized to multiples of 14 pixels.
        sky: The metric model's sky, 0 where there is none.
        teacher: `vggt`, `vggt_omega` or `da3`.
    """
    find_teacher(teacher)
    size = metric_depth.shape[1:]
    _, K_px = pose_encoding_to_cameras(pose, (size[0], size[1]))
    (meters,) = to_meters(metric_depth[None], K_px[None])
    depth, conf = (
        each if each.shape == metric_depth.shape else F.interpolate(each[None], size, mode="bilinear")[0]
        for each in (depth, conf)
    )
    (fitted,) = fit_scale(depth[None], conf[None], meters.to(depth)[None], sky[None] >= SKY)
    return float(fitted)
