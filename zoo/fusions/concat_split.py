"""Concatenation of 2D and 3D tokens, on the channels or on the sequence."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.errors import check_choice
from zoo.fusions.base import Connector, Fusion
from zoo.sequences.layout import PATCHES_PER_TOKEN, ExtraTokens, GridTHW

Axis = Literal["channel", "token"]


class ConcatSplitFusion(Fusion):
    """Concatenate both branches.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        axis: With `channel` two MLPs map the 2D and the 3D tokens to half of the decoder's width each. With `token` an
            MLP maps the 3D tokens to the whole width, and they follow the 2D tokens of their view, at the same
            positions and without a camera, which VGGT's features already contain.
        options: `active_branches` and `temporal_merge`, see `Fusion`.

    Raises:
        ValueError: An odd width with axis `channel`.
    """

    parts_2d, parts_3d = ("flat",), ("spatial",)

    def __init__(self, width: int, geometry_width: int, axis: Axis = "channel", **options: Any) -> None:
        super().__init__(width, geometry_width, **options)
        check_choice("axis", axis, Axis)
        self.axis = axis
        self.appended = ExtraTokens.ALL if axis == "token" else ExtraTokens.NONE
        share = self.flat_width  # the other branch's too
        self.flat = Connector(width, width, share) if axis == "channel" else None
        self.spatial = Connector(PATCHES_PER_TOKEN * geometry_width, width, share)

    @property
    def flat_width(self) -> int:
        return self.width // 2 if self.axis == "channel" else self.width

    def embed_2d(self, visual: Float[Tensor, "N D"], grid_thw: GridTHW) -> Float[Tensor, "t n a"]:
        flat = super().embed_2d(visual, grid_thw)
        return flat if self.flat is None else self.flat(flat)

    def embed_3d(self, merged: Float[Tensor, "t n merged"]) -> Float[Tensor, "t n b"]:
        return self.spatial(merged)

    def join(self, flat: Float[Tensor, "t n a"], spatial: Float[Tensor, "#t #n b"]) -> Float[Tensor, "t tokens D"]:
        # of equal width on either axis
        return torch.cat((flat, spatial.expand_as(flat)), dim=2 if self.axis == "channel" else 1)
