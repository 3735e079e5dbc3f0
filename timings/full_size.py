"""Parameters, memory and FLOPs of the released sizes, computed without allocating the models.

    python -m timings.full_size

One scene is 16 frames of 480 x 640 with a prompt of 40 tokens. The memory of training counts weights (2 bytes per
frozen parameter, else 4), gradients (4) and AdamW's state (8), with decoder and connector trained. Activations are not
included, see `python main.py plan`. FLOPs follow the formulas of `zoo.tasks.training_cost`.
"""

from __future__ import annotations

import torch

from datamodules.resize import PixelBounds
from timings.tables import markdown
from zoo.checkpoints import PretrainedQwen3VL, PretrainedQwen25VL
from zoo.model import SpatialVLM
from zoo.tasks.training_cost import BatchSizes, block_cost, linear_flops, linear_layers

SIZES = ("Qwen2.5-VL-3B", "Qwen2.5-VL-7B", "Qwen3-VL-2B", "Qwen3-VL-4B", "Qwen3-VL-8B")
FRAMES, HEIGHT, WIDTH, PROMPT = 16, 480, 640, 40


def main() -> None:
    print(markdown([{"model": size, **row(load(size))} for size in SIZES]))


def load(size: str) -> SpatialVLM:
    """Return the baseline of a size on the meta device."""
    loader = PretrainedQwen3VL if size.startswith("Qwen3") else PretrainedQwen25VL
    with torch.device("meta"):
        return SpatialVLM(loader(f"Qwen/{size}-Instruct"))


def row(model: SpatialVLM) -> dict[str, str]:
    """Return the cells of a size."""
    backbone = model.backbone
    counts = {part: 0 for part in ("vision", "connector", "decoder")}
    for name, parameter in model.named_parameters():
        counts[model.part_of(name)] += parameter.numel()
    total, trained = sum(counts.values()), counts["connector"] + counts["decoder"]
    # 1. The vision encoder, with full attention within a frame, and its projection to the decoder's width.
    token_px = backbone.patch_size * backbone.spatial_merge_size
    height, width = PixelBounds(legacy_folder_resize=False).frame_size(HEIGHT, WIDTH, FRAMES, token_px)
    steps, rows, columns = BatchSizes(FRAMES, height, width).shown_to(backbone).grid
    patches, tokens = steps * rows * columns, steps * rows * columns // 4
    encoder, layers = backbone.vlm.model.visual, backbone.decoder.layers
    inside = {layer for block in encoder.blocks for layer in linear_layers(block)}
    vision = sum(block_cost(block, patches, rows * columns, True).forward for block in encoder.blocks)
    vision += linear_flops((layer for layer in linear_layers(encoder) if layer not in inside), tokens)[0]
    # 2. The decoder, which reads the scene and a prompt.
    text, length = backbone.vlm.config.text_config, tokens + PROMPT
    decoder = sum(block_cost(layer, length, length, True).forward for layer in layers)
    head_dim = backbone.decoder_layout.head.dim
    cache = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * length
    memory = 2 * (total - trained) + 16 * trained
    return {
        "parameters": f"{total / 1e9:.2f} B",
        "of the vision tower": f"{counts['vision'] / 1e9:.2f} B",
        "weights, GB": f"{2 * total / 1e9:.1f}",
        "training, GB": f"{memory / 1e9:.0f}",
        "visual tokens": f"{tokens:,}",
        "vision, TFLOP": f"{vision / 1e12:.1f}",
        "decoder, TFLOP": f"{decoder / 1e12:.1f}",
        "cache of a scene, MB": f"{cache / 1e6:.0f}",
    }


if __name__ == "__main__":
    main()
