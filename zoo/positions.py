"""Multimodal rotary position ids (mRoPE) of Qwen2.5-VL; what "time" means in them is a `TimeIndex`.

A visual token has the position (t, h, w) in its grid, counted from where its video or image starts; a text
token has three equal positions. Source: Qwen2.5-VL, arXiv 2502.13923; equal to transformers 4.51, with which
the released checkpoints were trained, or with `text_after_vision="max_hw"` to transformers 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.cameras import Cameras
from zoo.time_index import TemporalPatches, TimeIndex, TimestampIndex

PADDED_POSITION = 1  # what transformers 4.51 gives to padding; masked out of the attention


class _Media(NamedTuple):
    """The visual runs of a batch, one video or still each, among all tokens that aren't padding."""

    row: Int[Tensor, " N"]  # the sample of each token
    start: Int[Tensor, " M"]  # the first token of each run
    grid: Int[Tensor, "M 3"]  # its (t, h, w) after merging
    is_video: Bool[Tensor, " M"]
    run: Int[Tensor, " tokens"]  # the run of each visual token
    within: Int[Tensor, " tokens"]  # its place in that run

    @property
    def tokens(self) -> Int[Tensor, " tokens"]:
        return self.start[self.run] + self.within


def mrope_position_ids(
    input_ids: Int[Tensor, "B L"],
    attention_mask: Shaped[Tensor, "B L"] | None = None,
    *,
    image_grid_thw: Int[Tensor, "I 3"] | None = None,
    video_grid_thw: Int[Tensor, "V 3"] | None = None,
    seconds_per_grid: Sequence[int | float] | Float[Tensor, " V"] | None = None,
    tokens_per_second: int | float = 2,
    spatial_merge_size: int = 2,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
    time_index: TimeIndex | None = None,
    text_after_vision: Literal["max_thw", "max_hw"] = "max_thw",
    frame_indices: Sequence[Sequence[int]] | None = None,
    cameras: Cameras | None = None,
) -> tuple[Int[Tensor, "3 B L"], Int[Tensor, "B 1"]]:
    """Position ids (t, h, w) of every token, and what to add to a later token's place in its (padded) row.

    Args:
        input_ids: a placeholder for each visual token; the first of a run follows `vision_start_token_id`.
        attention_mask: 0 for padding, on either side.
        image_grid_thw: patches before merging, an image a row, in the order of the batch.
        video_grid_thw: the same for videos.
        seconds_per_grid: seconds of a grid step, one a video; None is the time index's nominal value (1.0).
        tokens_per_second: positions a second.
        spatial_merge_size: patches that are merged into a token, a side.
        time_index: what time means; None is `TimestampIndex()`.
        text_after_vision: where text goes on after a video: after the highest position in it (`max_thw`, the
            checkpoints'), or at start + max(h, w), whatever its length in time (`max_hw`, transformers 5).
        frame_indices: the raw indices of the frames of each video, for a time index that `requires_frames`; a video
            whose last frame was doubled, to fill its last step, may leave that one out.
        cameras: of each sample, one a grid step unless they have an `index`, for one that `requires_cameras`.

    Returns:
        The position ids, 1 in padding; and deltas: what follows a row of length L has position L + delta.

    Raises:
        ValueError: grids and placeholders that don't match, not one `seconds_per_grid` or list of
            `frame_indices` a video, or too few of them or of cameras.
    """
    if text_after_vision not in ("max_thw", "max_hw"):
        raise ValueError(f"text_after_vision is 'max_thw' or 'max_hw', not {text_after_vision!r}")
    time_index = time_index or TimestampIndex()
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    media = _find_media(
        input_ids, mask, image_grid_thw, video_grid_thw, spatial_merge_size,
        image_token_id, video_token_id, vision_start_token_id,
    )  # fmt: skip
    steps = _video_steps(
        media, time_index.seconds_per_grid if seconds_per_grid is None else seconds_per_grid, tokens_per_second
    )
    if frame_indices is not None:
        steps = steps._replace(frame=_frames_of_steps(steps, frame_indices))
    if cameras is not None:
        poses, present = _cameras_of_steps(media, cameras, mask)
        steps = steps._replace(world_to_camera=poses, has_camera=present)
    offset, extent = _grid_positions(media, time_index(steps))
    if text_after_vision == "max_hw":
        extent = media.grid[:, 1:].amax(1)

    # each text token moves the position on by one; a visual run does so once, by its extent
    advance = torch.ones_like(media.row)
    advance[media.tokens] = 0
    advance[media.start] = extent
    before = advance.cumsum(0) - advance
    row_start = mask.sum(1).cumsum(0) - mask.sum(1)
    before = before - before[row_start[media.row]]
    flat = before.expand(3, -1).clone()
    flat[:, media.tokens] = before[media.start[media.run]] + offset

    position_ids = input_ids.new_full((3, *input_ids.shape), PADDED_POSITION)
    position_ids[:, mask] = flat
    following = position_ids.masked_fill(~mask, -1).amax((0, 2))[:, None] + 1
    return position_ids, following - input_ids.shape[1]


