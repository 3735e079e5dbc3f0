"""2D + MLP(3D): Spatial-MLLM's fusion."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from zoo.fusions.base import Fusion
from zoo.fusions.connector import Connector
from zoo.sequences.visual_grid import PATCHES_PER_TOKEN


class AddFusion(Fusion):
    """Add the connector's output for the 3D tokens under each 2D token to it (arXiv 2505.23747, equation 3).

    Before training it adds zero, so the model starts as plain Qwen2.5-VL.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        options: `active_branches` and `temporal_merge`, see `Fusion`.
    """

    parts_3d = ("connector",)

    def __init__(self, width: int, geometry_width: int, **options: Any) -> None:
        super().__init__(width, geometry_width, **options)
        merged = PATCHES_PER_TOKEN * geometry_width
        self.connector = Connector(merged, merged, width, zero=True)

    def embed_3d(self, merged: Float[Tensor, "t n merged"]) -> Float[Tensor, "t n D"]:
        return self.connector(merged)
