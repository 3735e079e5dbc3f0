"""GeoVR's sequences in training: a camera token behind each view, and a scale token behind the last view of a video."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from zoo.sequences.packing import IGNORED
from zoo.sequences.position_ids import layout_position_ids
from zoo.sequences.sequence_layout import Placeholders, SequenceLayout, owners
from zoo.sequences.time_index import SpanIndex
from zoo.sequences.visual_grid import ExtraTokens

TEXT, START, IMAGE, VIDEO = range(4)  # what positions depend on of a token
VIDEO_TYPE = 2  # of transformers' mm_token_type_ids
EXTRA_TOKENS = {  # by camera, scale
    (False, False): ExtraTokens.NONE,
    (True, False): ExtraTokens.LAST,
    (False, True): ExtraTokens.END,
    (True, True): ExtraTokens.LAST_AND_END,
}


def expand_tokens(
    input_ids: Int[Tensor, "B L"],
    attention_mask: Int[Tensor, "B L"],
    mm_token_type_ids: Int[Tensor, "B L"],
    labels: Int[Tensor, "B L"],
    video_grid_thw: Int[Tensor, "V 3"],
    *,
    video_token_id: int,
    merge_size: int,
    camera: bool,
    scale: bool,
) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B M"], Int[Tensor, "B M"], Int[Tensor, "B M"]]:
    """Insert placeholders of GeoVR's tokens into the sequences of a stock processor, padded on the right.

    `SequenceBuilder` needs no such step: the zoo's prompts have the placeholders from the start.

    Args:
        input_ids: One placeholder per visual token.
        attention_mask: 0 for padding.
        mm_token_type_ids: 2 for videos.
        labels: -100 where nothing is supervised.
        video_grid_thw: (t, h, w) in patches of each video, in the order of the batch.
        video_token_id: The placeholder.
        merge_size: Patches per side in one visual token.
        camera: Insert one behind each view.
        scale: Insert one behind the last view of each video.

    Returns:
        The first four arguments, longer.

    Raises:
        ValueError: Grids and placeholders do not match.
    """
    per_view = video_grid_thw[:, 1] * video_grid_thw[:, 2] // merge_size**2
    counts = video_grid_thw[:, 0] * per_view
    is_visual = input_ids == video_token_id
    if int(is_visual.sum()) != int(counts.sum()):
        raise ValueError(f"{int(is_visual.sum())} placeholders of videos, and grids of {int(counts.sum())} tokens")
    video, place = owners(counts)
    repeats = torch.ones_like(input_ids)
    repeats[is_visual] += int(camera) * ((place + 1) % per_view[video] == 0).long()
    repeats[is_visual] += int(scale) * (place + 1 == counts[video]).long()
    # what is inserted is a copy of the visual token before it, which nothing is learned from
    source = [torch.arange(input_ids.shape[1]).repeat_interleave(row) for row in repeats]

    def inserted(values: Tensor, padding: int) -> Tensor:
        rows = [row[own] for row, own in zip(values, source, strict=True)]
        return pad_sequence(rows, batch_first=True, padding_value=padding)

    return (
        inserted(input_ids, 0),
        inserted(attention_mask, 0),
        inserted(mm_token_type_ids, 0),
        inserted(labels, IGNORED),
    )


def position_ids(
    input_ids: Int[Tensor, "B L"],
    mm_token_type_ids: Int[Tensor, "B L"],
    video_grid_thw: Int[Tensor, "V 3"],
    *,
    attention_mask: Int[Tensor, "B L"] | None,
    merge_size: int,
    camera: bool,
    scale: bool,
) -> Int[Tensor, "3 B L"]:
    """Return the mRoPE positions of Qwen3-VL for sequences with GeoVR's tokens; 0 in padding.

    Args:
        input_ids: From `expand_tokens`.
        mm_token_type_ids: From there as well; positions depend on these and not on ids.
        video_grid_thw: (t, h, w) in patches of each video.
        attention_mask: 0 for padding; None is none.
        merge_size: Patches per side in one visual token.
        camera: Whether a token follows each view.
        scale: Whether one follows the last view of each video.
    """
    is_video = mm_token_type_ids == VIDEO_TYPE
    is_before = F.pad(is_video, (0, 1))[:, 1:] & ~is_video
    layout = SequenceLayout(
        torch.where(is_video, VIDEO, torch.where(is_before, START, TEXT)).view_as(input_ids),
        attention_mask,
        video_grid_thw=video_grid_thw,
        placeholders=Placeholders(VIDEO, IMAGE, START, span_per_step=True),
        spatial_merge_size=merge_size,
        extra_tokens=EXTRA_TOKENS[camera, scale],
    )
    positions = layout_position_ids(layout, SpanIndex(), text_after_vision="max_hw")
    return positions.masked_fill(~layout.mask, 0)
