"""Cambrian-P's pose head and camera loss (arXiv 2605.22819), based on VGGT's pose encoding and camera head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.cameras.poses import intrinsics_in_pixels, invert_se3, pose_distance
from zoo.errors import InputError, check_choice
from zoo.geometry.vggt import CameraHead, cameras_to_pose_encoding, pose_encoding_to_cameras
from zoo.objectives.base import Decoded, Objective
from zoo.precision import full_precision, to_float32
from zoo.scene_encoding import EncodedScene

__all__ = ["PosePrediction"]

PoseLoss = Literal["l1", "l2"]
Rescaled = Literal["target", "prediction"]
PROJECTOR, HEAD = "projector_list.0.0.", "camera_head."  # prefixes of the official names
ITERATION_DECAY = 0.6
MAX_ERROR = 100.0  # bound on the error of a translation component
SCALE_RANGE = (0.01, 100.0)
MIN_PATH = 0.1


class PoseHead(nn.Module):
    """VGGT's camera head over the views of a scene, applied to a linear projection of the decoder's states.

    Args:
        width: Width of the decoder.
        dim: Width of the head, a multiple of `num_heads`.
        trunk_depth: Number of blocks over the views.
        causal: Mask later views, for streaming.
        num_heads: Heads of the blocks' attention.
    """

    def __init__(
        self, width: int, dim: int = 2048, trunk_depth: int = 4, causal: bool = False, num_heads: int = 16
    ) -> None:
        super().__init__()
        self.projector = nn.Linear(width, dim)
        self.camera_head = CameraHead(dim, trunk_depth, num_heads, causal=causal)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], *, trunk_depth: int, causal: bool) -> PoseHead:
        """Build the head from official tensors, in their dtype. All other tensors are ignored."""
        dim, width = state_dict[f"{PROJECTOR}weight"].shape
        head = cls(width, dim, trunk_depth, causal).to(state_dict[f"{PROJECTOR}weight"].dtype)
        own = {name: state_dict[official] for name, official in head._official_names()}
        head.load_state_dict(own)
        return head

    def named_official_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters with their official names."""
        parameters = dict(self.named_parameters())
        return ((official, parameters[name]) for name, official in self._official_names())

    def _official_names(self) -> Iterator[tuple[str, str]]:
        for name, _ in self.named_parameters():
            yield name, name.replace("projector.", PROJECTOR)

    def forward(self, states: Float[Tensor, "B S W"]) -> Float[Tensor, "iterations B S 9"]:
        """Predict VGGT's pose encoding of each view, after each of four iterations."""
        return self.camera_head(self.projector(states))


def camera_loss(
    predictions: Float[Tensor, "iterations B S 9"],
    world_to_camera: Float[Tensor, "B S _ 4"],
    K_px: Float[Tensor, "B S 3 3"],
    image_size_hw: Sequence[int],
    *,
    kind: PoseLoss = "l1",
    weights: Sequence[float] = (1.0, 1.0, 0.5),
    valid: Bool[Tensor, "B S"] | None = None,
    align_scale: Bool[Tensor, " B"] | None = None,
    rescale: Rescaled = "target",
    balance: bool = False,
) -> dict[str, Float[Tensor, ""]]:
    """Compare predicted pose encodings with cameras, in the frame of each scene's first view.

    Iteration s of n has the weight 0.6^(n - 1 - s), and the sum over iterations is divided by n, as published.

    Args:
        predictions: Predictions after each iteration of the head.
        world_to_camera: Poses in any world frame, with three or four rows.
        K_px: Intrinsics in pixels.
        image_size_hw: Size of the images.
        kind: `l1`: mean absolute error of all components. `l2`: mean norm of the errors of translation, quaternion and
            fields of view.
        weights: Weights of translation, rotation (quaternion), and fields of view.
        valid: The views that count. None is all.
        align_scale: Scenes without metric scale. Their prediction and target are compared up to the best-fitting scale,
            fitted anew for each iteration.
        rescale: Whether to divide the `target` by that scale or multiply the `prediction` by it.
        balance: Divide the translation loss by the mean length of the scenes' camera paths.

    Returns:
        Unweighted `translation`, `rotation` and `focal`, and their weighted sum `total`.
    """
    check_choice("kind", kind, PoseLoss)
    check_choice("rescale", rescale, Rescaled)
    target = _first_view_encoding(world_to_camera, K_px, image_size_hw).to(predictions)
    known = torch.ones_like(target[..., 0], dtype=torch.bool) if valid is None else valid
    decay = [ITERATION_DECAY**power for power in reversed(range(len(predictions)))]
    sums = predictions.new_zeros(3)
    for factor, predicted in zip(decay, predictions, strict=True):
        own, aimed = predicted[..., :3], target[..., :3]
        if align_scale is not None:
            scale = best_scale(own, aimed, known, align_scale)
            own, aimed = (own, aimed / scale) if rescale == "target" else (own * scale, aimed)
        rest = predicted[..., 3:] - target[..., 3:]
        if kind == "l1":
            parts = ((own - aimed).abs().clamp(max=MAX_ERROR), rest[..., :4].abs(), rest[..., 4:].abs())
        else:
            errors = (own - aimed, rest[..., :4], rest[..., 4:])
            parts = tuple(each.norm(dim=-1, keepdim=True) for each in errors)
            parts = (parts[0].clamp(max=MAX_ERROR), *parts[1:])
        sums = sums + factor * torch.stack([_mean(part, known) for part in parts])
    translation, rotation, focal = sums / len(predictions)
    if balance:
        translation = translation / mean_path(world_to_camera)
    total = weights[0] * translation + weights[1] * rotation + weights[2] * focal
    return {"translation": translation, "rotation": rotation, "focal": focal, "total": total}


