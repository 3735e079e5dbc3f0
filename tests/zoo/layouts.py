"""A `SequenceLayout` by the arguments of `mrope_position_ids`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zoo.sequences.layout import Placeholders, SequenceLayout


def sequence_layout(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
    **grids: Any,
) -> SequenceLayout:
    placeholders = Placeholders(video_token_id, image_token_id, vision_start_token_id)
    return SequenceLayout(input_ids, attention_mask, placeholders=placeholders, **grids)
