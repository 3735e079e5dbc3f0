"""What the sequences of a batch show, as `SpatialVLM.logits` takes it, and the scenes that this makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import Cameras
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.scenes import SceneInputs
from zoo.sequence_layout import MediaSpan, SequenceLayout
from zoo.visual_grid import TEMPORAL_PATCH_SIZE


class Media(TypedDict, total=False):
    """What the sequences of a batch show, in the order in which it appears in them.

    pixel_values_videos (patches, channels) and video_grid_thw (V, 3); pixel_values and image_grid_thw likewise for
    still images; frames: one (T, 3, H, W) tensor in 0..1 per video, for models with a geometry encoder, where the
    images of a sequence are one scene and each is doubled; seconds_per_grid: one per video, None is 1.0; frame_indices:
    the raw frames of each video, for a time index that uses them; cameras: of each sequence, one per temporal patch.
    """

    pixel_values_videos: Tensor | None
    video_grid_thw: Tensor | None
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    frames: list[Tensor] | None
    seconds_per_grid: list[float] | Tensor | None
    frame_indices: Sequence[Sequence[int]] | None
    cameras: Cameras | None


def scenes_of_media(layout: SequenceLayout, media: Media) -> tuple[list[SceneInputs], list[list[int]]]:
    """The scenes of a batch, and which of them each sequence shows.

    Each video is a scene; all still images of a sequence together are one, as in Spatial-MLLM.

    Raises:
        InputError: frames or cameras of other media than the sequences show, or images of several sizes in a sequence.
    """
    cameras = media.get("cameras")
    if cameras is not None and len(cameras) != layout.shape[0]:
        raise InputError(f"expected cameras for {layout.shape[0]} sequences, got {len(cameras)}")
    groups: dict[tuple[int, str, int], list[MediaSpan]] = {}
    for span in layout.spans:
        groups.setdefault((span.row, span.kind, span.number if span.kind == "video" else 0), []).append(span)
    pixels = {
        "video": _split(media.get("pixel_values_videos"), media.get("video_grid_thw")),
        "image": _split(media.get("pixel_values"), media.get("image_grid_thw")),
    }
    frames = _frames_of_scenes(media.get("frames"), layout.spans, list(groups.values()))
    seconds, indices = media.get("seconds_per_grid"), media.get("frame_indices")
    scenes: list[SceneInputs] = []
    scene_index: list[list[int]] = [[] for _ in range(layout.shape[0])]
    steps_done = [0] * layout.shape[0]
    for number, spans in enumerate(groups.values()):
        row, kind = spans[0].row, spans[0].kind
        grids = torch.stack([pixels[kind][1][span.number] for span in spans])
        if (grids[:, 1:] != grids[0, 1:]).any():
            raise InputError(f"the images of a sequence are one scene and need one size, got grids {grids.tolist()}")
        first, last = steps_done[row], steps_done[row] + int(grids[:, 0].sum())
        steps_done[row] = last
        values = [pixels[kind][0][span.number] for span in spans]
        scene = SceneInputs(
            values[0] if len(values) == 1 else torch.cat(values),
            torch.cat((grids[:, :1].sum(0), grids[0, 1:])),
            kind=kind,
            frames=None if frames is None else frames[number],
            frame_indices=None if indices is None or kind == "image" else indices[spans[0].number],
            seconds_per_grid=None if seconds is None or kind == "image" else float(seconds[spans[0].number]),
        )
        if cameras is not None:
            scene.cameras = cameras[[row]].span(first, last - first)
            if cameras.index is not None:
                views = cameras[[row]].spanned(first, last - first)[1][0]
                scene.has_camera = cameras.used_mask()[row, views]
            scene.geometry = SceneGeometry(
                world_to_camera=scene.cameras.world_to_camera[0].repeat_interleave(TEMPORAL_PATCH_SIZE, 0),
                K_normalized=scene.cameras.K_normalized[0].repeat_interleave(TEMPORAL_PATCH_SIZE, 0),
            )
        scenes.append(scene)
        scene_index[row].append(number)
    return scenes, scene_index


def _split(pixels: Tensor | None, grid_thw: Tensor | None) -> tuple[Sequence[Tensor], Tensor]:
    """The patches and the grid of each video or image; grids are read on the host."""
    if grid_thw is None:
        return (), torch.empty(0, 3, dtype=torch.long)
    grids = grid_thw.cpu()
    if pixels is None:
        raise InputError(f"{len(grids)} grids without pixel values: give pixel_values_videos or pixel_values")
    return pixels.split(grids.prod(1).tolist()), grids


def _frames_of_scenes(
    frames: Sequence[Tensor] | None, spans: Sequence[MediaSpan], scenes: Sequence[Sequence[MediaSpan]]
) -> list[Float[Tensor, "T 3 H W"]] | None:
    """Two frames per temporal patch of each scene.

    Args:
        frames: one entry per scene, or one per video and image, in the order in which they appear. Images come twice
            each, or once and are then doubled.
        spans: the videos and images of the batch.
        scenes: the same, grouped.

    Raises:
        InputError: frames of other media than the sequences show.
    """
    if frames is None:
        return None
    if len(frames) == len(spans):
        of_span = {span: _two_per_patch(each, [span]) for span, each in zip(spans, frames, strict=True)}
        return [torch.cat([of_span[span] for span in scene]) for scene in scenes]
    if len(frames) != len(scenes):
        raise InputError(
            f"{len(frames)} entries of frames, and the sequences show {len(spans)} videos and images in {len(scenes)} "
            "scenes: give one entry each"
        )
    return [_two_per_patch(each, scene) for scene, each in zip(scenes, frames, strict=True)]


def _two_per_patch(frames: Tensor, scene: Sequence[MediaSpan]) -> Tensor:
    steps = sum(span.grid[0] for span in scene)
    if scene[0].kind == "image" and len(frames) == steps:
        frames = frames.repeat_interleave(TEMPORAL_PATCH_SIZE, 0)
    if len(frames) != TEMPORAL_PATCH_SIZE * steps:
        raise InputError(
            f"a scene of {steps} temporal patches needs {TEMPORAL_PATCH_SIZE * steps} frames, got {len(frames)}"
        )
    return frames
