"""Cambrian-P's pose head and camera loss (arXiv 2605.22819), on VGGT's pose encoding and camera head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.cameras.poses import invert_se3
from zoo.errors import check_choice
from zoo.geometry.vggt.camera_head import CameraHead
from zoo.geometry.vggt.pose_encoding import cameras_to_pose_encoding
from zoo.precision import to_float32

PoseLoss = Literal["l1", "l2"]
Rescaled = Literal["target", "prediction"]
PROJECTOR, HEAD = "projector_list.0.0.", "camera_head."  # prefixes of the official names
ITERATION_DECAY = 0.6
MAX_ERROR = 100.0  # of a number of the translation
SCALE_RANGE = (0.01, 100.0)
MIN_PATH = 0.1


class PoseHead(nn.Module):
    """VGGT's camera head, across the views of a scene, on a linear projection of the decoder's states.

    Args:
        width: Of the decoder.
        dim: Of the head, a multiple of `num_heads`.
        trunk_depth: Blocks over the views.
        causal: Mask later views, for streaming.
        num_heads: Of the blocks' attention.
    """

    def __init__(
        self, width: int, dim: int = 2048, trunk_depth: int = 4, causal: bool = False, num_heads: int = 16
    ) -> None:
        super().__init__()
        self.projector = nn.Linear(width, dim)
        self.camera_head = CameraHead(dim, trunk_depth, num_heads, causal=causal)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], *, trunk_depth: int, causal: bool) -> PoseHead:
        """Build the head of official tensors, in their dtype; all other tensors are ignored."""
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
        predictions: After each iteration of the head.
        world_to_camera: In any world, with three or four rows.
        K_px: Intrinsics in pixels.
        image_size_hw: Of the images.
        kind: Mean absolute error of each number, or mean norm of the errors of each part.
        weights: Of translation, rotation (quaternion), and fields of view.
        valid: The views that count; None is all.
        align_scale: The scenes without metric scale: prediction and target are compared up to the scale that fits best,
            anew for each iteration.
        rescale: Divide the `target` by that scale, or multiply the `prediction`.
        balance: Divide the translation by the mean length of the scenes' paths.

    Returns:
        `translation`, `rotation` and `focal`, unweighted, and their weighted sum `total`.
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
    """Return the mean length of the camera paths of scenes, of which none counts as shorter than `MIN_PATH`."""
    centers = invert_se3(_relative_to_first(world_to_camera))[..., :3, 3]
    return (centers[:, 1:] - centers[:, :-1]).norm(dim=-1).sum(1).clamp(min=MIN_PATH).mean()


def _relative_to_first(world_to_camera: Tensor) -> Float[Tensor, "B S 4 4"]:
    poses = to_float32(world_to_camera)
    if poses.shape[-2] == 3:
        poses = torch.cat((poses, poses.new_tensor((0.0, 0.0, 0.0, 1.0)).expand(*poses.shape[:-2], 1, 4)), -2)
    return poses @ invert_se3(poses[:, :1])


def _first_view_encoding(world_to_camera: Tensor, K_px: Tensor, image_size_hw: Sequence[int]) -> Float[Tensor, "B S 9"]:
    """Encode cameras in the frame of the first view of each scene."""
    height, width = image_size_hw
    return cameras_to_pose_encoding(_relative_to_first(world_to_camera), K_px, (height, width))


@torch.no_grad()
def best_scale(
    predicted: Float[Tensor, "B S 3"], target: Float[Tensor, "B S 3"], known: Bool[Tensor, "B S"], aligned: Tensor
) -> Float[Tensor, "B 1 1"]:
    """Fit the factor of each aligned scene's predicted translations in the least squares; 1 for other scenes."""
    own, aimed = predicted * known[..., None], target * known[..., None]
    scale = (own * aimed).sum((1, 2)) / (own.square().sum((1, 2)) + 1e-8)
    is_fitted = aligned & (known.sum(1) >= 2)
    return torch.where(is_fitted, scale.clamp(*SCALE_RANGE), 1.0)[:, None, None]


def _mean(values: Float[Tensor, "B S n"], known: Bool[Tensor, "B S"]) -> Float[Tensor, ""]:
    """Mean over all numbers of the known views; 0 without any."""
    return torch.where(known[..., None], values, 0.0).sum() / (known.sum() * values.shape[-1]).clamp(min=1)
