"""VGGT's training targets, losses and errors (section 3.4 of arXiv 2503.11651, without tracks).

Targets are in the frame of the first camera, in units of the mean distance of the scene's points from it. So VGGT
learns the shape of a scene and not its size: the normalization drops meters on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras import intrinsics_in_pixels
from zoo.cameras.poses import invert_se3, pose_distance
from zoo.cameras.rays import pixel_center_intrinsics, unproject_depth
from zoo.geometry.base import SceneGeometry
from zoo.geometry.images import select_frames
from zoo.geometry.vggt.model import VGGTOutput
from zoo.geometry.vggt.pose_encoding import cameras_to_pose_encoding, pose_encoding_to_cameras

ALPHA = 0.2  # weight of the log confidence, as in DUSt3R (arXiv 2312.14132)
HUBER = 0.1  # radians, or units of the scene
REFINEMENT_DECAY = 0.6  # weight of a refinement step of the camera head relative to the next


@dataclass(eq=False)
class Targets:
    """Ground truth of B scenes of S frames, normalized; see the module."""

    pose_enc: Float[Tensor, "B S 9"]
    depth: Float[Tensor, "B dense H W"]
    points: Float[Tensor, "B dense H W 3"]
    known: Bool[Tensor, "B dense H W"]

    def dense_of(self, frames: Int[Tensor, "B chosen"]) -> Targets:
        """Select the frames of each scene's dense maps."""
        dense = (select_frames(each, frames) for each in (self.depth, self.points, self.known))
        return Targets(self.pose_enc, *dense)


def targets(scenes: Sequence[SceneGeometry]) -> Targets:
    """Normalize the dataset's geometry of scenes of one shape; float32.

    Raises:
        ValueError: A frame without a camera, a scene whose depth is empty.
    """
    for scene in scenes:
        assert scene.world_to_camera is not None and scene.depth is not None  # by `DataRequirements`
        if scene.has_camera is not None and not scene.has_camera.all():
            raise ValueError("VGGT learns from a camera for each frame: this scene lacks some")
    depth = torch.stack([scene.depth for scene in scenes if scene.depth is not None]).float()
    poses = torch.stack([scene.world_to_camera for scene in scenes if scene.world_to_camera is not None]).double()
    K = torch.stack([scene.K_normalized for scene in scenes if scene.K_normalized is not None]).double()
    height, width = depth.shape[-2:]
    poses = poses @ invert_se3(poses[:, :1])
    K_px = intrinsics_in_pixels(K, width, height)
    points = unproject_depth(depth[..., None], poses.float(), pixel_center_intrinsics(K_px).float())

    known = depth > 0
    count = known.flatten(1).sum(1)
    if not count.all():
        raise ValueError("VGGT learns from depth: this scene has no pixel of it")
    unit = (points.norm(dim=-1) * known).flatten(1).sum(1) / count
    poses[..., :3, 3] /= unit[:, None, None]
    return Targets(
        cameras_to_pose_encoding(poses, K_px, (height, width)).float(),
        depth / unit[:, None, None, None],
        points / unit[:, None, None, None, None],
        known,
    )


def losses(output: VGGTOutput, truth: Targets) -> dict[str, Float[Tensor, " B"]]:
    """The loss of each head with an output, of each scene; their sum is VGGT's loss."""
    found: dict[str, Tensor] = {}
    if output.pose_enc_list is not None:
        found["camera"] = camera_loss(output.pose_enc_list, truth.pose_enc)
    if output.depth is not None and output.depth_conf is not None:
        found["depth"] = dense_loss(output.depth, output.depth_conf, truth.depth[..., None], truth.known)
    if output.points is not None and output.points_conf is not None:
        found["points"] = dense_loss(output.points, output.points_conf, truth.points, truth.known)
    return found


def camera_loss(steps: Float[Tensor, "steps B S 9"], truth: Float[Tensor, "B S 9"]) -> Float[Tensor, " B"]:
    """Huber loss of the pose encodings, with larger weights for later refinement steps."""
    weights = REFINEMENT_DECAY ** torch.arange(len(steps) - 1, -1, -1, device=steps.device)
    off = F.huber_loss(steps, truth.expand_as(steps), reduction="none", delta=HUBER) / HUBER  # slope 1 far away
    each = off.sum(-1).mean(2)
    return (weights[:, None] * each).sum(0) / weights.sum()


def dense_loss(
    values: Float[Tensor, "B S H W C"],
    confidence: Float[Tensor, "B S H W"],
    truth: Float[Tensor, "B S H W C"],
    known: Bool[Tensor, "B S H W"],
) -> Float[Tensor, " B"]:
    """Confidence-weighted distance of values and of their spatial gradients, minus alpha log confidence.

    Each term is a mean over the pixels of a scene with a known value (for gradients: of both neighbors). Confidence
    models aleatoric uncertainty (Kendall & Gal 2017, arXiv 1703.04977).
    """
    loss = _mean(confidence * (values - truth).norm(dim=-1) - ALPHA * confidence.log(), known)
    for axis in (2, 3):
        size = values.shape[axis] - 1
        off = (values.diff(dim=axis) - truth.diff(dim=axis)).norm(dim=-1)
        both = known.narrow(axis, 0, size) & known.narrow(axis, 1, size)
        loss = loss + _mean(confidence.narrow(axis, 0, size) * off, both)
    return loss


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp(min=1)


def errors(output: VGGTOutput, truth: Targets) -> dict[str, Float[Tensor, " B"]]:
    """Errors of each scene, of the heads with an output.

    Returns:
        rotation_deg: angle between predicted and true rotation relative to the first frame, mean over the others.
        center: distance of predicted and true camera center, likewise, in units of the points' mean distance.
        depth_relative: |predicted - true| / true, mean over the known pixels.
    """
    found: dict[str, Tensor] = {}
    height, width = truth.depth.shape[-2:]
    if output.pose_enc is not None and truth.pose_enc.shape[1] > 1:
        true, _ = pose_encoding_to_cameras(truth.pose_enc, (height, width))
        poses, _ = pose_encoding_to_cameras(output.pose_enc, (height, width))
        poses = poses.double()  # autocast would compute a product of float32 in half precision
        relative = poses @ invert_se3(poses[:, :1])
        angle, distance = (each.float() for each in pose_distance(relative, true.double()))
        found["rotation_deg"], found["center"] = angle[:, 1:].mean(1).rad2deg(), distance[:, 1:].mean(1)
    if output.depth is not None:
        relative = (output.depth[..., 0] - truth.depth).abs() / torch.where(truth.known, truth.depth, 1)
        known = truth.known.flatten(1)
        found["depth_relative"] = (relative.flatten(1) * known).sum(1) / known.sum(1)
    return found


def constant_baseline(truth: Targets) -> VGGTOutput:
    """A baseline for `errors` that ignores the frames: a static camera, and the median of the true depth everywhere."""
    still = torch.zeros_like(truth.pose_enc)
    still[..., 6] = 1  # w of the quaternion
    still[..., 7:] = truth.pose_enc[..., 7:]
    median = truth.depth[truth.known].median()
    return VGGTOutput({}, 0, pose_enc=still, depth=torch.full_like(truth.depth, float(median))[..., None])
