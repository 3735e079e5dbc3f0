"""What tells the 2D tokens of a scene about its cameras before the decoder sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.encodings.reference import ReferenceView


class ViewMixer(nn.Module, ABC):
    """A branch beside the 2D tokens that reads the cameras; without effect before training. A fusion holds it.

    Attributes:
        reference: the view whose frame is the world; None is the data's own world.
    """

    reference: ReferenceView | None

    @abstractmethod
    def forward(
        self,
        tokens: Float[Tensor, "N D"],
        cameras: Cameras,
        grid: tuple[int, int, int] | Int[Tensor, " 3"],
        has_camera: Bool[Tensor, " t"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """The tokens of one scene with what the branch adds to them.

        Args:
            tokens: step after step, row after row.
            cameras: of that scene, a batch of one, a camera a step.
            grid: its (t, h, w) in tokens.
            has_camera: the steps whose camera means something; the tokens of the others stay as they are, bit for bit.

        Raises:
            ValueError: not one camera a step, or not t * h * w tokens.
        """


def check_scene(tokens: Tensor, cameras: Cameras, grid: tuple[int, int, int] | Tensor) -> tuple[int, int, int]:
    """(t, h, w), if the tokens and the cameras are those of such a scene; else a ValueError."""
    steps, rows, columns = (int(side) for side in grid)
    if cameras.world_to_camera.shape[:2] != (1, steps) or len(tokens) != steps * rows * columns:
        raise ValueError(
            f"{len(tokens)} tokens with cameras {tuple(cameras.world_to_camera.shape[:2])} are no scene of "
            f"{steps} x {rows} x {columns} tokens, with a camera a step"
        )
    return steps, rows, columns
