"""Position ids (t, h, w) of sequences whose visual tokens were located by `SequenceLayout`.

A time index by predicted poses is only known in the step, see `DeferredPositions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.errors import InputError, check_choice
from zoo.sequences.layout import SequenceLayout, owners
from zoo.sequences.time_index import PoseTimeIndex, TemporalPatches, TimeIndex
from zoo.values import Movable, check_shape

PADDED_POSITION = 1  # transformers 4.51's value for padding, which the attention masks out

SecondsPerGrid = Sequence[int | float] | Float[Tensor, " V"]
TextAfterVision = Literal["max_thw", "max_hw"]


def layout_position_ids(
    layout: SequenceLayout,
    time_index: TimeIndex,
    seconds_per_grid: SecondsPerGrid | None = None,
    tokens_per_second: int | float = 2,
    text_after_vision: TextAfterVision = "max_thw",
    frame_indices: Sequence[Sequence[int]] | None = None,
    cameras: Cameras | None = None,
) -> Int[Tensor, "3 B L"]:
    """Compute the position ids of `mrope_position_ids`, with the same arguments.

    An extra token shares the position of a 2D token of its view.
    """
    check_choice("text_after_vision", text_after_vision, TextAfterVision)
    # 1. Time of each temporal patch. Images have time 0.
    seconds = time_index.seconds_per_grid if seconds_per_grid is None else seconds_per_grid
    steps = _video_steps(layout, seconds, tokens_per_second, frame_indices, cameras)
    span_of_step, _ = owners(layout.grid[:, 0])
    step_time = torch.zeros_like(span_of_step)
    times = time_index(steps)
    check_shape(time_index, "positions (N,)", times, len(steps.step))
    step_time[layout.is_video[span_of_step]] = times.to(step_time)

    # 2. (h, w) of each visual token counts from the start of its span, and t from there or from the first span of its
    # video.
    first_step = (layout.grid[:, 0].cumsum(0) - layout.grid[:, 0])[layout.span]
    width = layout.grid[layout.span, 2]
    offset = torch.stack((step_time[first_step + layout.step], layout.cell // width, layout.cell % width))
    spans = torch.arange(len(layout.start))
    first = spans if time_index.per_span else torch.searchsorted(layout.medium, layout.medium)
    last = torch.searchsorted(layout.medium, torch.arange(len(layout.media)), right=True) - 1

    # 3. Each text token advances the position by one. A visual span advances it once, by its extent.
    extent = layout.grid[:, 1:].amax(1)
    if text_after_vision == "max_thw":  # also after the highest t of a medium
        start = _running_positions(layout, extent)[layout.start]
        end = start[first[span_of_step]] + step_time + 1
        end = torch.zeros_like(start).scatter_reduce(0, last[layout.medium[span_of_step]], end, "amax")
        extent = torch.maximum(extent, end - start)
    before = _running_positions(layout, extent)
    flat = before.expand(3, -1).clone()
    flat[1:, layout.tokens] = before[layout.start[layout.span]] + offset[1:]
    flat[0, layout.tokens] = before[layout.start[first[layout.span]]] + offset[0]
    if time_index.is_sequential:
        flat = owners(layout.mask.sum(1))[1].expand(3, -1)

    position_ids = flat.new_full((3, *layout.shape), PADDED_POSITION)
    position_ids[:, layout.mask] = flat
    return position_ids


def _running_positions(layout: SequenceLayout, extent: Int[Tensor, " M"]) -> Int[Tensor, " N"]:
    """Return the position before each token that is not padding, if text advances by one and a span by its extent."""
    advance = torch.ones_like(layout.row)
    advance[layout.tokens] = 0
    advance[layout.start] = extent
    before = advance.cumsum(0) - advance
    tokens_per_row = layout.mask.sum(1)
    row_start = tokens_per_row.cumsum(0) - tokens_per_row
    return before - before[row_start[layout.row]]


def _video_steps(
    layout: SequenceLayout,
    seconds_per_grid: int | float | SecondsPerGrid,
    tokens_per_second: int | float,
    frame_indices: Sequence[Sequence[int]] | None,
    cameras: Cameras | None,
) -> TemporalPatches:
    counts = torch.tensor([medium.steps for medium in layout.media if medium.kind == "video"], dtype=torch.long)
    if isinstance(seconds_per_grid, int | float):
        seconds_per_grid = [seconds_per_grid] * len(counts)
    seconds = torch.as_tensor(seconds_per_grid, dtype=torch.float32, device="cpu")
    if seconds.shape != counts.shape:
        raise ValueError(f"seconds_per_grid needs one number per video ({len(counts)}), got {tuple(seconds.shape)}")
    frame = None if frame_indices is None else _mean_frame_indices(counts.tolist(), frame_indices)
    poses, has_camera = (None, None) if cameras is None else _cameras_of_steps(layout, cameras)
    video, step = owners(counts)
    return TemporalPatches(video, step, seconds[video], tokens_per_second, frame, poses, has_camera)


def _mean_frame_indices(counts: Sequence[int], frame_indices: Sequence[Sequence[int]]) -> Float[Tensor, " N"]:
    """Return the mean raw index of the two frames of each temporal patch. Each video has `counts` patches."""
    if len(counts) != len(frame_indices):
        raise ValueError(f"frame_indices needs one list per video ({len(counts)}), got {len(frame_indices)}")
    means: list[float] = []
    for video, (count, indices) in enumerate(zip(counts, frame_indices, strict=True)):
        merged = torch.tensor(indices, dtype=torch.float64).split(max(1, -(-len(indices) // count)))
        if not indices or len(merged) != count:
            raise ValueError(f"video {video} has {count} temporal patches, but frame_indices has {len(indices)} frames")
        means += [float(frames.mean()) for frames in merged]  # an odd last frame also represents its copy
    return torch.tensor(means, dtype=torch.float64)


def _cameras_of_steps(layout: SequenceLayout, cameras: Cameras) -> tuple[Float[Tensor, "N 4 4"], Bool[Tensor, " N"]]:
    """Return the pose of each temporal patch of each video and whether it exists, from the patch's first token."""
    per_span = torch.bincount(layout.span, minlength=len(layout.start)) // layout.grid[:, 0].clamp(min=1)
    span, step = owners(layout.grid[:, 0])
    token = layout.start[span] + step * per_span[span]
    index = cameras.index
    camera = layout.steps_before[span] + step if index is None else index.cpu()[layout.mask][token]
    count = cameras.world_to_camera.shape[1]
    if len(camera) and int(camera.max()) >= count:
        raise ValueError(f"a sequence has {int(camera.max()) + 1} temporal patches, but cameras for {count}")
    poses = cameras.world_to_camera.cpu()[layout.row[token], camera.clamp(min=0)]
    chosen = layout.is_video[span]
    return poses[chosen], (camera >= 0)[chosen]


