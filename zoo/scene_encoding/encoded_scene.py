"""One encoded scene."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.backbones.base import VisualTokens
from zoo.cameras.patch_cameras import PatchCameras
from zoo.sequences.scene_inputs import SceneInputs


@dataclass(frozen=True, eq=False)
class SceneCameras:
    """What camera parts read of a scene.

    Attributes:
        patches: One camera per temporal patch.
        points: The 3D point of each 2D token, NaN where unknown; for an encoding that uses points.
        depth: Of all pixels, NaN where unknown; for an encoding that divides lengths by its median.
        view_features: The mean 2D token of each temporal patch; for a reference view chosen by them.
    """

    patches: PatchCameras
    points: Float[Tensor, "tokens 3"] | None = None
    depth: Float[Tensor, " pixels"] | None = None
    view_features: Float[Tensor, "t C"] | None = None


@dataclass(frozen=True, eq=False)
class SceneTargets:
    """What objectives learn to predict of a scene: the dataset's, or in training the geometry encoder's.

    Attributes:
        cameras: One per temporal patch; None without.
        depth: Beneath each 2D token, 0 where unknown; None without.
        in_camera_unit: Whether depth has the unit of the cameras that the scene is encoded with.
    """

    cameras: PatchCameras | None = None
    depth: Float[Tensor, "t n"] | None = None
    in_camera_unit: bool = True


@dataclass(frozen=True, eq=False)
class EncodedScene:
    """One encoded scene: the decoder's visual tokens, and the cameras they belong to.

    Attributes:
        scene: What was encoded.
        visual: (t, n, D) tokens of each temporal patch in the decoder's width, those on the 2D grid and then extra
            tokens; and what is added to their hidden states in the first decoder layers.
        cameras: For a model that uses cameras; None if the scene has none.
        targets: Of objectives.
        end_token: Behind the tokens of the last view; None without.
        raw_depth: What the view mixer predicts of the depth of each 2D token, see `ViewMixer.raw_depth`; None without.
    """

    scene: SceneInputs
    visual: VisualTokens
    cameras: SceneCameras | None = None
    targets: SceneTargets = SceneTargets()
    end_token: Float[Tensor, " D"] | None = None
    raw_depth: Float[Tensor, "t n ends"] | None = None

    def in_sequence(self) -> VisualTokens:
        """Return the visual tokens in the order of a sequence, all views and then the end token."""
        tokens, deepstack = self.visual.tokens.flatten(0, 1), self.visual.deepstack.flatten(1, 2)
        if self.end_token is not None:
            tokens = torch.cat((tokens, self.end_token[None].to(tokens.dtype)))
            deepstack = F.pad(deepstack, (0, 0, 0, 1))
        return VisualTokens(tokens, deepstack)

    def token_points(self) -> Float[Tensor, "tokens 3"]:
        """Return the 3D point of each 2D token; NaN where unknown."""
        if self.cameras is not None and self.cameras.points is not None:
            return self.cameras.points
        count = self.scene.num_steps * self.scene.tokens_per_step
        return torch.full((count, 3), torch.nan, dtype=torch.float64, device=self.visual.tokens.device)
