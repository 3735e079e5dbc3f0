"""Two questions about videos of different lengths, and their cameras."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from zoo import Cameras
from zoo.backbones.qwen25_vl import tiny_processor

GRID = torch.tensor([[3, 4, 4], [2, 4, 6]])


def sequences(padding: str = "left") -> dict[str, Any]:
    """What `SpatialVLM.logits` takes."""
    tokenizer, rows = tiny_processor().tokenizer, []
    for grid, text in zip(GRID.tolist(), ("How many chair(s) are in this room?", "Options"), strict=True):
        video = "<|video_pad|>" * (grid[0] * grid[1] * grid[2] // 4)
        chat = f"<|im_start|>user\n<|vision_start|>{video}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
        rows.append(torch.tensor(tokenizer(chat)["input_ids"]))
    pad: dict[str, Any] = {"batch_first": True, "padding_side": padding}
    ids = pad_sequence(rows, padding_value=tokenizer.pad_token_id, **pad)
    mask = pad_sequence([torch.ones_like(row) for row in rows], **pad)
    pixels = torch.randn(int(GRID.prod(1).sum()), 1176, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values_videos": pixels, "video_grid_thw": GRID}


def cameras(seed: int | None = 1, views: int = 3) -> Cameras:
    """One a grid step of each sequence; identities without a seed."""
    poses, intrinsics = torch.eye(4).repeat(2, views, 1, 1), torch.eye(3).repeat(2, views, 1, 1)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        skew = torch.randn(2, views, 3, 3, generator=generator)
        poses[..., :3, :3] = torch.linalg.matrix_exp(skew - skew.mT)
        poses[..., :3, 3] = torch.randn(2, views, 3, generator=generator)
        intrinsics[..., 0, 0] = 0.9
    return Cameras(poses, intrinsics)
