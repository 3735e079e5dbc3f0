"""2D + MLP(3D): Spatial-MLLM's fusion."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError, check_choice
from zoo.fusions.base import Connector, Fusion, RMSNorm
from zoo.geometry.base import SceneGeometry
from zoo.sequences.layout import PATCHES_PER_TOKEN, TEMPORAL_PATCH_SIZE, ExtraTokens, GridTHW


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


# ---- 2D tokens query 3D tokens: VLM-3R's fusion ---------------------------------------------------------------------


class AttentionFusion(Fusion):
    """Add to each 2D token what it finds among the 3D tokens of its view (VLM-3R, arXiv 2505.20279, section 3.2).

    2D tokens are queries; keys and values are the patch tokens and camera tokens of the two frames of the temporal
    patch, without positions: the order of the 3D tokens has no effect, and their grid may have any size. Unlike
    VLM-3R's, whose queries are the patches of single frames before the projector, these are the merged tokens in the
    decoder's width; each term has one projection without bias, and the last one is zero before training in place of a
    norm, so the model starts as the plain one.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        head_dim: Channels per head, a divisor of the width.
        options: `active_branches`, `temporal_merge` and `deepstack`, see `Fusion`. Without the 2D branch, queries are
            zero and each token is the mean of the values.

    Raises:
        InputError: Head_dim does not divide the width.
    """

    parts_2d, parts_3d = ("norm_2d", "q"), ("norm_2d", "norm_3d", "q", "k", "v", "o")

    def __init__(self, width: int, geometry_width: int, head_dim: int = 64, **options: Any) -> None:
        super().__init__(width, geometry_width, **options)
        if head_dim < 1 or width % head_dim:
            raise InputError(f"--model.fusion.head_dim {head_dim}: choose a divisor of the decoder's {width} channels")
        self.head_dim = head_dim
        self.norm_2d, self.norm_3d = RMSNorm(width), RMSNorm(geometry_width)
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(geometry_width, width, bias=False) for _ in range(2))
        nn.init.zeros_(self.o.weight)  # this one alone, or nothing would get a gradient

    def merged_3d(self, geometry: SceneGeometry, grid_thw: GridTHW, dtype: torch.dtype) -> Float[Tensor, "t m C"]:
        """The 3D tokens of each temporal patch: of both frames the patch tokens, then the camera tokens."""
        patches = self.paired(geometry.patches, "3D tokens", grid_thw)
        cameras = self.paired(geometry.camera_tokens, "camera tokens", grid_thw)
        return torch.cat((patches.flatten(1, 3), cameras), 1).to(dtype)

    def embed_3d(self, merged: Float[Tensor, "t m C"]) -> Float[Tensor, "t m C"]:
        return self.norm_3d(merged)

    def join(self, flat: Float[Tensor, "t n D"], spatial: Float[Tensor, "#t m #C"]) -> Float[Tensor, "t n D"]:
        if not self.uses_geometry:
            return flat
        rows = (self.q(self.norm_2d(flat)), self.k(spatial), self.v(spatial))
        q, k, v = (each.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for each in rows)
        return flat + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# ---- A fusion of VGGT's camera tokens, without its patch tokens -----------------------------------------------------

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
