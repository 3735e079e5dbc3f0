"""The patch embedding of VGGT and Depth Anything 3, whose parameters are those of a Conv2d."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchConvolution(nn.Conv2d):
    """A convolution with the patch as kernel and stride: on a GPU, a matrix product with patches that are cut before.

    cuDNN may be far slower in bfloat16, see `zoo.backbones.patch_embedding`. On a CPU the results stay those of the
    published code bit for bit.

    Args:
        patch_size: In pixels.
        embed_dim: Width of the tokens.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__(3, embed_dim, patch_size, patch_size)

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, "N D rows columns"]:
        """Embed the patches of images; the rest of a side that is no multiple of the patch is left out."""
        return super().forward(images) if images.device.type == "cpu" else self.multiply(images)

    def multiply(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D rows columns"]:
        """Embed the patches by a matrix product."""
        side = self.kernel_size[0]
        patches = images.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
