"""2D + MLP(3D) with a norm of each patch, one frame per token: VG-LLM's fusion."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import check_choice
from zoo.fusions.base import Fusion, TemporalMerge
from zoo.fusions.connector import RMSNorm
from zoo.sequences.visual_grid import SPATIAL_MERGE_SIZE

PatchNorm = Literal["rms", "layer"]
HIDDEN = 4096  # of the released models, whatever the decoder's width
STD = 0.02  # of the published initialization


class PatchMerger(nn.Module):
    """Norm of each patch, then an MLP on the 2 x 2 patches under a token, as Qwen2.5-VL's merger; its official names.

    Args:
        channels: Of a patch.
        hidden: Channels of the hidden layer.
        outputs: Channels of the output.
        norm: RMSNorm, or LayerNorm with bias.
        zero: Initialize the output to zero, in place of the published random weights.
    """

    def __init__(self, channels: int, hidden: int, outputs: int, norm: PatchNorm = "rms", zero: bool = False) -> None:
        super().__init__()
        check_choice("norm", norm, PatchNorm)
        self.channels = channels
        self.ln_q = RMSNorm(channels) if norm == "rms" else nn.LayerNorm(channels, eps=1e-6)
        inputs = SPATIAL_MERGE_SIZE**2 * channels
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
        for name, parameter in self.mlp.named_parameters():
            if name.endswith("bias") or (zero and name.startswith("2.")):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=STD)

    def forward(self, merged: Float[Tensor, "*rest inputs"]) -> Float[Tensor, "*rest outputs"]:
        return self.mlp(self.ln_q(merged.unflatten(-1, (-1, self.channels))).flatten(-2))


class PatchMergerFusion(Fusion):
    """Add the merger's output for the 3D tokens under each 2D token to it (VG-LLM, arXiv 2505.24625).

    As published, the merger starts with random weights, so that the untrained model is not the plain one.

    Args:
        width: D, width of the decoder.
        geometry_width: C, width of the 3D tokens.
        hidden: Channels of the merger's hidden layer.
        norm: Of each patch: `rms` in VG-LLM; `layer` in SpatialStack's variant of it.
        temporal_merge: Of the two frames of a video that are merged into one 2D token, their `mean` or the `first`; the
            published models show each frame as a still of its own.
        options: `active_branches` and `deepstack`, see `Fusion`.
    """

    frames_per_token = 1
    parts_3d = ("merger",)

    def __init__(
        self,
        width: int,
        geometry_width: int,
        *,
        hidden: int = HIDDEN,
        norm: PatchNorm = "rms",
        temporal_merge: TemporalMerge = "mean",
        **options: Any,
    ) -> None:
        super().__init__(width, geometry_width, temporal_merge=temporal_merge, **options)
        self.hidden, self.norm = hidden, norm
        self.merger = PatchMerger(geometry_width, hidden, width, norm)

    def embed_3d(self, merged: Float[Tensor, "t n merged"]) -> Float[Tensor, "t n D"]:
        return self.merger(merged)