def grid_step_index(
    input_ids: Int[Tensor, "B L"],
    attention_mask: Shaped[Tensor, "B L"] | None = None,
    *,
    image_grid_thw: Int[Tensor, "I 3"] | None = None,
    video_grid_thw: Int[Tensor, "V 3"] | None = None,
    spatial_merge_size: int = 2,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
) -> Int[Tensor, "B L"]:
    """The grid step of its sample, over all its videos and images in order, of each token; -1 for text.

    The `index` of `Cameras` that hold one camera a grid step. Arguments and errors as `mrope_position_ids`.
    """
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    media = _find_media(
        input_ids, mask, image_grid_thw, video_grid_thw, spatial_merge_size,
        image_token_id, video_token_id, vision_start_token_id,
    )  # fmt: skip
    flat = torch.full_like(media.row, -1)
    tokens_a_step = media.grid[:, 1] * media.grid[:, 2]
    flat[media.tokens] = _steps_before(media)[media.run] + media.within // tokens_a_step[media.run]
    index = torch.full_like(input_ids, -1)
    index[mask] = flat
    return index


def view_patch_centers(
    input_ids: Int[Tensor, "B L"],
    attention_mask: Shaped[Tensor, "B L"] | None = None,
    *,
    image_grid_thw: Int[Tensor, "I 3"] | None = None,
    video_grid_thw: Int[Tensor, "V 3"] | None = None,
    spatial_merge_size: int = 2,
    image_token_id: int,
    video_token_id: int,
    vision_start_token_id: int,
) -> Float[Tensor, "B L 2"]:
    """Where in its view the center of each visual token is: (x, y) from -1/2 to 1/2, right and down; 0 for text.

    In the units of `zoo.cameras.normalize_intrinsics`. Arguments and errors as `mrope_position_ids`.
    """
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    media = _find_media(
        input_ids, mask, image_grid_thw, video_grid_thw, spatial_merge_size,
        image_token_id, video_token_id, vision_start_token_id,
    )  # fmt: skip
    height, width = media.grid[media.run, 1], media.grid[media.run, 2]
    column, row = media.within % width, media.within // width % height
    flat = torch.zeros(len(media.row), 2, device=input_ids.device)
    flat[media.tokens] = torch.stack(((column + 0.5) / width, (row + 0.5) / height), -1) - 0.5
    places = flat.new_zeros(*input_ids.shape, 2)
    places[mask] = flat
    return places


def _find_media(
    input_ids: Tensor, mask: Tensor, image_grid_thw: Tensor | None, video_grid_thw: Tensor | None, merge: int,
    image_token_id: int, video_token_id: int, vision_start_token_id: int,
) -> _Media:  # fmt: skip
    ids, row = input_ids[mask], mask.nonzero()[:, 0]
    follows = torch.zeros_like(ids, dtype=torch.bool)
    follows[1:] = (ids[:-1] == vision_start_token_id) & (row[1:] == row[:-1])
    start = (follows & ((ids == image_token_id) | (ids == video_token_id))).nonzero()[:, 0]
    is_video = ids[start] == video_token_id
    grid = ids.new_zeros(len(start), 3)
    for name, chosen, grids in (("image", ~is_video, image_grid_thw), ("video", is_video, video_grid_thw)):
        given = 0 if grids is None else len(grids)
        if given != int(chosen.sum()):
            raise ValueError(f"the prompts hold {int(chosen.sum())} {name}s, but {name}_grid_thw has {given} rows")
        if grids is not None:
            grid[chosen] = grids.to(ids)
    grid[:, 1:] //= merge
    media = _Media(row, start, grid, is_video, *_owners(grid.prod(1)))

    last = max(len(ids) - 1, 0)
    inside, first = media.tokens.clamp(max=last), start[media.run]
    wrong = (media.tokens > last) | (ids[inside] != ids[first]) | (row[inside] != row[first])
    after = start + grid.prod(1)
    more = (after <= last) & (ids[after.clamp(max=last)] == ids[start])
    for trouble, where, amount in ((wrong, first, "fewer"), (more, start, "more")):
        if trouble.any():
            sample = int(row[where[trouble][0]])
            raise ValueError(f"sample {sample} of the batch has {amount} placeholder tokens than its grid_thw says")
    return media