# ---- Positions by predicted poses, computed in the step ----


class DeferredPositions(Movable):
    """Position ids by predicted poses, computed on the poses' device without making the host wait.

    The host knows the positions except for two things: the time of each temporal patch, which is added to t, and how
    far a video exceeds its highest position on any axis, which shifts everything after it.

    Args:
        layout: Layout of the sequences.
        position_ids: Position ids with all temporal patches of a video at time 0.
        time_index: A time index by poses.
        text_after_vision: See `SpatialVLM`.

    Attributes:
        row: Sequence of each of V videos.
        camera: Cameras of the video's up to T temporal patches, counted over its whole sequence.
        is_patch: True for temporal patches that exist.
        patch: Temporal patch of each token, and V times T for tokens without one.
        videos_before: Number of videos that ended before each token, over all sequences.
        videos_before_row: Number of videos that ended before its sequence.
        room: Maximum time of each video that shifts nothing.
    """

    def __init__(
        self,
        layout: SequenceLayout,
        position_ids: Int[Tensor, "3 S L"],
        time_index: PoseTimeIndex,
        text_after_vision: TextAfterVision,
    ) -> None:
        self.position_ids, self.time_index = position_ids, time_index
        self.shifts_text = text_after_vision == "max_thw"
        # 1. Temporal patches of each video.
        is_video = torch.tensor([medium.kind == "video" for medium in layout.media], dtype=torch.bool)
        videos = [medium for medium in layout.media if medium.kind == "video"]
        count = torch.tensor([medium.steps for medium in videos], dtype=torch.long)
        first = torch.tensor([medium.steps_before for medium in videos], dtype=torch.long)[:, None]
        step = torch.arange(max([medium.steps for medium in videos], default=0))
        self.row = torch.tensor([medium.row for medium in videos], dtype=torch.long)[:, None]
        self.is_patch = step < count[:, None]
        self.camera = torch.where(self.is_patch, first + step, 0)
        # 2. Temporal patch of each token.
        medium = layout.medium[layout.span]
        chosen = is_video[medium]
        number, place = (is_video.cumsum(0) - 1)[medium[chosen]], layout.places[chosen]
        of_row = (layout.steps_before[layout.span] + layout.step)[chosen]
        flat = torch.full((layout.mask.numel(),), self.is_patch.numel())
        flat[place] = number * len(step) + of_row - first[number, 0]
        self.patch = flat.view(layout.shape)
        # 3. Tokens that videos shift: all tokens after a video's last one.
        ids, zero = self.position_ids.flatten(1), torch.zeros(len(videos), dtype=torch.long)
        last = zero.scatter_reduce(0, number, place, "amax")
        ended = torch.zeros(layout.mask.numel() + 1, dtype=torch.long).index_fill(0, last + 1, 1).cumsum(0)
        before = ended[:-1].view(layout.shape)
        self.videos_before_row = before[:, :1].clone()
        self.videos_before = before.where(layout.mask, self.videos_before_row)  # padding is not shifted
        self.room = zero.scatter_reduce(0, number, ids[:, place].amax(0), "amax") - ids[0, last]

    def compute(
        self, world_to_camera: Float[Tensor, "S C 4 4"], has_camera: Bool[Tensor, "S C"]
    ) -> Int[Tensor, "3 S L"]:
        """Compute the position ids from the poses of each sequence's temporal patches. Some may be invalid."""
        if not self.is_patch.numel():  # images alone, which have no time
            return self.position_ids.clone()
        poses = world_to_camera.detach()[self.row, self.camera]
        known = has_camera[self.row, self.camera] & self.is_patch
        time = self.time_index.positions(self.time_index.patch_values(poses, known), self.is_patch)
        position_ids = self.position_ids.clone()
        position_ids[0] += F.pad(time.flatten(), (0, 1))[self.patch]
        if self.shifts_text:
            beyond = (time.amax(1) - self.room).clamp(min=0)
            shift = F.pad(beyond.cumsum(0), (1, 0))
            position_ids += shift[self.videos_before] - shift[self.videos_before_row]
        return position_ids


def valid_index(index: Int[Tensor, "S L"], has_camera: Bool[Tensor, "S C"]) -> Int[Tensor, "S L"]:
    """Return the camera index with -1 for tokens whose camera is invalid."""
    if not has_camera.shape[1]:
        return index
    sample = torch.arange(len(index), device=index.device)[:, None]
    return index.where(has_camera[sample, index.clamp(min=0)], -1)


def check_all_have_cameras(count: int, total: int) -> None:
    """Raise an InputError if only some of the scenes of a batch have cameras."""
    if count < total:
        raise InputError("a scene without cameras beside others that have some: give cameras to all of a batch")
