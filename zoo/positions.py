"""Multimodal rotary position ids (mRoPE) of the Qwen-VL models. A `TimeIndex` defines their time component.

A visual token has the position (t, h, w) in its grid, counted from the start of its video or image. A text token has
three equal positions. Source: Qwen2.5-VL, arXiv 2502.13923. The ids equal those of transformers 4.51, with which the
released checkpoints were trained, or with `text_after_vision="max_hw"` those of transformers 5. In Qwen3-VL (arXiv
2511.21631) each temporal patch of a video is a separate span, with text between spans.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int, Shaped
from torch import Tensor

from zoo.cameras import Cameras
from zoo.sequences.layout import SPATIAL_MERGE_SIZE, Placeholders, SequenceLayout
from zoo.sequences.position_ids import SecondsPerGrid, TextAfterVision, layout_position_ids
from zoo.sequences.time_index import TimeIndex, TimestampIndex


def mrope_position_ids(
    input_ids: Int[Tensor, "B L"],
    attention_mask: Shaped[Tensor, "B L"] | None = None,
    *,
    image_grid_thw: Int[Tensor, "I 3"] | None = None,
    video_grid_thw: Int[Tensor, "V 3"] | None = None,
    seconds_per_grid: SecondsPerGrid | None = None,
    tokens_per_second: int | float = 2,
    spatial_merge_size: int = SPATIAL_MERGE_SIZE,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
    time_index: TimeIndex | None = None,
    text_after_vision: TextAfterVision = "max_thw",
    frame_indices: Sequence[Sequence[int]] | None = None,
    cameras: Cameras | None = None,
) -> tuple[Int[Tensor, "3 B L"], Int[Tensor, "B 1"]]:
    """Return position ids (t, h, w) of every token, and the offset of later tokens.

    Args:
        input_ids: Token ids with one placeholder per visual token. The first of a run follows `vision_start_token_id`.
        attention_mask: 0 for padding, which may be on either side.
        image_grid_thw: (t, h, w) in patches before merging, one row per image in the order of the batch.
        video_grid_thw: The same for videos.
        seconds_per_grid: Seconds per temporal patch, one per video. None uses the time index's nominal value (1.0).
        tokens_per_second: Positions per second.
        spatial_merge_size: Patches per side in one visual token.
        image_token_id: Placeholder of an image's tokens, see `Placeholders`.
        video_token_id: Placeholder of a video's tokens.
        vision_start_token_id: Precedes each image and video.
        time_index: Defines the time component. None is `TimestampIndex()`.
        text_after_vision: Position of the text after a video. `max_thw`: after its highest position, as for the
            checkpoints. `max_hw`: at start + max(h, w) for any length in time, as in transformers 5.
        frame_indices: Raw frame indices of each video, for a time index that `requires_frames`. A video whose last
            frame was doubled to fill its last temporal patch may omit the copy.
        cameras: Cameras of each sequence, for a time index that `requires_cameras`. One per temporal patch, unless they
            have an `index`.

    Returns:
        Position ids, which are 1 in padding, and deltas: the token after a row of length L has position L + delta.

    Raises:
        ValueError: Grids and placeholders do not match, the number of `seconds_per_grid` or `frame_indices` is not one
            per video, or there are too few frames or cameras.
    """
    placeholders = Placeholders(video_token_id, image_token_id, vision_start_token_id)
    layout = SequenceLayout(
        input_ids,
        attention_mask,
        video_grid_thw=video_grid_thw,
        image_grid_thw=image_grid_thw,
        placeholders=placeholders,
        spatial_merge_size=spatial_merge_size,
    )
    position_ids = layout_position_ids(
        layout, time_index or TimestampIndex(), seconds_per_grid, tokens_per_second, text_after_vision, frame_indices,
        cameras,
    )  # fmt: skip
    following = position_ids.masked_fill(~layout.mask, -1).amax((0, 2))[:, None] + 1
    return position_ids.to(input_ids.device), (following - input_ids.shape[1]).to(input_ids.device)
