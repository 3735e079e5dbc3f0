"""Random decoders of any size, and cameras for their visual tokens, for the benchmark of attention."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

from docs.symmetries import COMBINATIONS
from zoo.backbones import Qwen25VLBackbone
from zoo.backbones.decoder import replace_classes
from zoo.cameras import Cameras, normalize_intrinsics
from zoo.encodings import EncodedCameras
from zoo.encodings.base import DecoderLayout, HeadLayout
from zoo.encodings.per_view import PerViewEncoding

IMAGE = 448  # side in pixels; only the ratio to K matters
TEXT_BETWEEN = ", text between views"  # as in Qwen3-VL and for images, here one token
MRoPE = {128: [16, 24, 24], 64: [8, 12, 12], 32: [4, 4, 8]}  # sections as in the released models, or similar


def cameras_of(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return random world-to-camera poses, and intrinsics in pixels."""
    poses = torch.eye(4, dtype=torch.float64).repeat(1, arguments.views, 1, 1)
    turn, _ = torch.linalg.qr(torch.randn(arguments.views, 3, 3, dtype=torch.float64))
    poses[0, :, :3, :3] = turn * torch.linalg.det(turn)[:, None, None]
    poses[0, :, :3, 3] = torch.randn(arguments.views, 3, dtype=torch.float64)
    K = torch.tensor([[400.0, 0, 224], [0, 400, 224], [0, 0, 1]]).repeat(1, arguments.views, 1, 1)
    return poses.to(arguments.device), K.to(arguments.device)


def text_model(arguments: argparse.Namespace) -> Qwen2_5_VLTextModel:
    config = Qwen2_5_VLTextConfig(
        vocab_size=256,
        hidden_size=arguments.heads * arguments.head_dim,
        intermediate_size=2 * arguments.heads * arguments.head_dim,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.key_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": MRoPE[arguments.head_dim]},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    return Qwen2_5_VLTextModel(config).to(arguments.device, getattr(torch, arguments.dtype)).eval()


def encoder_in(
    model: Qwen2_5_VLTextModel, name: str, arguments: argparse.Namespace, is_causal: bool = True
) -> Callable[[], EncodedCameras]:
    """Bind an encoding to a decoder, and return a call of its `encode`, which runs in each pass."""
    encoding = COMBINATIONS[name.removesuffix(TEXT_BETWEEN)]()
    replace_classes(model, Qwen25VLBackbone.hooked_classes)
    head = HeadLayout.in_row(arguments.head_dim, MRoPE[arguments.head_dim])
    config, rotary = model.config, model.rotary_emb
    layout = DecoderLayout(
        config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads,
        head, (rotary.inv_freq, rotary.original_inv_freq), model.device,
    )  # fmt: skip
    encoding.bind_to_decoder(layout, range(config.num_hidden_layers))
    poses, K = cameras_of(arguments)
    index = torch.arange(arguments.views, device=poses.device).repeat_interleave(arguments.tokens)[None]
    if name.endswith(TEXT_BETWEEN):
        index[:, :: arguments.tokens] = -1
    places, points = (torch.rand(*index.shape, n, device=poses.device, dtype=poses.dtype) for n in (2, 3))
    sizes = torch.full_like(places, arguments.tokens**-0.5)
    cameras = Cameras(poses, normalize_intrinsics(K, IMAGE, IMAGE).double(), index)
    located = cameras.with_tokens(places, points, patch_sizes=sizes)
    if isinstance(encoding, PerViewEncoding):
        return lambda: encoding.encode_canonical(encoding.canonical(located), head, torch.float32, is_causal)
    return lambda: encoding.encode(located, head)
