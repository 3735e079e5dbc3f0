"""Scenes as a model reads them and as its decoder sees them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.cameras import Cameras
from zoo.geometry.base import SceneGeometry
from zoo.sequence_layout import MediaKind


class SceneInputs:
    """One scene: one video, or all still images of a sequence.

    A plain class, as `Cameras`: Lightning's half-precision plugins cast dataclasses, and poses in bfloat16 are useless.

    Args:
        pixel_values: patches as the backbone's processor cuts them, temporal patch after temporal patch.
        grid_thw: (t, h, w) in patches before the spatial merge; each still image is one temporal patch.
        kind: "video" or "image".
        frames: RGB frames, two per temporal patch, in 0..1 or as bytes; for models that require frames.
        geometry: the dataset's cameras and depth for each frame.
        cameras: one camera per temporal patch, (1, t); takes precedence over those of `geometry`.
        has_camera: the temporal patches whose camera is valid; None means all.
        frame_indices: the raw video frames shown, for a time index that requires frames.
        seconds_per_grid: seconds per temporal patch; None takes the time index's nominal value.
    """

    def __init__(
        self,
        pixel_values: Float[Tensor, "patches channels"],
        grid_thw: Int[Tensor, " 3"],
        *,
        kind: MediaKind = "video",
        frames: Shaped[Tensor, "S 3 H W"] | None = None,
        geometry: SceneGeometry | None = None,
        cameras: Cameras | None = None,
        has_camera: Bool[Tensor, " t"] | None = None,
        frame_indices: Sequence[int] | None = None,
        seconds_per_grid: float | None = None,
    ) -> None:
        self.pixel_values, self.grid_thw, self.kind = pixel_values, grid_thw, kind
        self.frames, self.geometry, self.cameras, self.has_camera = frames, geometry, cameras, has_camera
        self.frame_indices, self.seconds_per_grid = frame_indices, seconds_per_grid

    @property
    def num_steps(self) -> int:
        """Temporal patches."""
        return int(self.grid_thw[0])

    @property
    def media_grids(self) -> Int[Tensor, "M 3"]:
        """(t, h, w) of each medium in the prompt: one video, or each still image."""
        if self.kind == "video":
            return self.grid_thw[None]
        one = self.grid_thw.clone()
        one[0] = 1
        return one.repeat(self.num_steps, 1)

    def to(self, device: torch.device | str, **_: Any) -> SceneInputs:
        """The same scene on another device; the grid stays where it is, since its numbers are read on the host."""
        other = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, (Tensor, SceneGeometry, Cameras)) and name != "grid_thw":
                setattr(other, name, value.to(device))
        return other


class PatchCameras(NamedTuple):
    """One camera per temporal patch of a scene.

    Attributes:
        world_to_camera: poses.
        K_normalized: intrinsics, see `zoo.cameras.normalize_intrinsics`.
        has_camera: the temporal patches whose camera is valid.
    """

    world_to_camera: Float[Tensor, "t 4 4"]
    K_normalized: Float[Tensor, "t 3 3"]
    has_camera: Bool[Tensor, " t"]


@dataclass(eq=False)
class SceneTokens:
    """One encoded scene: the decoder's visual tokens, and the cameras they belong to.

    Args:
        scene: what was encoded.
        tokens: visual tokens of each temporal patch, in the decoder's width: those on the 2D grid, then extra tokens.
        cameras: None for a model that uses none, or a scene without.
        points: the 3D point of each 2D token, NaN where unknown; for an encoding that uses points.
        median_depth: of all pixels of the scene; for an encoding that divides lengths by it.
        view_features: the mean 2D token of each temporal patch; for a reference view chosen by them.
    """

    scene: SceneInputs
    tokens: Float[Tensor, "t n D"]
    cameras: PatchCameras | None = None
    points: Float[Tensor, "tokens 3"] | None = None
    median_depth: Float[Tensor, ""] | None = None
    view_features: Float[Tensor, "t C"] | None = None
