"""Scenes as a model reads them and as its decoder sees them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.cameras import Cameras
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.sequences.layout import MediaKind, Medium, SequenceLayout
from zoo.sequences.visual_grid import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE


class SceneInputs:
    """One scene: one video, or all still images of a sequence.

    A plain class, as `Cameras`: Lightning's half-precision plugins cast dataclasses, and poses in bfloat16 are useless.

    Args:
        pixel_values: patches as the backbone's processor cuts them, temporal patch after temporal patch.
        grid_thw: (t, h, w) in patches before the spatial merge; each still image is one temporal patch.
        kind: "video" or "image".
        frames: RGB frames, two per temporal patch, in 0..1 or as bytes; for models that require frames.
        geometry: the dataset's cameras and depth for each frame.
        cameras: one camera per temporal patch, (1, t); takes precedence over those of `geometry`.
        has_camera: the temporal patches whose camera is valid; None means all.
        frame_indices: the raw video frames shown, for a time index that requires frames.
        seconds_per_grid: seconds per temporal patch; None takes the time index's nominal value.
        geometry_of: another scene whose 3D tokens it gets, or "nothing" for zeros, in a perturbed test.
        question_types: of the questions that are asked about it at once, for objectives that depend on them.
        has_true_cameras: False in a test with the cameras of another scene, which no prediction is compared with.
    """

    def __init__(
        self,
        pixel_values: Float[Tensor, "patches channels"],
        grid_thw: Int[Tensor, " 3"],
        *,
        kind: MediaKind = "video",
        frames: Shaped[Tensor, "S 3 H W"] | None = None,
        geometry: SceneGeometry | None = None,
        cameras: Cameras | None = None,
        has_camera: Bool[Tensor, " t"] | None = None,
        frame_indices: Sequence[int] | None = None,
        seconds_per_grid: float | None = None,
        geometry_of: SceneInputs | Literal["nothing"] | None = None,
        question_types: Sequence[str] = (),
        has_true_cameras: bool = True,
    ) -> None:
        self.pixel_values, self.grid_thw, self.kind = pixel_values, grid_thw, kind
        self.frames, self.geometry, self.cameras, self.has_camera = frames, geometry, cameras, has_camera
        self.frame_indices, self.seconds_per_grid = frame_indices, seconds_per_grid
        self.geometry_of, self.question_types = geometry_of, question_types
        self.has_true_cameras = has_true_cameras

    @property
    def knows_cameras(self) -> bool:
        """Whether it has cameras of its own, the dataset's or given ones."""
        return self.cameras is not None or (self.geometry is not None and self.geometry.knows_cameras)

    @property
    def num_steps(self) -> int:
        """Temporal patches."""
        return int(self.grid_thw[0])

    @property
    def tokens_per_step(self) -> int:
        """2D tokens of a temporal patch."""
        return int(self.grid_thw[1:].prod()) // SPATIAL_MERGE_SIZE**2

    @property
    def token_rows(self) -> int:
        """Rows of 2D tokens in a temporal patch."""
        return int(self.grid_thw[1]) // SPATIAL_MERGE_SIZE

    @property
    def media_grids(self) -> Int[Tensor, "M 3"]:
        """(t, h, w) of each medium in the prompt: one video, or each still image."""
        if self.kind == "video":
            return self.grid_thw[None]
        one = self.grid_thw.clone()
        one[0] = 1
        return one.repeat(self.num_steps, 1)

    def to(self, device: torch.device | str, **_: Any) -> SceneInputs:
        """The same scene on another device; the grid stays where it is, since its numbers are read on the host."""
        other = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, (Tensor, SceneGeometry, Cameras, SceneInputs)) and name != "grid_thw":
                setattr(other, name, value.to(device))
        return other


