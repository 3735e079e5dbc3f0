"""What tells the 2D tokens of a scene about its cameras before the decoder sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.encodings.reference import ReferenceView
from zoo.encodings.symmetries import ViewSymmetries


class ViewMixer(nn.Module, ABC):
    """A branch beside the 2D tokens that reads the cameras; without effect before training.

    Attributes:
        reference: the view whose frame is the world; None is the data's own world.
    """

    reference: ReferenceView | None

    @property
    @abstractmethod
    def symmetries(self) -> ViewSymmetries:
        """What holds exactly; the property tests take it at its word."""

    @abstractmethod
    def forward(
        self,
        tokens: Float[Tensor, "N D"],
        cameras: Cameras,
        grid: tuple[int, int, int] | Int[Tensor, " 3"],
        has_camera: Bool[Tensor, "B t"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """The tokens of B scenes of one grid with what the branch adds to them; no scene knows of another.

        Args:
            tokens: scene after scene, step after step, row after row.
            cameras: of each scene, a camera a step.
            grid: the (t, h, w) of a scene in tokens.
            has_camera: the steps whose camera means something; the tokens of the others stay as they are, bit for bit.

        Raises:
            ValueError: not one camera a step, or not B * t * h * w tokens.
        """


def check_scenes(tokens: Tensor, cameras: Cameras, grid: tuple[int, int, int] | Tensor) -> tuple[int, int, int]:
    """(t, h, w), if the tokens and the cameras are those of such scenes; else a ValueError."""
    steps, rows, columns = (int(side) for side in grid)
    scenes, views = cameras.world_to_camera.shape[:2]
    if views != steps or len(tokens) != scenes * steps * rows * columns:
        raise ValueError(
            f"{len(tokens)} tokens with cameras {(scenes, views)} are no scenes of {steps} x {rows} x {columns} "
            "tokens, with a camera a step"
        )
    return steps, rows, columns
