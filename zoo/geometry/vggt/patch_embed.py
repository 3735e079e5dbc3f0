"""Patch embedding: DINOv2 with registers, or a plain convolution.

DINOv2 is transformers' own. It interpolates position embeddings as VGGT does: bicubic, antialiased, no offset, in
float32, and not at all for a square image of the embeddings' own size; its LayerNorms have eps 1e-6.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

DINOV2 = {  # name: width, layers, heads
    "dinov2_vits14_reg": (384, 12, 6),
    "dinov2_vitb14_reg": (768, 12, 12),
    "dinov2_vitl14_reg": (1024, 24, 16),
}


class DINOv2(Dinov2WithRegistersModel):
    """DINOv2 with registers (arXiv 2309.16588) that returns only the normalized patch tokens."""

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, "N patches C"]:
        """Embeds normalized images."""
        return super().forward(pixel_values=images).last_hidden_state[:, 1 + self.config.num_register_tokens :]


class ConvPatchEmbed(nn.Module):
    """Convolution with the patch as kernel and stride; the aggregator's RoPE adds the positions."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N patches C"]:
        """Embeds normalized images."""
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).mT


def build_patch_embed(name: str, img_size: int, patch_size: int, embed_dim: int, num_registers: int) -> nn.Module:
    """Builds a patch embedding with random weights.

    Args:
        name: `conv`, or a DINOv2: `dinov2_vits14_reg`, `dinov2_vitb14_reg`, `dinov2_vitl14_reg`.
        img_size: side in pixels of the square image that DINOv2's position embeddings were made for.
        patch_size: in pixels.
        embed_dim: width of the tokens.
        num_registers: of DINOv2, which its output leaves out.

    Raises:
        ValueError: An unknown name, or a width that is not that of the model.
    """
    if name == "conv":
        return ConvPatchEmbed(patch_size, embed_dim)
    if name not in DINOV2:
        raise ValueError(f"unknown patch_embed {name!r}: choose conv, {', '.join(DINOV2)}")
    width, layers, heads = DINOV2[name]
    if embed_dim != width:
        raise ValueError(f"{name} has tokens of width {width}, not {embed_dim}: set embed_dim to {width}")
    config = Dinov2WithRegistersConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=img_size,
        patch_size=patch_size,
        num_register_tokens=num_registers,
        layer_norm_eps=1e-6,
    )
    return DINOv2(config)