class PatchCameras(NamedTuple):
    """One camera per temporal patch of a scene.

    Attributes:
        world_to_camera: poses.
        K_normalized: intrinsics, see `zoo.cameras.normalize_intrinsics`.
        has_camera: the temporal patches whose camera is valid.
    """

    world_to_camera: Float[Tensor, "t 4 4"]
    K_normalized: Float[Tensor, "t 3 3"]
    has_camera: Bool[Tensor, " t"]


@dataclass(eq=False)
class SceneTokens:
    """One encoded scene: the decoder's visual tokens, and the cameras they belong to.

    Args:
        scene: what was encoded.
        tokens: visual tokens of each temporal patch, in the decoder's width: those on the 2D grid, then extra tokens.
        deepstack: what is added to their hidden states in the first decoder layers, see `VisualTokens`.
        cameras: for a model that uses cameras; None if the scene has none.
        points: the 3D point of each 2D token, NaN where unknown; for an encoding that uses points.
        median_depth: of all pixels of the scene; for an encoding that divides lengths by it.
        view_features: the mean 2D token of each temporal patch; for a reference view chosen by them.
        target_cameras: what an objective learns to predict: the dataset's, or in training the geometry encoder's; None
            without.
        target_depth: beneath each 2D token, 0 where unknown; likewise.
    """

    scene: SceneInputs
    tokens: Float[Tensor, "t n D"]
    deepstack: Float[Tensor, "layers t n D"]
    cameras: PatchCameras | None = None
    points: Float[Tensor, "tokens 3"] | None = None
    median_depth: Float[Tensor, ""] | None = None
    view_features: Float[Tensor, "t C"] | None = None
    target_cameras: PatchCameras | None = None
    target_depth: Float[Tensor, "t _n"] | None = None


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
    frame_count = TEMPORAL_PATCH_SIZE * max((medium.steps_before + medium.steps for medium in layout.media), default=0)
    # a warning only: a row that is cut from a padded batch may have as many cameras
    if cameras is not None and cameras.index is None and cameras.world_to_camera.shape[1] == frame_count > 0:
        warnings.warn("cameras: only the first half is used, one per temporal patch and not per frame", stacklevel=2)
    groups: dict[tuple[int, str, int], list[Medium]] = {}
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
    seconds, indices = media.get("seconds_per_grid"), media.get("frame_indices")
    scenes: list[SceneInputs] = []
    scene_index: list[list[int]] = [[] for _ in range(layout.shape[0])]
    for number, shown in enumerate(groups.values()):
        row, kind, which = shown[0].row, shown[0].kind, shown[0].number
        grids = torch.stack([pixels[kind][1][medium.number] for medium in shown])
        if (grids[:, 1:] != grids[0, 1:]).any():
            raise InputError(f"the images of a sequence are one scene and need one size, got grids {grids.tolist()}")
        values = [pixels[kind][0][medium.number] for medium in shown]
        scene = SceneInputs(
            values[0] if len(values) == 1 else torch.cat(values),
            torch.cat((grids[:, :1].sum(0), grids[0, 1:])),
            kind=kind,
            frames=None if frames is None else _two_per_patch(frames, number, shown, layout.media),
            frame_indices=None if indices is None or kind == "image" else indices[which],
            seconds_per_grid=None if seconds is None or kind == "image" else float(seconds[which]),
        )
        if cameras is not None:
            first = shown[0].steps_before
            scene.cameras = cameras[[row]].span(first, scene.num_steps)
            scene.has_camera = cameras.used_mask()[row, cameras[[row]].spanned(first, scene.num_steps)[1][0]]
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


def _two_per_patch(
    frames: Sequence[Tensor], number: int, scene: Sequence[Medium], media: Sequence[Medium]
) -> Float[Tensor, "T 3 H W"]:
    """Two frames per temporal patch of a scene; still images come twice each, or once and are then doubled.

    Args:
        frames: one entry per video and image, or else one per scene, in the order in which they appear.
        number: of the scene.
        scene: its videos and images.
        media: all videos and images.

    Raises:
        InputError: a wrong number of frames.
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