def _steps_before(media: _Media) -> Int[Tensor, " M"]:
    """The grid steps of the same sample that come before each run."""
    steps, row = media.grid[:, 0], media.row[media.start]
    before = steps.cumsum(0) - steps
    return before - before[torch.searchsorted(row, row)]  # rows ascend: the first run of the same row


def _video_steps(
    media: _Media, seconds_per_grid: int | float | Sequence[int | float] | Tensor, tokens_per_second: int | float
) -> TemporalPatches:
    videos = media.grid[media.is_video, 0]
    if isinstance(seconds_per_grid, int | float):
        seconds_per_grid = [seconds_per_grid] * len(videos)
    seconds = torch.as_tensor(seconds_per_grid, dtype=torch.float32, device=videos.device)
    if seconds.shape != videos.shape:
        raise ValueError(f"seconds_per_grid needs one number a video ({len(videos)}), got {tuple(seconds.shape)}")
    video, step = _owners(videos)
    return TemporalPatches(video, step, seconds[video], tokens_per_second)


def _frames_of_steps(steps: TemporalPatches, frame_indices: Sequence[Sequence[int]]) -> Float[Tensor, " N"]:
    """The mean raw index of the frames of each step."""
    counts = torch.bincount(steps.video).tolist()
    if len(counts) != len(frame_indices):
        raise ValueError(f"frame_indices needs one list a video ({len(counts)}), got {len(frame_indices)}")
    means = []
    for video, (count, indices) in enumerate(zip(counts, frame_indices, strict=True)):
        merged = -(-len(indices) // count)
        whole = [*indices, *[indices[-1]] * (merged * count - len(indices))] if indices else []
        if not indices or merged * (count - 1) >= len(indices):
            raise ValueError(f"video {video} has {count} grid steps, but frame_indices has {len(indices)} frames")
        means.append(torch.tensor(whole, dtype=torch.float64).view(count, merged).mean(1))
    return torch.cat(means).to(steps.step.device) if means else steps.seconds


def _cameras_of_steps(media: _Media, cameras: Cameras, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The pose of each step of each video, and whether it has one: that of the step's first token."""
    run, step = _owners(media.grid[:, 0])
    token = media.start[run] + step * (media.grid[:, 1] * media.grid[:, 2])[run]
    camera = _steps_before(media)[run] + step if cameras.index is None else cameras.index[mask][token]
    count = cameras.world_to_camera.shape[1]
    if len(camera) and int(camera.max()) >= count:
        raise ValueError(f"a sample has {int(camera.max()) + 1} grid steps, but cameras for {count}")
    poses = cameras.world_to_camera[media.row[token], camera.clamp(min=0)]
    chosen = media.is_video[run]
    return poses[chosen], (camera >= 0)[chosen]


def _grid_positions(media: _Media, times: Int[Tensor, " N"]) -> tuple[Tensor, Tensor]:
    """(t, h, w) of each visual token from the start of its run; and, a run, the highest of them plus one."""
    steps = media.grid[:, 0]
    run_of_step, step = _owners(steps)
    step_time = torch.zeros_like(step)  # stills have no time
    step_time[media.is_video[run_of_step]] = times.to(step)
    last = torch.zeros_like(steps).scatter_reduce(0, run_of_step, step_time, "amax")
    extent = torch.stack((last + 1, media.grid[:, 1], media.grid[:, 2])).amax(0)

    height, width = media.grid[media.run, 1], media.grid[media.run, 2]
    first_step = (steps.cumsum(0) - steps)[media.run]
    t = step_time[first_step + media.within // (height * width)]
    return torch.stack((t, media.within // width % height, media.within % width)), extent


def _owners(lengths: Int[Tensor, " M"]) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Of things laid out in runs of these lengths: the run of each, and its place in the run."""
    ends = lengths.cumsum(0)
    places = torch.arange(int(lengths.sum()), device=lengths.device)
    run = torch.searchsorted(ends, places, right=True)  # repeat_interleave starts threads for the smallest
    return run, places - (ends - lengths)[run]
