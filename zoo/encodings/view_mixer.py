"""Base class of view mixers, which add camera information to the 2D tokens before the decoder."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.encodings.base import CameraModule
from zoo.encodings.symmetries import ViewSymmetries

Grid = tuple[int, int, int] | Int[Tensor, " 3"]  # (t, h, w) of one scene in tokens
HasCamera = Bool[Tensor, "B t"] | None  # temporal patches with a valid camera


class ViewMixer(CameraModule):
    """A residual branch on the 2D tokens of a scene that reads its cameras; zero before training."""

    @property
    @abstractmethod
    def symmetries(self) -> ViewSymmetries:
        """The exact symmetries, measured in both directions by the property tests."""

    @abstractmethod
    def forward(
        self, tokens: Float[Tensor, "N D"], cameras: Cameras, grid: Grid, has_camera: HasCamera = None
    ) -> Float[Tensor, "N D"]:
        """Returns the tokens plus the branch, for B independent scenes with the same grid.

        Args:
            tokens: 2D tokens, ordered by scene, temporal patch, row and column.
            cameras: of each scene, one per temporal patch.
            grid: (t, h, w) of one scene in tokens.
            has_camera: temporal patches with a valid camera; the tokens of the others are unchanged, bit for bit.

        Raises:
            ValueError: the number of cameras is not t, or the number of tokens not B * t * h * w.
        """


def check_scenes(tokens: Tensor, cameras: Cameras, grid: Grid) -> tuple[int, int, int]:
    """Returns (t, h, w) as integers, or raises ValueError if tokens and cameras do not match the grid."""
    steps, rows, columns = (int(side) for side in grid)
    scenes, views = cameras.world_to_camera.shape[:2]
    if views != steps or len(tokens) != scenes * steps * rows * columns:
        raise ValueError(
            f"{len(tokens)} tokens and {views} cameras per scene do not match {scenes} scenes of "
            f"{steps} x {rows} x {columns} tokens with one camera per temporal patch"
        )
    return steps, rows, columns
