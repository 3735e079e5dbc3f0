"""3D tokens of several layers into several decoder layers: SpatialStack's fusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.fusions.base import Fusion
from zoo.fusions.connector import Connector
from zoo.geometry.base import SceneGeometry
from zoo.sequences.visual_grid import PATCHES_PER_TOKEN, SPATIAL_MERGE_SIZE, GridTHW


class DeepFusion(Fusion):
    """Add 3D tokens to the visual tokens behind several decoder layers (SpatialStack, arXiv 2603.27437).

    Their features go the way of DeepStack's, and are added to those where the backbone has some. Each decoder layer has
    a connector of its own; the 2D tokens at the decoder's entrance stay as they are. Before training all features are
    zero, so the model starts as the plain one.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens, of all their layers together.
        decoder_layers: Counted from 0. The first one gets the 3D tokens of the first `--model.geometry.layers`, and so
            on; those of an encoder with one layer reach all of them. The decoder's last layer is none of them, since
            nothing reads its visual tokens.
        options: `active_branches`, `temporal_merge` and `deepstack`, see `Fusion`.

    Raises:
        InputError: No decoder layer, or one that is negative or named twice.
    """

    parts_3d = ("connectors",)

    def __init__(
        self, width: int, geometry_width: int, decoder_layers: Sequence[int] = (0, 1, 2), **options: Any
    ) -> None:
        super().__init__(width, geometry_width, **options)
        self.decoder_layers = list(decoder_layers)
        if not self.decoder_layers or min(self.decoder_layers) < 0 or len({*decoder_layers}) < len(self.decoder_layers):
            raise InputError(f"--model.fusion.decoder_layers {self.decoder_layers}: name different layers from 0 on")
        self.shares = 1
        self.connectors = nn.ModuleList()

    def bind(self, num_encoder_layers: int, num_decoder_layers: int) -> None:
        """Build the connectors, see `Fusion`."""
        option = f"--model.fusion.decoder_layers {self.decoder_layers}"
        if max(self.decoder_layers) > num_decoder_layers - 2:
            raise InputError(
                f"{option}: choose from 0 to {num_decoder_layers - 2}; behind the last of the {num_decoder_layers} "
                "layers nothing reads visual tokens"
            )
        count = len(self.decoder_layers)
        if num_encoder_layers not in (1, count):
            raise InputError(
                f"{option} and 3D tokens of {num_encoder_layers} layers: name {count} --model.geometry.layers, one per "
                "decoder layer, or a single one for all"
            )
        self.shares = num_encoder_layers
        inputs = PATCHES_PER_TOKEN * self.geometry_width // self.shares
        self.connectors.extend(Connector(inputs, self.width, self.width, zero=True) for _ in range(count))

    def forward(
        self,
        visual: Float[Tensor, "N D"],
        grid_thw: GridTHW,
        geometry: SceneGeometry | None,
        views: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "t n D"]:
        """Return the 2D tokens, see `Fusion`; the geometry is for `deep_features`."""
        return self.branch_2d(visual, grid_thw, views)

    def deep_features(
        self, geometry: SceneGeometry | None, grid_thw: GridTHW, dtype: torch.dtype
    ) -> Float[Tensor, "layers t n D"] | None:
        """Return the features of the decoder layers up to the last of them; zeros for those that get none."""
        found = self.branch_3d(geometry, grid_thw, dtype)
        if found is None:
            return None
        of_layer = dict(zip(self.decoder_layers, found, strict=True))
        nothing = torch.zeros_like(found[0])
        return torch.stack([of_layer.get(layer, nothing) for layer in range(max(self.decoder_layers) + 1)])

    def embed_3d(self, merged: Float[Tensor, "t n merged"]) -> Float[Tensor, "connectors t n D"]:
        # `merge_spatial` has the frames within a channel, and all channels within a patch
        shares = merged.unflatten(-1, (SPATIAL_MERGE_SIZE**2, self.shares, -1)).unbind(-2)
        each = list(shares) * (len(self.connectors) // self.shares)
        return torch.stack(
            [connector(share.flatten(-2)) for connector, share in zip(self.connectors, each, strict=True)]
        )
