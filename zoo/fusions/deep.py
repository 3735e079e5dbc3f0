"""Fusions after decoder layers: 3D tokens of several layers are added in several decoder layers (SpatialStack)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.encodings.base import DecoderLayout
from zoo.errors import InputError
from zoo.fusions.base import HIDDEN, Connector, Fusion, PatchMerger, PatchNorm, TemporalMerge
from zoo.geometry.base import SceneGeometry
from zoo.sequences.layout import PATCHES_PER_TOKEN, SPATIAL_MERGE_SIZE, GridTHW


class DeepFusion(Fusion):
    """Add 3D tokens to the visual tokens after several decoder layers, as SpatialStack (arXiv 2603.27437) does.

    `StackFusion` is SpatialStack's own fusion. This one merges two frames by Spatial-MLLM's connector.

    The features are added in the same way as DeepStack features, in addition to those if the backbone has some. Each
    decoder layer has its own connector. The 2D tokens at the decoder's input are unchanged. Before training all
    features are zero, so the model starts as the plain one.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens, all layers together.
        decoder_layers: Layer numbers from 0. The first one gets the 3D tokens of the first of
            `--model.geometry.layers`, and so on. If the encoder has one layer, its tokens go to all of them. A layer
            that is named twice gets the sum. The decoder's last layer is not allowed, because no later layer reads its
            visual tokens.
        options: `active_branches`, `temporal_merge` and `deepstack`, see `Fusion`.

    Raises:
        InputError: There is no decoder layer, or a negative one.
    """

    parts_3d = ("connectors",)

    def __init__(
        self, width: int, geometry_width: int, decoder_layers: Sequence[int] = (0, 1, 2), **options: Any
    ) -> None:
        super().__init__(width, geometry_width, **options)
        self.decoder_layers = list(decoder_layers)
        if not self.decoder_layers or min(self.decoder_layers) < 0:
            raise InputError(f"--model.fusion.decoder_layers {self.decoder_layers}: name layers from 0 on")
        self.shares = 1
        self.connectors = nn.ModuleList()

    def bind(self, num_encoder_layers: int, decoder: DecoderLayout) -> None:
        """Build the connectors, see `Fusion`."""
        num_decoder_layers = decoder.num_layers
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
        self.connectors.extend(self.build_connector(self.geometry_width // self.shares) for _ in range(count))

    def build_connector(self, channels: int) -> nn.Module:
        """Build the connector of one decoder layer for 3D tokens of `channels`. Its output starts at zero."""
        return Connector(PATCHES_PER_TOKEN * channels, self.width, self.width, zero=True)

    def forward(
        self,
        visual: Float[Tensor, "N D"],
        grid_thw: GridTHW,
        geometry: SceneGeometry | None,
        views: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "t n D"]:
        """Return the 2D tokens, see `Fusion`. The geometry is used by `deep_features`."""
        return self.branch_2d(visual, grid_thw, views)

    def deep_features(
        self, geometry: SceneGeometry | None, grid_thw: GridTHW, dtype: torch.dtype
    ) -> Float[Tensor, "layers t n D"] | None:
        """Return the features of all decoder layers up to the last one with features. Zeros where there are none."""
        found = self.branch_3d(geometry, grid_thw, dtype)
        if found is None:
            return None
        nothing = torch.zeros_like(found[0])
        of_layer: dict[int, Tensor] = {}
        for layer, features in zip(self.decoder_layers, found, strict=True):
            of_layer[layer] = of_layer[layer] + features if layer in of_layer else features
        return torch.stack([of_layer.get(layer, nothing) for layer in range(max(self.decoder_layers) + 1)])

    def embed_3d(self, merged: Float[Tensor, "t n merged"]) -> Float[Tensor, "connectors t n D"]:
        # `merge_spatial` orders frames within a channel, and channels within a patch
        shares = merged.unflatten(-1, (SPATIAL_MERGE_SIZE**2, self.shares, -1)).unbind(-2)
        each = list(shares) * (len(self.connectors) // self.shares)
        return torch.stack(
            [connector(share.flatten(-2)) for connector, share in zip(self.connectors, each, strict=True)]
        )


class StackFusion(DeepFusion):
    """SpatialStack's fusion (arXiv 2603.27437): a `PatchMerger` per decoder layer, in which each image counts once.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens, all layers together.
        decoder_layers: See `DeepFusion`.
        hidden: Channels of the mergers' hidden layer.
        norm: Norm of each patch. null uses the norm of released weights, `rms` in the Qwen2.5-VL variant, and otherwise
            `layer`.
        temporal_merge: See `PatchMergerFusion`.
        options: `active_branches` and `deepstack`, see `Fusion`.
    """

    frames_per_token = 1

    def __init__(
        self,
        width: int,
        geometry_width: int,
        decoder_layers: Sequence[int] = (0, 1, 2),
        *,
        hidden: int = HIDDEN,
        norm: PatchNorm | None = None,
        temporal_merge: TemporalMerge = "mean",
        **options: Any,
    ) -> None:
        super().__init__(width, geometry_width, decoder_layers, temporal_merge=temporal_merge, **options)
        self.hidden, self.norm = hidden, norm

    def build_connector(self, channels: int) -> nn.Module:
        self.norm = self.norm or "layer"  # not set by released weights
        return PatchMerger(channels, self.hidden, self.width, self.norm, zero=True)
