"""What the sequences of a batch show, and which of it is one scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.visual_grid import TEMPORAL_PATCH_SIZE


class Media(TypedDict, total=False):
    """What the sequences of a batch show, in the order in which it appears in them.

    pixel_values_videos (patches, 1176) and video_grid_thw (V, 3); pixel_values and image_grid_thw likewise for
    stills; frames: a (T, 3, H, W) tensor in 0..1 a video, for models with a geometry encoder, where the stills of a
    sequence are one scene and each is doubled (see `scene_frames`); seconds_per_grid: one a video, None is 1.0;
    frame_indices: the raw frames that each video shows, for a model whose time goes by them; cameras: of each
    sequence, one a grid step.
    """

    pixel_values_videos: Tensor | None
    video_grid_thw: Tensor | None
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    frames: list[Tensor] | None
    seconds_per_grid: list[float] | Tensor | None
    frame_indices: Sequence[Sequence[int]] | None
    cameras: Cameras | None


class MediaSpan(NamedTuple):
    """A video or a still in a batch of sequences: the placeholders that follow each other in a row."""

    row: int
    kind: str  # "video" or "image"
    number: int  # among the videos, or among the images, of the batch


def find_media_spans(input_ids: Int[Tensor, "B L"], config: Any) -> list[MediaSpan]:
    """The videos and stills of a batch, in the order in which they appear; `config` is Qwen2.5-VL's."""
    kinds = {config.video_token_id: "video", config.image_token_id: "image"}
    count = dict.fromkeys(kinds.values(), 0)
    runs = []
    for row, column in (input_ids[:, :-1] == config.vision_start_token_id).nonzero().tolist():
        kind = kinds.get(int(input_ids[row, column + 1]))
        if kind is not None:
            runs.append(MediaSpan(row, kind, count[kind]))
            count[kind] += 1
    return runs


def scenes_of(runs: Sequence[MediaSpan]) -> list[list[MediaSpan]]:
    """What one geometry belongs to: each video; all stills of a sequence together, as Spatial-MLLM has it."""
    scenes: dict[tuple[int, str, int], list[MediaSpan]] = {}
    for run in runs:
        scenes.setdefault((run.row, run.kind, run.number if run.kind == "video" else 0), []).append(run)
    return list(scenes.values())


def scene_grid(scene: Sequence[MediaSpan], grids: Mapping[str, Tensor | None]) -> Int[Tensor, " 3"]:
    """Steps, and patches a column and a row, of a scene; a still is a step.

    Raises:
        InputError: stills of several sizes, or fewer grids than there are media.
    """
    found = []
    for run in scene:
        grid = grids[run.kind]
        if grid is None or run.number >= len(grid):
            raise InputError(f"the sequences show more {run.kind}s than {run.kind}_grid_thw has rows")
        found.append(grid[run.number])
    rows = torch.stack(found)
    if (rows[:, 1:] != rows[0, 1:]).any():
        raise InputError(f"the stills of a sequence are one scene and need one size, got grids {rows.tolist()}")
    return torch.cat((rows[:, :1].sum(0), rows[0, 1:]))


def scene_frames(
    frames: Sequence[Tensor], runs: Sequence[MediaSpan], grids: Mapping[str, Tensor | None]
) -> list[Float[Tensor, "T 3 H W"]]:
    """The frames of each scene, two a grid step.

    Args:
        frames: an entry a scene, or an entry a video and still, in the order in which they appear. Stills come twice
            each, or once and are then doubled.
        runs: what the sequences show.
        grids: of videos and images.

    Raises:
        InputError: other frames than the sequences show.
    """
    scenes = scenes_of(runs)
    if len(frames) == len(runs):
        of_run = {run: _two_a_step(each, [run], grids) for run, each in zip(runs, frames, strict=True)}
        return [torch.cat([of_run[run] for run in scene]) for scene in scenes]
    if len(frames) != len(scenes):
        raise InputError(
            f"{len(frames)} entries of frames, and the sequences show {len(runs)} videos and stills in {len(scenes)} "
            "scenes: give an entry each"
        )
    return [_two_a_step(each, scene, grids) for scene, each in zip(scenes, frames, strict=True)]