def mean_path(world_to_camera: Float[Tensor, "B S _ 4"]) -> Float[Tensor, ""]:
    """Return the mean length of the scenes' camera paths, each of which is at least `MIN_PATH`."""
    with full_precision(world_to_camera.device):
        centers = invert_se3(_relative_to_first(world_to_camera))[..., :3, 3]
    return (centers[:, 1:] - centers[:, :-1]).norm(dim=-1).sum(1).clamp(min=MIN_PATH).mean()


def _relative_to_first(world_to_camera: Tensor) -> Float[Tensor, "B S 4 4"]:
    poses = to_float32(world_to_camera)
    if poses.shape[-2] == 3:
        poses = torch.cat((poses, poses.new_tensor((0.0, 0.0, 0.0, 1.0)).expand(*poses.shape[:-2], 1, 4)), -2)
    with full_precision(poses.device):
        return poses @ invert_se3(poses[:, :1])


def _first_view_encoding(world_to_camera: Tensor, K_px: Tensor, image_size_hw: Sequence[int]) -> Float[Tensor, "B S 9"]:
    """Encode cameras in the frame of the first view of each scene."""
    height, width = image_size_hw
    return cameras_to_pose_encoding(_relative_to_first(world_to_camera), K_px, (height, width))


@torch.no_grad()
def best_scale(
    predicted: Float[Tensor, "B S 3"], target: Float[Tensor, "B S 3"], known: Bool[Tensor, "B S"], aligned: Tensor
) -> Float[Tensor, "B 1 1"]:
    """Fit the factor of each aligned scene's predicted translations by least squares. It is 1 for other scenes."""
    own, aimed = predicted * known[..., None], target * known[..., None]
    scale = (own * aimed).sum((1, 2)) / (own.square().sum((1, 2)) + 1e-8)
    is_fitted = aligned & (known.sum(1) >= 2)
    return torch.where(is_fitted, scale.clamp(*SCALE_RANGE), 1.0)[:, None, None]


def _mean(values: Float[Tensor, "B S n"], known: Bool[Tensor, "B S"]) -> Float[Tensor, ""]:
    """Return the mean over all components of the known views. 0 without known views."""
    return torch.where(known[..., None], values, 0.0).sum() / (known.sum() * values.shape[-1]).clamp(min=1)


# ---- Camera prediction by one head across all views, as in Cambrian-P (arXiv 2605.22819) ----------------------------

NUM_HEADS = 16
UNIT = (1, 1)  # image size 1: with normalized intrinsics the field of view is the same


class PosePrediction(Objective):
    """Predict pose and fields of view of each view from a learned token after its 2D tokens.

    Unlike in `CameraPrediction`, one head with attention across the views refines all cameras of a scene in four
    iterations, in the frame of the first view. The first view has its own token. This is Cambrian-P's loss.

    Differences from the published training: `align_scale` applies to all scenes of a run, not only to those without
    metric scale. A view counts if its camera is known, independent of its depth. Tokens are initialized with a standard
    deviation of 0.02 instead of 1e-6.

    Args:
        kind: See `zoo.objectives.cambrian_p.camera_loss`, also for the options below.
        translation_weight: Weight of the translation.
        rotation_weight: Weight of the quaternion.
        focal_weight: Weight of the fields of view.
        align_scale: Compare translations up to the best-fitting scale, for data without metric scale.
        rescale: What is rescaled with `align_scale`.
        balance: Divide the translation loss by the mean path length in each process's micro-batch, as published. The
            loss then depends on the number of devices and of accumulated batches.
        dim: Width of the head, a multiple of 16.
        trunk_depth: Number of blocks of the head.
        causal: Mask later views in the head.
        weight: See `Objective`.

    Raises:
        InputError: The width is not a multiple of 16, or a choice is unknown.
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
        if self.balance and pairs:  # by the mean over the batch, so scenes with long paths still count more
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
        """Return mean errors of one scene relative to its first view, and those of a camera that never moves.

        With `align_scale` the predicted centers are first scaled by the best-fitting factor, as in the loss.
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
        """Yield each scene with cameras: predicted encodings, true poses and intrinsics, and which are known.

        A view without a camera repeats the last known pose, so it adds nothing to the path. Views before the first
        camera get the first camera's pose, so the world is that camera's frame.
        """
        for scene, states in decoded.views(None):
            if (cameras := scene.target_cameras) is None:
                continue
            with full_precision(states.device):
                predicted = self.head(states[:, :, -1])
            known = cameras.has_camera
            number = torch.arange(len(known), device=known.device)
            last = torch.where(known, number, known.int().argmax()).cummax(0).values
            poses = to_float32(cameras.world_to_camera)[last]
            yield scene, predicted, poses, to_float32(cameras.K_normalized), known
