"""Camera prediction as a training objective."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3, pose_distance, rigid_matrix, rotation_from_6d
from zoo.cameras.scene_geometry import PatchCameras
from zoo.errors import InputError, check_choice
from zoo.objectives.base import Decoded, LayerObjective
from zoo.precision import full_precision, to_float32
from zoo.scene_encoding import EncodedScene

Anchor = Literal["reference", "neighbor"]
Reference = Literal["first", "middle", "medoid"]
Scale = Literal["none", "mean", "max", "rms"]
NUMBERS = 9  # numbers per pose: six for the rotation, three for the center
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


class RelativePoses(NamedTuple):
    """Poses of the temporal patches of a scene, each in the frame of its anchor: V_i V_anchor^-1.

    Attributes:
        poses: World-to-camera poses, with the anchor's frame as the world.
        known: Patches after their anchor with valid cameras on both sides. A causal decoder can't see a later anchor.
    """

    poses: Float[Tensor, "t 4 4"]
    known: Bool[Tensor, " t"]


class CameraPrediction(LayerObjective):
    """Predict the camera of each temporal patch or image from a learned token after its 2D tokens.

    A learned token per view with a pose head, trained together with the answers, is the idea of Cambrian-P. A camera
    encoding does not act on the token, so the token must infer its camera from the tokens that it attends to.

    The loss is the mean angle (radians) between predicted and true rotation plus the weighted mean distance between
    predicted and true camera centers. A rotation is predicted as six numbers, the first two columns of its matrix
    before Gram-Schmidt (Zhou et al. 2019, arXiv 1812.07035, section 4). Temporal patches without a camera are masked.

    Args:
        layer: See `LayerObjective`.
        token: Add the token. Otherwise the last 2D token of each view is used, because it has attended to the whole
            view. The prompt and inference are then unchanged.
        anchors: The frames in which poses are predicted: the scene's `reference` view, the preceding view (`neighbor`),
            or both with separate outputs. The gallery shows the predictions for `reference`.
        reference: The `first`, `middle` or `medoid` view with a camera, see `Cameras.reference_view`. Views before it
            are masked.
        scale: Unit of lengths, see `Cameras.scaled`. `none` is meters if the cameras are metric. Other units depend on
            the whole path, of which the first tokens have seen little.
        center_weight: Weight of the center distance, in radians per unit of length.
        weight: See `Objective`.

    Raises:
        InputError: There is no anchor, or a choice is unknown.

    Example:
        >>> from zoo import SpatialVLM
        >>> model = SpatialVLM(objectives=[CameraPrediction()])
        >>> list(model.objectives), model.model_spec().targets, model.extra_tokens.per_view
        (['LanguageModeling', 'CameraPrediction'], ('cameras',), 1)
    """

    targets = ("cameras",)

    def __init__(
        self,
        layer: int = -1,
        token: bool = True,
        anchors: list[Anchor] | None = None,
        reference: Reference = "first",
        scale: Scale = "none",
        center_weight: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(layer, weight)
        self.anchors = tuple(get_args(Anchor) if anchors is None else dict.fromkeys(anchors))
        if not self.anchors:
            raise InputError("--model.objectives: CameraPrediction needs an anchor: reference, neighbor, or both")
        for name, value, choices in (
            *(("anchors", anchor, Anchor) for anchor in self.anchors),
            ("reference", reference, Reference),
            ("scale", scale, Scale),
        ):
            check_choice(f"--model.objectives: {name}", value, choices)
        self.adds_token, self.reference, self.scale = token, reference, scale
        self.uses_lengths = scale == "none"
        self.center_weight, self.num_outputs = center_weight, NUMBERS * len(self.anchors)

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`. Returns `rotation` and `center`, each summed over the anchors."""
        rotation = center = to_float32(decoded.last_hidden_state).new_zeros(())
        pairs = list(self._pairs(decoded))
        for anchor in self.anchors:
            own = [
                (scene, *pose_distance(poses, true.poses), true.known)
                for scene, each, poses, true in pairs
                if each == anchor
            ]
            rotation = rotation + decoded.mean_over_scenes((scene, angle, known) for scene, angle, _, known in own)
            center = center + decoded.mean_over_scenes((scene, distance, known) for scene, _, distance, known in own)
        return {"rotation": rotation, "center": self.center_weight * center}

    def errors(self, decoded: Decoded) -> dict[str, Tensor]:
        """Return mean errors of one scene for each anchor, and those of a camera that never moves.

        Returns:
            `rotation_deg` and `center`, in meters or the unit of `scale`. Names for the anchor `neighbor` start with
            `neighbor_`.
        """
        found: dict[str, Tensor] = {}
        for _, anchor, predicted, true in self._pairs(decoded):
            if not true.known.any():
                continue
            still = torch.eye(4).to(predicted).expand_as(predicted)
            for poses, prefix in ((predicted, ""), (still, "unlearned/")):
                angle, distance = pose_distance(poses, true.poses)
                name = prefix + ("" if anchor == "reference" else f"{anchor}_")
                found[f"{name}rotation_deg"] = angle[:, true.known].mean().rad2deg()
                found[f"{name}center"] = distance[:, true.known].mean()
        return found

    def predicted_cameras(self, decoded: Decoded) -> tuple[PatchCameras, Float[Tensor, "t 4 4"]]:
        """Return the true cameras that `errors` uses, and the predicted poses, in the reference frame."""
        pairs = (pair for pair in self._pairs(decoded) if pair[1] == "reference")
        scene, _, predicted, true = next(pairs)
        assert scene.target_cameras is not None
        shown = scene.target_cameras._replace(world_to_camera=true.poses, has_camera=true.known, is_complete=False)
        return shown, predicted[0]

    def _pairs(
        self, decoded: Decoded
    ) -> Iterator[tuple[EncodedScene, Anchor, Float[Tensor, "rows t 4 4"], RelativePoses]]:
        """Yield the predicted and the true poses of each scene with cameras, for each anchor."""
        for scene, states in decoded.views(self.layers[0]):
            if scene.target_cameras is None:
                continue
            # the fusion may have appended its own tokens
            place = -1 if self.adds_token else scene.scene.tokens_per_step - 1
            with full_precision(states.device):
                identity = torch.tensor(IDENTITY * len(self.anchors)).to(states.device, non_blocking=True)
                numbers = to_float32(self.head(states[:, :, place])) + identity
            for anchor, each in zip(self.anchors, numbers.split(NUMBERS, -1), strict=True):
                rotation = rotation_from_6d(each[..., :6])
                translation = -(rotation * each[..., None, 6:]).sum(-1)
                yield scene, anchor, rigid_matrix(rotation, translation), self.true_poses(scene.target_cameras, anchor)

    @torch.no_grad()
    def true_poses(self, cameras: PatchCameras, anchor: Anchor) -> RelativePoses:
        """Return the poses of a scene in an anchor's frames, composed in float64."""
        known, place = cameras.has_camera, torch.arange(len(cameras.has_camera), device=cameras.has_camera.device)
        index = torch.where(known, place, -1)[None]
        every = Cameras.trusted(cameras.world_to_camera[None], cameras.K_normalized[None], index)
        every = every.to(dtype=torch.float64).scaled(self.scale)
        if anchor == "reference":
            anchors = every.reference_view(self.reference).expand_as(place)
        else:
            anchors = (place - 1).clamp(min=0)
        poses = every.world_to_camera[0]
        relative = poses @ invert_se3(poses[anchors])
        return RelativePoses(relative.to(cameras.world_to_camera.dtype), known & known[anchors] & (anchors < place))
