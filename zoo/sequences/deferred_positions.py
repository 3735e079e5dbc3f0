"""Position ids by the cameras: now where they are the dataset's, in the step where they are predicted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.sequences.position_ids import layout_position_ids
from zoo.sequences.rules import SequenceRules
from zoo.sequences.scene_inputs import SceneInputs
from zoo.sequences.sequence_layout import SequenceLayout


class DeferredPositions:
    """Compute the position ids of sequences as soon as their cameras are known; on the host, where it stays.

    Args:
        layout: Of the sequences.
        rules: The model's.
        scenes: Of each sequence, in the order in which they appear.
        position_offset: Subtracted from the positions, see `zoo.sequences.packing.Row`.
    """

    def __init__(
        self,
        layout: SequenceLayout,
        rules: SequenceRules,
        scenes: Sequence[Sequence[SceneInputs]],
        position_offset: Int[Tensor, "S L"] | None = None,
    ) -> None:
        self._layout, self._time_index, self._offset = layout, rules.time_index, position_offset
        self._tokens_per_second, self._text_after_vision = rules.tokens_per_second, rules.text_after_vision
        videos = [scene for row in scenes for scene in row if scene.kind == "video"]
        seconds = [scene.seconds_per_grid for scene in videos if scene.seconds_per_grid is not None]
        frames = [scene.frame_indices for scene in videos if scene.frame_indices is not None]
        self._seconds = seconds if len(seconds) == len(videos) else None
        self._frames = frames if len(frames) == len(videos) and self._time_index.requires_frames else None

    def compute(self, cameras: Cameras | None = None) -> Int[Tensor, "3 S L"]:
        """Compute the position ids.

        Args:
            cameras: Of each sequence, with an index, on the CPU; for a time index that requires them.

        Raises:
            ValueError: The time index requires cameras or frame numbers, and there are none.
        """
        position_ids = layout_position_ids(
            self._layout,
            self._time_index,
            self._seconds,
            self._tokens_per_second,
            self._text_after_vision,
            self._frames,
            cameras if self._time_index.requires_cameras else None,
        )
        return position_ids if self._offset is None else position_ids - self._offset

    def by_predicted(
        self, world_to_camera: Float[Tensor, "S C 4 4"], has_camera: Bool[Tensor, "S C"]
    ) -> Int[Tensor, "3 S L"]:
        """Compute the position ids from predicted cameras, and return them on their device, which is waited once."""
        both = torch.cat((world_to_camera.detach().flatten(2), has_camera[..., None].to(world_to_camera)), -1)
        poses, present = both.cpu().split((16, 1), -1)
        index = valid_index(self._layout.camera_index(), present[..., 0] > 0)
        intrinsics = torch.eye(3).expand(*poses.shape[:2], 3, 3)
        position_ids = self.compute(Cameras.trusted(poses.unflatten(-1, (4, 4)), intrinsics, index))
        return position_ids.to(world_to_camera.device, non_blocking=True)


def valid_index(index: Int[Tensor, "S L"], has_camera: Bool[Tensor, "S C"]) -> Int[Tensor, "S L"]:
    """Return the camera index without tokens whose camera is invalid."""
    if not has_camera.shape[1]:
        return index
    sample = torch.arange(len(index), device=index.device)[:, None]
    return index.where(has_camera[sample, index.clamp(min=0)], -1)
