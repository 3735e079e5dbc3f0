"""Where things lie in a batch of sequences: positions, cameras, and the tokens that a fusion appends."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.errors import InputError
from zoo.fusions import ExtraTokens
from zoo.media import find_media_spans
from zoo.positions import grid_step_index, mrope_position_ids, view_patch_centers
from zoo.time_index import TimeIndex


class SequenceLayout:
    """Token ids with the grids of what they show.

    Args:
        config: Qwen2.5-VL's.
        input_ids: a placeholder a visual token, those that a fusion appends included.
        attention_mask: 0 for padding.
        video_grid_thw: patches before merging, a video a row, in the order of the batch.
        image_grid_thw: the same for stills.
        appended: what follows the 2D tokens of each view.
    """

    def __init__(
        self,
        config: Any,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        video_grid_thw: Int[Tensor, "V 3"] | None,
        image_grid_thw: Int[Tensor, "I 3"] | None,
        appended: ExtraTokens = ExtraTokens.NOTHING,
    ) -> None:
        self.config, self.input_ids, self.attention_mask = config, input_ids, attention_mask
        self.video_grid_thw, self.image_grid_thw, self.appended = video_grid_thw, image_grid_thw, appended

    def position_ids(
        self,
        time: TimeIndex,
        seconds_per_grid: list[float] | Float[Tensor, " V"] | None = None,
        frame_indices: Sequence[Sequence[int]] | None = None,
        cameras: Cameras | None = None,
    ) -> Int[Tensor, "3 B L"]:
        """mRoPE's (t, h, w); an appended token shares those of a 2D token of its view.

        Args as `mrope_position_ids`.
        """
        positions, _ = mrope_position_ids(
            self.input_ids,
            self._own_place,
            **self._grids,
            seconds_per_grid=seconds_per_grid,
            tokens_per_second=self.config.vision_config.tokens_per_second,
            time_index=time,
            frame_indices=frame_indices if time.requires_frames else None,
            cameras=cameras if time.requires_cameras else None,
        )
        extra, source = self._extra
        positions[:, *extra] = positions[:, *source]
        return positions

    def camera_index(self, has_camera: Bool[Tensor, "B C"] | None = None) -> Int[Tensor, "B L"]:
        """The grid step of each 2D token; -1 for text, for appended tokens, and for steps that have no camera."""
        index = grid_step_index(self.input_ids, self._own_place, **self._grids)
        if has_camera is not None and has_camera.shape[1]:
            index[~has_camera.gather(1, index.clamp(min=0)) & (index >= 0)] = -1
        return index

    def patch_centers(self) -> Float[Tensor, "B L 2"]:
        """Where in its view the center of each 2D token is, see `view_patch_centers`."""
        return view_patch_centers(self.input_ids, self._own_place, **self._grids)

    def scatter(self, points: Float[Tensor, "tokens 3"]) -> Float[Tensor, "B L 3"]:
        """What is known of each 2D token of the batch, in its place; NaN elsewhere.

        Raises:
            ValueError: not one row a 2D token.
        """
        own = grid_step_index(self.input_ids, self._own_place, **self._grids) >= 0
        scattered = points.new_full((*own.shape, 3), torch.nan)
        scattered[own] = points
        return scattered

    @property
    def _grids(self) -> dict[str, Any]:
        names = ("image_token_id", "video_token_id", "vision_start_token_id")
        return {
            "image_grid_thw": self.image_grid_thw,
            "video_grid_thw": self.video_grid_thw,
            "spatial_merge_size": self.config.vision_config.spatial_merge_size,
            **{name: getattr(self.config, name) for name in names},
        }

    @property
    def _own_place(self) -> Int[Tensor, "B L"]:
        """The tokens that have a position of their own."""
        mask = self.attention_mask.clone()
        mask[tuple(self._extra[0])] = 0
        return mask

    @cached_property
    def _extra(self) -> tuple[Int[Tensor, "2 E"], Int[Tensor, "2 E"]]:
        """(rows, columns) of the appended tokens, and of those whose positions they share."""
        ids, config = self.input_ids, self.config
        visual = (ids == config.video_token_id) | (ids == config.image_token_id)
        places = (visual & self.attention_mask.bool()).nonzero().T
        if self.appended is ExtraTokens.NOTHING:
            return places[:, :0], places[:, :0]
        extra: list[int] = []
        source: list[int] = []
        at = 0
        for run in find_media_spans(ids, config):
            grid = self.video_grid_thw if run.kind == "video" else self.image_grid_thw
            assert grid is not None
            steps, height, width = grid[run.number].tolist()
            view = height * width // config.vision_config.spatial_merge_size**2
            shared = self.appended.positions(view)
            for _ in range(steps):
                extra += range(at + view, at + view + len(shared))
                source += [at + place for place in shared]
                at += view + len(shared)
        if places.shape[1] != at:
            raise InputError(f"the sequences have {places.shape[1]} placeholders for {at} visual tokens")
        return places[:, extra], places[:, source]
