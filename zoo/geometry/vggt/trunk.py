"""VGGT's trunk: patch embedding, then alternating attention within each frame and over all frames."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from zoo.geometry.layers import Block, PatchConvolution, normalize, patch_rotations

# DINOv2 is transformers' implementation. It interpolates position embeddings as VGGT does: bicubic, antialiased,
# without offset, in float32, and not at all for a square image of the embeddings' own size. Its LayerNorms have eps
# 1e-6.

DINOV2 = {  # name: width, layers, heads
    "dinov2_vits14_reg": (384, 12, 6),
    "dinov2_vitb14_reg": (768, 12, 12),
    "dinov2_vitl14_reg": (1024, 24, 16),
}


class Aggregator(nn.Module):
    """Alternating-attention transformer over the frames of a scene (section 3.2 of arXiv 2503.11651).

    Each frame has a camera token, registers, and its patches. The first frame has its own camera token and registers,
    which mark it as the world.

    Args:
        img_size: Side in pixels of the square image that DINOv2's position embeddings were made for.
        patch_size: Patch size in pixels. The sides of an image must be multiples of it.
        embed_dim: Width C of the tokens. A layer's output has width 2C.
        depth: Number of layers. Each is a frame block and a global block.
        num_heads: Number of attention heads. The channels of a head must be a multiple of 4.
        mlp_ratio: Hidden width of the MLPs over C.
        num_register_tokens: Registers per frame. DINOv2 has the same number of its own.
        patch_embed: `conv` or the name of a DINOv2 model, see `build_patch_embed`.
        rope_freq: Base of RoPE's frequencies.
    """

    def __init__(
        self,
        img_size: int = 518,
        patch_size: int = 14,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_register_tokens: int = 4,
        patch_embed: str = "dinov2_vitl14_reg",
        rope_freq: float = 100.0,
    ) -> None:
        super().__init__()
        if embed_dim % (4 * num_heads):
            raise ValueError(f"embed_dim={embed_dim} must be a multiple of 4 * num_heads={4 * num_heads} for RoPE")
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        self.head_dim, self.rope_freq = embed_dim // num_heads, rope_freq
        self.patch_start = 1 + num_register_tokens
        self.patch_embed = build_patch_embed(patch_embed, img_size, patch_size, embed_dim, num_register_tokens)
        # index 0 is for the first frame, 1 for all others
        self.camera_token = nn.Parameter(1e-6 * torch.randn(1, 2, 1, embed_dim))
        self.register_token = nn.Parameter(1e-6 * torch.randn(1, 2, num_register_tokens, embed_dim))
        blocks = [Block(embed_dim, num_heads, mlp_ratio, qk_norm=True) for _ in range(2 * depth)]
        self.frame_blocks = nn.ModuleList(blocks[:depth])
        self.global_blocks = nn.ModuleList(blocks[depth:])

    def forward(
        self,
        images: Float[Tensor, "B S 3 H W"],
        layers: Collection[int],
        attends: Bool[Tensor, "B S S"] | None = None,
    ) -> dict[int, Float[Tensor, "B S P D"]]:
        """Compute layer outputs: the outputs of the frame and the global block, concatenated (D = 2C).

        No layer after the last of `layers` is computed, and no other output is kept.

        Args:
            images: RGB in 0..1. They are normalized here.
            layers: Indices from 0 to depth - 1.
            attends: Whether a frame (second axis) attends to another (third axis). None is each to all.

        Returns:
            For each of `layers`, tokens in the order camera, registers, patches (row by row).
        """
        batch, frames, _, height, width = images.shape
        patches = self.patch_embed(normalize(images).flatten(0, 1))
        special = torch.cat((self.camera_token, self.register_token), 2)
        which = (torch.arange(frames, device=images.device) > 0).long()
        special = special[:, which].expand(batch, -1, -1, -1).flatten(0, 1)
        tokens = torch.cat((special.to(patches.dtype), patches), 1)
        grid = height // self.patch_size, width // self.patch_size
        rotations = patch_rotations(grid, self.patch_start, self.head_dim, self.rope_freq, images.device)
        rotations_all = rotations.repeat(1, frames, 1, 1)
        mask, count = attends, tokens.shape[1]
        if mask is not None:
            mask = mask.repeat_interleave(count, 1).repeat_interleave(count, 2)[:, None]

        outputs: dict[int, Tensor] = {}
        for layer in range(max(layers, default=-1) + 1):
            within = self.frame_blocks[layer](tokens, rotations)
            across = self.global_blocks[layer](within.unflatten(0, (batch, frames)).flatten(1, 2), rotations_all, mask)
            tokens = across.unflatten(1, (frames, -1)).flatten(0, 1)
            if layer in layers:
                outputs[layer] = torch.cat((within, tokens), -1).unflatten(0, (batch, frames))
        return outputs


class DINOv2(Dinov2WithRegistersModel):
    """DINOv2 with registers (arXiv 2309.16588) that returns only the normalized patch tokens."""

    def __init__(self, config: Dinov2WithRegistersConfig) -> None:
        super().__init__(config)
        self.embeddings.patch_embeddings.projection.__class__ = PatchConvolution

    @classmethod
    def build(
        cls, width: int, layers: int, heads: int, img_size: int, patch_size: int, registers: int = 4, channels: int = 3
    ) -> DINOv2:
        """Build a DINOv2 of some size. Its position embeddings are made for a square image of `img_size` pixels."""
        config = Dinov2WithRegistersConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=img_size,
            patch_size=patch_size,
            num_channels=channels,
            num_register_tokens=registers,
            layer_norm_eps=1e-6,
        )
        return cls(config)

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "N channels H W"]
    ) -> Float[Tensor, "N patches C"]:
        """Embed normalized images."""
        return super().forward(pixel_values=images).last_hidden_state[:, 1 + self.config.num_register_tokens :]


class ConvPatchEmbed(nn.Module):
    """Convolution with the patch as kernel and stride. The aggregator's RoPE adds the positions."""

    def __init__(self, patch_size: int, embed_dim: int, channels: int = 3) -> None:
        super().__init__()
        self.proj = PatchConvolution(patch_size, embed_dim, channels)

    def forward(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N patches C"]:
        """Embed normalized images."""
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).mT


def build_patch_embed(name: str, img_size: int, patch_size: int, embed_dim: int, num_registers: int) -> nn.Module:
    """Build a patch embedding with random weights.

    Args:
        name: `conv`, or a DINOv2: `dinov2_vits14_reg`, `dinov2_vitb14_reg`, `dinov2_vitl14_reg`.
        img_size: Side in pixels of the square image that DINOv2's position embeddings were made for.
        patch_size: Patch size in pixels.
        embed_dim: Width of the tokens.
        num_registers: Number of DINOv2's registers, which its output leaves out.

    Raises:
        ValueError: The name is unknown, or the width does not match the model.
    """
    if name == "conv":
        return ConvPatchEmbed(patch_size, embed_dim)
    if name not in DINOV2:
        raise ValueError(f"unknown patch_embed {name!r}: choose conv, {', '.join(DINOV2)}")
    width, layers, heads = DINOV2[name]
    if embed_dim != width:
        raise ValueError(f"{name} has tokens of width {width}, not {embed_dim}: set embed_dim to {width}")
    return DINOv2.build(width, layers, heads, img_size, patch_size, num_registers)
