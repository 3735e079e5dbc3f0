"""Conversion of raw sequences with videos and images, in transformers' processor format, to batches.

`SpatialVLM.logits` and `generate_ids` accept them. Training and tests do not use this file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras.scene_geometry import PatchCameras, SceneGeometry
from zoo.errors import InputError
from zoo.geometry.base import BRIGHTEST, DARKEST
from zoo.model_spec import ModelSpec
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.batch import Batch, Media
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE, MediaSpan, SequenceLayout
from zoo.sequences.loaded_scene import PreparedScene, prompt_grid


def batch_of_media(
    builder: SequenceBuilder,
    input_ids: Int[Tensor, "B L"],
    attention_mask: Shaped[Tensor, "B L"],
    media: Media,
) -> Batch:
    """Build a batch for the logits of whole sequences.

    Raises:
        InputError: See `scenes_of_media`.
    """
    ids, mask, layout = _laid_out(builder, input_ids, attention_mask, media)
    scenes, scene_index = scenes_of_media(builder.spec, layout, media)
    cameras = None if builder.spec.only_predicted_cameras else media.get("cameras")
    sequences = builder.build(ids, mask, scenes, scene_index, cameras=cameras)
    return Batch(scenes, builder.vision(scenes), sequences)


def prompts_of_media(
    builder: SequenceBuilder,
    input_ids: Int[Tensor, "B L"],
    attention_mask: Shaped[Tensor, "B L"],
    media: Media,
) -> Batch:
    """Build a batch for answering sequences. Arguments as in `batch_of_media`, with cameras without an index."""
    ids, mask, layout = _laid_out(builder, input_ids, attention_mask, media)
    if (cameras := media.get("cameras")) is not None:
        if cameras.index is not None:
            raise InputError(
                "answers take one camera per temporal patch, not an index: leave it out, or ask for logits"
            )
        cameras.to("cpu").with_index(layout.camera_index())  # raises if there are too few
    scenes, scene_index = scenes_of_media(builder.spec, layout, media)
    prompts = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    return Batch(scenes, builder.vision(scenes), prompts=builder.prompts(prompts, scene_index, scenes))


def _laid_out(
    builder: SequenceBuilder, input_ids: Tensor, attention_mask: Tensor, media: Media
) -> tuple[Tensor, Tensor, SequenceLayout]:
    """Return the ids and the boolean mask of sequences on the CPU, and their layout."""
    ids, mask = input_ids.cpu(), attention_mask.bool().cpu()
    spec, videos, images = builder.spec, media.get("video_grid_thw"), media.get("image_grid_thw")
    if spec.frames.compress_beyond is not None:
        if videos is not None:
            videos = _prompt_grids(spec, videos, videos[:, 0].tolist())
        if images is not None:
            starts = (ids[:, :-1] == spec.placeholders.vision_start) & (ids[:, 1:] == spec.placeholders.image)
            counts = (starts & mask[:, :-1]).sum(1)
            images = _prompt_grids(spec, images, counts.repeat_interleave(counts).tolist())
    layout = SequenceLayout(
        ids,
        mask,
        video_grid_thw=videos,
        image_grid_thw=images,
        placeholders=spec.placeholders,
        extra_tokens=spec.extra_tokens,
    )
    return ids, mask, layout


def _prompt_grids(spec: ModelSpec, grids: Int[Tensor, "media 3"], steps: Sequence[int]) -> Int[Tensor, "media 3"]:
    """Return the grids of media as prompts show them, see `PreparedScene.media_grids`.

    `steps` are the temporal patches of the scene of each medium. If their number is wrong, `SequenceLayout` says so.
    """
    if len(steps) != len(grids):
        return grids
    own = [(t, h, w) for t, h, w in grids.tolist()]
    sides = [spec.frames.token_side((count, *grid[1:])) for count, grid in zip(steps, own, strict=True)]
    return torch.tensor([prompt_grid(grid, side) for grid, side in zip(own, sides, strict=True)]).view(-1, 3)


def scenes_of_media(
    spec: ModelSpec, layout: SequenceLayout, media: Media
) -> tuple[list[PreparedScene], list[list[int]]]:
    """Return the scenes of a batch, and which of them each sequence shows.

    Each video is a scene. All images of a sequence together are one scene, as in Spatial-MLLM.

    Raises:
        InputError: Frames or cameras do not match the media of the sequences, the images of a sequence differ in size,
            or frames are not in 0..1.
    """
    cameras = media.get("cameras")
    if cameras is not None and len(cameras) != layout.shape[0]:
        raise InputError(f"expected cameras for {layout.shape[0]} sequences, got {len(cameras)}")
    frame_count = TEMPORAL_PATCH_SIZE * max((medium.steps_before + medium.steps for medium in layout.media), default=0)
    # only a warning, because a row of a padded batch may have this number of cameras
    if cameras is not None and cameras.index is None and cameras.world_to_camera.shape[1] == frame_count > 0:
        warnings.warn("cameras: only the first half is used, one per temporal patch and not per frame", stacklevel=2)
    groups: dict[tuple[int, str, int], list[MediaSpan]] = {}
    for medium in layout.media:
        groups.setdefault((medium.row, medium.kind, medium.number if medium.kind == "video" else 0), []).append(medium)
    pixels = {
        "video": _split(media.get("pixel_values_videos"), media.get("video_grid_thw")),
        "image": _split(media.get("pixel_values"), media.get("image_grid_thw")),
    }
    frames = media.get("frames")
    if frames is not None and len(frames) not in (len(layout.media), len(groups)):
        raise InputError(
            f"{len(frames)} entries of frames, and the sequences show {len(layout.media)} videos and images in "
            f"{len(groups)} scenes: give one entry each"
        )
    for each in () if frames is None else frames:
        if each.dtype == torch.uint8:
            continue
        if not each.is_floating_point() or ((each < DARKEST) | (each > BRIGHTEST)).any():
            raise InputError("frames are floats in 0..1, or bytes: divide by 255, or undo a normalization")
    seconds, indices = media.get("seconds_per_grid"), media.get("frame_indices")
    scenes: list[PreparedScene] = []
    scene_index: list[list[int]] = [[] for _ in range(layout.shape[0])]
    for number, shown in enumerate(groups.values()):
        row, kind, which = shown[0].row, shown[0].kind, shown[0].number
        grids = torch.stack([pixels[kind][1][medium.number] for medium in shown])
        if (grids[:, 1:] != grids[0, 1:]).any():
            raise InputError(f"the images of a sequence are one scene and need one size, got grids {grids.tolist()}")
        values = [pixels[kind][0][medium.number] for medium in shown]
        patch_cameras = geometry = None
        if cameras is not None:
            patch_cameras = _cameras_of(cameras, row, shown[0].steps_before, int(grids[:, 0].sum()))
            geometry = SceneGeometry(
                world_to_camera=patch_cameras.world_to_camera.repeat_interleave(TEMPORAL_PATCH_SIZE, 0),
                K_normalized=patch_cameras.K_normalized.repeat_interleave(TEMPORAL_PATCH_SIZE, 0),
                has_camera=patch_cameras.has_camera.repeat_interleave(TEMPORAL_PATCH_SIZE, 0),
            )
        height, width = grids[0, 1:].tolist()
        grid_thw = int(grids[:, 0].sum()), height, width
        scene = PreparedScene(
            pixel_values=values[0] if len(values) == 1 else torch.cat(values),
            grid_thw=grid_thw,
            token_side=spec.frames.token_side(grid_thw),
            kind=kind,
            frames=None if frames is None else _two_per_patch(frames, number, shown, layout.media),
            frame_indices=None if indices is None or kind == "image" else indices[which],
            seconds_per_grid=None if seconds is None or kind == "image" else float(seconds[which]),
            geometry=geometry,
            cameras=patch_cameras,
        )
        if scene.cameras is not None:
            spec.check_cameras(scene)
        scenes.append(scene)
        scene_index[row].append(number)
    return scenes, scene_index


def _cameras_of(cameras: Cameras, row: int, first: int, steps: int) -> PatchCameras:
    """Return the cameras of the temporal patches of one scene.

    `first` is the number of temporal patches before the scene in the sequence, and `steps` the number in the scene.
    """
    own = cameras[[row]]
    patches, view = own.span(first, steps), own.spanned(first, steps)[1][0]
    has_camera = cameras.used_mask()[row, view]
    poses, K = patches.world_to_camera[0], patches.K_normalized[0]
    return PatchCameras(poses, K, has_camera, is_complete=bool(has_camera.all()))


def _split(pixels: Tensor | None, grid_thw: Tensor | None) -> tuple[Sequence[Tensor], Tensor]:
    """Return the patches and the grid of each video or image. Grids are read on the host."""
    if grid_thw is None:
        return (), torch.empty(0, 3, dtype=torch.long)
    grids = grid_thw.cpu()
    if pixels is None:
        raise InputError(f"{len(grids)} grids without pixel values: give pixel_values_videos or pixel_values")
    return pixels.split(grids.prod(1).tolist()), grids


def _two_per_patch(
    frames: Sequence[Tensor], number: int, scene: Sequence[MediaSpan], media: Sequence[MediaSpan]
) -> Float[Tensor, "T 3 H W"]:
    """Return two frames per temporal patch of a scene.

    Images are given twice each, or once and are then doubled.

    Args:
        frames: One entry per video and image, or one per scene, in the order in which they appear.
        number: Number of the scene.
        scene: Videos and images of the scene.
        media: All videos and images.

    Raises:
        InputError: The number of frames is wrong.
    """
    parts = (
        [(frames[media.index(medium)], medium.steps) for medium in scene]
        if len(frames) == len(media)
        else [(frames[number], sum(medium.steps for medium in scene))]
    )
    doubled = []
    for part, steps in parts:
        if scene[0].kind == "image" and len(part) == steps:
            part = part.repeat_interleave(TEMPORAL_PATCH_SIZE, 0)
        if len(part) != TEMPORAL_PATCH_SIZE * steps:
            needed = TEMPORAL_PATCH_SIZE * steps
            raise InputError(f"a scene of {steps} temporal patches needs {needed} frames, got {len(part)}")
        doubled.append(part)
    return torch.cat(doubled)
