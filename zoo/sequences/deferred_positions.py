"""Position ids by the cameras: now where they are the dataset's, in the step where they are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.sequences.layout import SequenceLayout
from zoo.sequences.loaded_scene import SceneInputs
from zoo.sequences.position_ids import layout_position_ids
from zoo.sequences.rules import SequenceRules
from zoo.sequences.time_index import ConstantIndex, PoseTimeIndex
from zoo.values import Movable


def sequence_position_ids(
    layout: SequenceLayout,
    rules: SequenceRules,
    scenes: Sequence[Sequence[SceneInputs]],
    position_offset: Int[Tensor, "S L"] | None = None,
    cameras: Cameras | None = None,
) -> Int[Tensor, "3 S L"]:
    """Compute the position ids of sequences, on the CPU.

    Args:
        layout: Of the sequences.
        rules: The model's.
        scenes: Of each sequence, in the order in which they appear.
        position_offset: Subtracted from the positions, see `zoo.sequences.packing.Row`.
        cameras: Of each sequence, with an index; for a time index that requires them.

    Raises:
        ValueError: The time index requires cameras or frame numbers, and there are none.
    """
    time_index = rules.time_index
    videos = [scene for row in scenes for scene in row if scene.kind == "video"]
    seconds = [scene.seconds_per_grid for scene in videos if scene.seconds_per_grid is not None]
    frames = [scene.frame_indices for scene in videos if scene.frame_indices is not None]
    position_ids = layout_position_ids(
        layout,
        time_index,
        seconds if len(seconds) == len(videos) else None,
        rules.tokens_per_second,
        rules.text_after_vision,
        frames if len(frames) == len(videos) and time_index.requires_frames else None,
        cameras if time_index.requires_cameras else None,
    )
    return position_ids if position_offset is None else position_ids - position_offset


class DeferredPositions(Movable):
    """Position ids by predicted poses, computed by gathers on the device of the poses, for which the host never waits.

    The host knows the positions but for two things: the time of each temporal patch, which is added to t; and how far
    a video reaches beyond its highest position on any axis, by which all that follows it is shifted.

    Args:
        layout: Of the sequences.
        rules: The model's, with a time index by poses.
        scenes: Of each sequence, in the order in which they appear.
        position_offset: Subtracted from the positions, see `zoo.sequences.packing.Row`.

    Attributes:
        position_ids: With all temporal patches of a video at time 0.
        row: The sequence of each of V videos.
        camera: The cameras of its at most T temporal patches, counted over all of its sequence.
        is_patch: The temporal patches that there are.
        patch: The temporal patch of each token, V times T for none.
        videos_before: The videos that have ended before each token, over all sequences.
        videos_before_row: Those that have ended before its sequence.
        room: Positions of the time of each video that shift nothing.
    """

    def __init__(
        self,
        layout: SequenceLayout,
        rules: SequenceRules,
        scenes: Sequence[Sequence[SceneInputs]],
        position_offset: Int[Tensor, "S L"] | None = None,
    ) -> None:
        assert isinstance(rules.time_index, PoseTimeIndex)
        self.time_index, self.shifts_text = rules.time_index, rules.text_after_vision == "max_thw"
        at_time_0 = replace(rules, time_index=ConstantIndex())
        self.position_ids = sequence_position_ids(layout, at_time_0, scenes, position_offset)
        # 1. The temporal patches of each video.
        is_video = torch.tensor([medium.kind == "video" for medium in layout.media], dtype=torch.bool)
        videos = [medium for medium in layout.media if medium.kind == "video"]
        count = torch.tensor([medium.steps for medium in videos], dtype=torch.long)
        first = torch.tensor([medium.steps_before for medium in videos], dtype=torch.long)[:, None]
        step = torch.arange(max([medium.steps for medium in videos], default=0))
        self.row = torch.tensor([medium.row for medium in videos], dtype=torch.long)[:, None]
        self.is_patch = step < count[:, None]
        self.camera = torch.where(self.is_patch, first + step, 0)
        # 2. The temporal patch of each token.
        medium = layout.medium[layout.span]
        chosen = is_video[medium]
        number, place = (is_video.cumsum(0) - 1)[medium[chosen]], layout.places[chosen]
        of_row = (layout.steps_before[layout.span] + layout.step)[chosen]
        flat = torch.full((layout.mask.numel(),), self.is_patch.numel())
        flat[place] = number * len(step) + of_row - first[number, 0]
        self.patch = flat.view(layout.shape)
        # 3. What videos shift: all tokens behind their last one.
        ids, zero = self.position_ids.flatten(1), torch.zeros(len(videos), dtype=torch.long)
        last = zero.scatter_reduce(0, number, place, "amax")
        ended = torch.zeros(layout.mask.numel() + 1, dtype=torch.long).index_fill(0, last + 1, 1).cumsum(0)
        before = ended[:-1].view(layout.shape)
        self.videos_before_row = before[:, :1].clone()
        self.videos_before = before.where(layout.mask, self.videos_before_row)  # padding stays where it is
        self.room = zero.scatter_reduce(0, number, ids[:, place].amax(0), "amax") - ids[0, last]

    def compute(
        self, world_to_camera: Float[Tensor, "S C 4 4"], has_camera: Bool[Tensor, "S C"]
    ) -> Int[Tensor, "3 S L"]:
        """Compute the position ids by the poses of each sequence's temporal patches, of which some may be invalid."""
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
    """Return the camera index without tokens whose camera is invalid."""
    if not has_camera.shape[1]:
        return index
    sample = torch.arange(len(index), device=index.device)[:, None]
    return index.where(has_camera[sample, index.clamp(min=0)], -1)
