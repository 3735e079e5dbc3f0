"""The nested model: an any-view model whose scale is that of a metric model on the same images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.cameras.poses import rigid_matrix
from zoo.geometry.da3.any_view import AnyView, CamerasPx
from zoo.geometry.da3.metric import FAR, FEWEST_PIXELS, SKY, Metric, masked_quantile, to_meters
from zoo.geometry.da3.output import DA3Output
from zoo.geometry.da3.reference import Strategy
from zoo.geometry.da3.trunk import Trunk

NEAREST_METRIC, NEAREST = 0.01, 0.001  # depths that the scale is computed from are larger
FARTHEST = 200.0  # meters, of sky


class Nested(nn.Module):
    """Depth, poses and rays of the any-view model in meters, under the official names.

    The metric model's depth is converted to meters with the predicted intrinsics, also where cameras are given. Each
    scene has one scale: that of the least-squares fit of one depth to the other.

    Args:
        anyview: Arguments of `AnyView`.
        metric: Arguments of `Metric`; None builds none, then there are tokens only.
    """

    parts_of_head = dict.fromkeys(("camera", "depth", "ray"), ("da3.cam_dec", "da3.head", "da3_metric"))

    def __init__(self, anyview: dict[str, Any], metric: dict[str, Any] | None) -> None:
        super().__init__()
        self.da3 = AnyView(**anyview)
        self.da3_metric = None if metric is None else Metric(**metric)

    @property
    def trunk(self) -> Trunk:
        """The trunk of the any-view model."""
        return self.da3.trunk

    @property
    def heads(self) -> set[str]:
        """The heads that can be asked for; the scale needs cameras, depth and the metric model."""
        return self.da3.heads if self.da3_metric is not None and {"camera", "depth"} <= self.da3.heads else set()

    @property
    def takes_cameras(self) -> bool:
        """Whether cameras can be given."""
        return self.da3.takes_cameras

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Sequence[int],
        heads: Collection[str],
        reference: Strategy,
        cameras: CamerasPx | None,
    ) -> DA3Output:
        """Compute only what is asked for, and what its scale needs; see `DA3`."""
        if not heads or self.da3_metric is None:
            return self.da3(images, layers, (), reference, cameras)
        result = self.da3(images, layers, {*heads, "camera", "depth"}, reference, cameras)
        metric = self.da3_metric(images, (), ("depth",))
        is_sky, result.sky = metric.sky >= SKY, metric.sky
        # a scene of nothing but sky has no other pixels to fit
        is_sky = is_sky & ((~is_sky).flatten(1).sum(1) > FEWEST_PIXELS)[:, None, None, None]
        meters = to_meters(metric.depth, result.K_px)
        result.scale = fit_scale(result.depth, result.depth_conf, meters, is_sky)

        scale = result.scale[:, None, None]
        result.pose_enc = torch.cat((result.pose_enc[..., :3] * scale, result.pose_enc[..., 3:]), -1)
        poses = result.world_to_camera
        result.world_to_camera = rigid_matrix(poses[..., :3, :3], poses[..., :3, 3] * scale)
        depth = result.depth * scale[..., None]
        far = masked_quantile(depth.flatten(1), ~is_sky.flatten(1), FAR).clamp(max=FARTHEST)
        result.depth = torch.where(is_sky, far[:, None, None, None], depth)
        result.depth_conf = result.depth_conf.masked_fill(is_sky, 1.0)
        if result.rays is not None:
            direction, center = result.rays.chunk(2, -1)
            result.rays = torch.cat((direction, center * scale[..., None, None]), -1)
        return result


def fit_scale(
    depth: Float[Tensor, "B S H W"],
    confidence: Float[Tensor, "B S H W"],
    meters: Float[Tensor, "B S H W"],
    is_sky: Bool[Tensor, "B S H W"],
) -> Float[Tensor, " B"]:
    """The factor of each scene that fits its depth to meters best, over confident pixels that are not sky."""
    typical = masked_quantile(confidence.flatten(1), ~is_sky.flatten(1), 0.5)
    used = ~is_sky & (confidence >= typical[:, None, None, None]) & (meters > NEAREST_METRIC) & (depth > NEAREST)
    used_depth = depth.masked_fill(~used, 0.0).flatten(1)
    return (used_depth * meters.flatten(1)).sum(1) / used_depth.square().sum(1)
