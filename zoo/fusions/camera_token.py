"""A fusion of VGGT's camera tokens, without its patch tokens."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.errors import check_choice
from zoo.fusions.base import Fusion
from zoo.fusions.connector import Connector
from zoo.geometry.base import SceneGeometry
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE, ExtraTokens, GridTHW

Mode = Literal["append", "add"]


class CameraTokenFusion(Fusion):
    """Map the camera tokens of a view's two frames to one token by the connector; patch tokens are not used.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the camera tokens.
        mode: `append` it to the 2D tokens of its view, at the position of the first of them; `add` it to each 2D token
            of its view, zero before training.
        options: `active_branches` and `temporal_merge`, see `Fusion`.
    """

    parts_3d = ("connector",)

    def __init__(self, width: int, geometry_width: int, mode: Mode = "append", **options: Any) -> None:
        super().__init__(width, geometry_width, **options)
        check_choice("mode", mode, Mode)
        self.mode = mode
        self.appended = ExtraTokens.ONE if mode == "append" else ExtraTokens.NONE
        self.connector = Connector(TEMPORAL_PATCH_SIZE * geometry_width, width, width, zero=mode == "add")

    def merged_3d(self, geometry: SceneGeometry, grid_thw: GridTHW, dtype: torch.dtype) -> Float[Tensor, "t 1 merged"]:
        return self.paired(geometry.camera_tokens, "camera tokens", grid_thw).to(dtype).flatten(1)[:, None]

    def embed_3d(self, merged: Float[Tensor, "t 1 merged"]) -> Float[Tensor, "t 1 D"]:
        return self.connector(merged)

    def join(self, flat: Float[Tensor, "t n D"], spatial: Float[Tensor, "#t 1 #D"]) -> Float[Tensor, "t tokens D"]:
        if self.mode == "add":
            return super().join(flat, spatial)
        return torch.cat((flat, spatial.expand(len(flat), 1, self.width)), dim=1)