def _two_a_step(frames: Tensor, scene: Sequence[MediaSpan], grids: Mapping[str, Tensor | None]) -> Tensor:
    steps = int(scene_grid(scene, grids)[0])
    if scene[0].kind == "image" and len(frames) == steps:
        frames = frames.repeat_interleave(TEMPORAL_PATCH_SIZE, 0)
    if len(frames) != TEMPORAL_PATCH_SIZE * steps:
        raise InputError(f"a scene of {steps} grid steps needs {TEMPORAL_PATCH_SIZE * steps} frames, got {len(frames)}")
    return frames


def refuse_torn(runs: Sequence[MediaSpan]) -> None:
    """InputError where a video lies between the stills of a scene: its cameras would not follow each other."""
    if [run for scene in scenes_of(runs) for run in scene] != list(runs):
        raise InputError("a sequence with a video between its stills can't have cameras: put the stills side by side")


def step_spans(scenes: Sequence[Sequence[MediaSpan]], grids: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """(row, first, last) of each scene: which grid steps of its sequence are its own, last excluded."""
    spans, done = [], dict.fromkeys((scene[0].row for scene in scenes), 0)
    for scene, grid in zip(scenes, grids, strict=True):
        row, first = scene[0].row, done[scene[0].row]
        done[row] = first + int(grid[0])
        spans.append((row, first, done[row]))
    return spans


def scene_cameras(
    cameras: Cameras, has_camera: Bool[Tensor, "B C"] | None, spans: Sequence[tuple[int, int, int]]
) -> tuple[Cameras, Bool[Tensor, "scenes steps"] | None]:
    """The cameras of each scene as a sample of its own, and which of them mean something; see `step_spans`."""
    device = cameras.world_to_camera.device
    row, first, last = torch.tensor(spans, device=device).unbind(1)
    of_row, longest = cameras[row], int((last - first).max())
    present = None if has_camera is None else has_camera[row][of_row.spanned(first, longest)]
    return of_row.span(first, longest), present


def given_cameras(
    scenes: Sequence[Sequence[MediaSpan]], grids: Sequence[Tensor], cameras: Cameras | None
) -> list[SceneGeometry | None]:
    """The cameras of each scene, a frame, from those of the sequences, a grid step."""
    if cameras is None:
        return [None] * len(scenes)
    found: list[SceneGeometry | None] = []
    for row, first, last in step_spans(scenes, grids):
        poses, K = cameras.world_to_camera[row, first:last], cameras.K_normalized[row, first:last]
        found.append(
            SceneGeometry(
                world_to_camera=poses.repeat_interleave(TEMPORAL_PATCH_SIZE, 0),
                K_normalized=K.repeat_interleave(TEMPORAL_PATCH_SIZE, 0),
            )
        )
    return found


def by_row(
    scenes: Sequence[Sequence[MediaSpan]], geometries: Sequence[SceneGeometry | None], rows: int
) -> list[SceneGeometry]:
    """The cameras of each sequence, those of its scenes one after the other; none for a sequence of text.

    Raises:
        ValueError: a scene without cameras.
    """
    each = [(geometry or SceneGeometry()).cameras() for geometry in geometries]
    found = []
    for row in range(rows):
        own = [cameras for scene, cameras in zip(scenes, each, strict=True) if scene[0].row == row]
        nothing = (each[0][0][:0], each[0][1][:0], each[0][2][:0])
        poses, K, present = (torch.cat(parts) for parts in zip(*(own or [nothing]), strict=True))
        found.append(SceneGeometry(world_to_camera=poses, K_normalized=K, has_camera=present))
    return found
