"""Dense prediction head: tokens to depth or points, with a confidence."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from zoo.geometry.dpt import DPT, ResidualUnit, Scratch, in_chunks, upsample
from zoo.precision import to_float32


class ReluResidualUnit(ResidualUnit):
    """A residual unit that adds relu(x), not x.

    The official unit applies its ReLU in place, which overwrites x before it is added; the released weights were
    trained with that.
    """

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Refine a map."""
        return super().forward(F.relu(x))


class DPTHead(DPT):
    """DPT head (Ranftl et al. 2021, arXiv 2103.13413) of VGGT, with the official parameter names.

    Args:
        dim_in: Width of the tokens.
        output_dim: Channels of the result, plus one for the confidence.
        activation: `exp` (depth), or `inv_log`: sign(x) (e^|x| - 1) (points).
        conf_activation: `expp1`: 1 + e^x.
        patch_size: In pixels.
        features: Width of the merged maps.
        out_channels: Widths of the four maps.
        intermediate_layer_idx: The layers of the aggregator, counted from the end where negative.
    """

    def __init__(
        self,
        dim_in: int = 2048,
        output_dim: int = 4,
        activation: str = "inv_log",
        conf_activation: str = "expp1",
        patch_size: int = 14,
        features: int = 256,
        out_channels: Sequence[int] = (256, 512, 1024, 1024),
        intermediate_layer_idx: Sequence[int] = (4, 11, 17, 23),
    ) -> None:
        super().__init__(dim_in, out_channels, patch_size)
        if activation not in ("exp", "inv_log") or conf_activation != "expp1":
            raise ValueError(f"unknown activations {activation!r}, {conf_activation!r}: use exp or inv_log, then expp1")
        self.activation = activation
        self.layers = tuple(intermediate_layer_idx)
        self.scratch = Scratch(features, output_dim, out_channels, ReluResidualUnit)

    def forward(
        self, tokens: Sequence[Float[Tensor, "N patches D"]], height: int, width: int
    ) -> tuple[Float[Tensor, "N H W C"], Float[Tensor, "N H W"]]:
        """Predict maps for N frames in float32 or better.

        Args:
            tokens: Patch tokens of the four `layers`.
            height: Of the images in pixels.
            width: Of the images in pixels.

        Returns:
            Values in the size of the images, and their confidence, above 1.
        """
        out = in_chunks(lambda chunk: {"maps": self._maps(chunk, height, width)}, tokens)["maps"]
        values, confidence = out.movedim(1, -1).split([out.shape[1] - 1, 1], -1)
        values = values.exp() if self.activation == "exp" else values.sign() * values.abs().expm1()
        return values, 1 + confidence.squeeze(-1).exp()

    def _maps(self, tokens: Sequence[Tensor], height: int, width: int) -> Tensor:
        levels = self.scratch.levels(self.reassemble(tokens, height, width))
        merged = upsample(self.scratch.output_conv1(self.scratch.merge(levels)), (height, width))
        return to_float32(self.scratch.output_conv2(self.embed_positions(merged, width / height)))
