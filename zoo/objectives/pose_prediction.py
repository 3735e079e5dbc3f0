"""Cameras as something to predict by one head across all views, as Cambrian-P does (arXiv 2605.22819)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras.intrinsics import intrinsics_in_pixels
from zoo.cameras.poses import invert_se3, pose_distance
from zoo.errors import InputError, check_choice
from zoo.geometry.vggt.pose_encoding import pose_encoding_to_cameras
from zoo.objectives.base import Objective
from zoo.objectives.cambrian_p import PoseHead, PoseLoss, Rescaled, best_scale, camera_loss, mean_path
from zoo.objectives.decoded import Decoded
from zoo.precision import full_precision, to_float32
from zoo.scene_encoding.encoded_scene import EncodedScene

NUM_HEADS = 16
UNIT = (1, 1)  # image size: a field of view depends on the intrinsics in units of it


class PosePrediction(Objective):
    """Predict pose and fields of view of each view from a learned token behind its 2D tokens.

    Unlike `CameraPrediction`, one head with attention across the views refines all cameras of a scene in four
    iterations, in the frame of the first view; that view has a token of its own. Cambrian-P's loss.

    What differs from the published training: `align_scale` holds for all scenes of a run, not for those without a
    metric scale among others; a view counts if its camera is known, whatever its depth; tokens start at a deviation of
    0.02, not 1e-6.

    Args:
        kind: See `zoo.objectives.cambrian_p.camera_loss`, as for the options below.
        translation_weight: Of the translation.
        rotation_weight: Of the quaternion.
        focal_weight: Of the fields of view.
        align_scale: Compare translations up to the scale that fits best: for data without metric scale.
        rescale: What is rescaled then.
        balance: Divide the translation by the mean length of the paths in each process's micro-batch, as published; so
            it depends on the number of devices and of accumulated batches.
        dim: Width of the head, a multiple of 16.
        trunk_depth: Blocks of the head.
        causal: Mask later views in the head.
        weight: See `Objective`.

    Raises:
        InputError: A width that 16 heads don't divide, or an unknown choice.
    """

    targets = ("cameras",)
    adds_token = has_first_token = True

    def __init__(
        self,
        kind: PoseLoss = "l1",
        translation_weight: float = 1.0,
        rotation_weight: float = 1.0,
        focal_weight: float = 0.5,
        align_scale: bool = False,
        rescale: Rescaled = "target",
        balance: bool = False,
        dim: int = 2048,
        trunk_depth: int = 4,
        causal: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        check_choice("--model.objectives: PosePrediction.kind", kind, PoseLoss)
        check_choice("--model.objectives: PosePrediction.rescale", rescale, Rescaled)
        if dim % NUM_HEADS:
            raise InputError(f"--model.objectives: PosePrediction.dim {dim}: a multiple of {NUM_HEADS}")
        self.kind, self.rescale, self.balance, self.align_scale = kind, rescale, balance, align_scale
        self.weights = (translation_weight, rotation_weight, focal_weight)
        self.uses_lengths = not align_scale
        self.dim, self.trunk_depth, self.causal = dim, trunk_depth, causal

    def bind(self, width: int, num_layers: int) -> None:
        """See `Objective`."""
        super().bind(width, num_layers)
        self.head = PoseHead(width, self.dim, self.trunk_depth, self.causal, NUM_HEADS)
        self.head.camera_head.init_identity_pose()

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`."""
        terms: dict[str, list[tuple[EncodedScene, Tensor, Tensor]]] = {"translation": [], "rotation": [], "focal": []}
        pairs = list(self._pairs(decoded))
        weights: list[float | Tensor] = list(self.weights)
        if self.balance and pairs:  # by the mean over the batch: a scene of a long path then counts for more
            weights[0] /= torch.stack([mean_path(poses[None]) for _, _, poses, _, _ in pairs]).mean()
        for scene, predicted, poses, K, known in pairs:
            aligned = torch.tensor([self.align_scale]).to(poses.device, non_blocking=True)
            rows: list[Sequence[Tensor]] = []
            for row in range(predicted.shape[1]):
                found = camera_loss(
                    predicted[:, row, None],
                    poses[None],
                    intrinsics_in_pixels(K, *UNIT)[None],
                    UNIT,
                    kind=self.kind,
                    valid=known[None],
                    align_scale=aligned,
                    rescale=self.rescale,
                )
                rows.append([factor * found[name] for name, factor in zip(terms, weights, strict=True)])
            for own, values in zip(terms.values(), zip(*rows, strict=True), strict=True):
                own.append((scene, torch.stack(values)[:, None], known.any()[None]))
        return {name: decoded.mean_over_scenes(own) for name, own in terms.items()}

    def errors(self, decoded: Decoded) -> dict[str, Tensor]:
        """Mean errors of one scene relative to its first view, and those of a camera that never moves.

        With `align_scale` the centers are compared after the prediction has the scale that fits best, as in the loss.
        """
        found: dict[str, Tensor] = {}
        for _, predicted, poses, _, known in self._pairs(decoded):
            true = poses @ invert_se3(poses[:1])
            later = known & (torch.arange(len(known), device=known.device) > 0)
            if not later.any():
                continue
            last = predicted[-1]
            if self.align_scale:
                rows = len(last)
                aimed, is_known = true[:, :3, 3].to(last).expand(rows, -1, -1), known.expand(rows, -1)
                scale = best_scale(last[..., :3], aimed, is_known, torch.ones_like(is_known[:, 0]))
                last = torch.cat((last[..., :3] * scale, last[..., 3:]), -1)
            cameras, _ = pose_encoding_to_cameras(last, UNIT)
            still = torch.eye(4, device=true.device).expand_as(cameras)
            for each, prefix in ((cameras, ""), (still, "unlearned/")):
                angle, distance = pose_distance(each, true.to(each))
                found[f"{prefix}rotation_deg"] = angle[:, later].mean().rad2deg()
                found[f"{prefix}center"] = distance[:, later].mean()
        return found

    def _pairs(
        self, decoded: Decoded
    ) -> Iterator[
        tuple[
            EncodedScene,
            Float[Tensor, "iterations rows t 9"],
            Float[Tensor, "t 4 4"],
            Float[Tensor, "t 3 3"],
            Bool[Tensor, " t"],
        ]
    ]:
        """Yield each scene with cameras: the predicted encodings, the true poses and intrinsics, and which are known.

        A view without a camera repeats the last known pose, so that it adds nothing to the path; those before the first
        camera have its pose, so that the world is that one's frame.
        """
        for scene, states in decoded.views(None):
            if (cameras := scene.targets.cameras) is None:
                continue
            with full_precision(states.device):
                predicted = self.head(states[:, :, -1])
            known = cameras.has_camera
            number = torch.arange(len(known), device=known.device)
            last = torch.where(known, number, known.int().argmax()).cummax(0).values
            poses = to_float32(cameras.world_to_camera)[last]
            yield scene, predicted, poses, to_float32(cameras.K_normalized), known
