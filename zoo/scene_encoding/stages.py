"""The stages of encoding scenes, as functions of values; `SpatialVLM.encode_scenes` calls them in this order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.backbones.base import Backbone, VisualTokens
from zoo.cameras import Cameras
from zoo.cameras.patch_cameras import stack_cameras
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.encodings.base import ViewMixer
from zoo.errors import InputError
from zoo.fusions import Fusion
from zoo.geometry.base import GeometryEncoder
from zoo.scene_encoding.encoded_scene import SceneCameras
from zoo.scene_encoding.encoder_view import under_tower, view_of_encoder
from zoo.scene_encoding.geometry_reader import EVERY_FRAME, shown_frames
from zoo.scene_encoding.scene_cameras import add_scene_statistics
from zoo.seams import check_count, check_shape
from zoo.sequences.batch import Batch
from zoo.sequences.scene_inputs import SceneInputs
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE


def encode_vision(backbone: Backbone, batch: Batch) -> list[VisualTokens]:
    """Compute the 2D tokens (t, n, D) of each scene by one call of the tower: sharded processes call it equally often.

    Args:
        backbone: The model.
        batch: With the scenes and the tower's other inputs.
    """
    if batch.vision is None:
        return []
    pixels = [scene.pixel_values for scene in batch.scenes]
    joined = backbone.encode_vision(pixels[0] if len(pixels) == 1 else torch.cat(pixels), batch.vision)
    counts = [scene.num_steps * scene.tokens_per_step for scene in batch.scenes]
    parts = zip(batch.scenes, joined.tokens.split(counts), joined.deepstack.split(counts, 1), strict=True)
    return [VisualTokens(*(each.unflatten(-2, (scene.num_steps, -1)) for each in own)) for scene, *own in parts]


def encode_geometry(
    encoder: GeometryEncoder | None,
    scenes: Sequence[SceneInputs],
    patch_size: int,
    *,
    tokens: bool,
    cameras: bool,
    stills_once: bool = False,
) -> list[SceneGeometry | None]:
    """Compute the geometry of each scene by the encoder, as far as a model reads it; else the dataset's.

    Args:
        encoder: None in a model without one.
        scenes: Of the batch.
        patch_size: Of the vision tower, in pixels.
        tokens: Whether 3D tokens are read.
        cameras: Whether some scene needs predicted cameras.
        stills_once: Whether the encoder sees the two equal frames of a still once; its output is that of both.

    Raises:
        InputError: The encoder needs frames, and a scene has none.
    """
    dataset = [scene.geometry for scene in scenes]
    if encoder is None or not (tokens or cameras):
        return dataset
    # 1. What data workers have read of a cache, and the rest by the encoder.
    found = {i: scene.cached_geometry for i, scene in enumerate(scenes) if scene.cached_geometry is not None}
    shown = [shown_frames(scene.kind, stills_once) for scene in scenes]
    windows = {i: scene.tower_window for i, scene in enumerate(scenes)}
    if rest := [i for i in range(len(scenes)) if i not in found]:
        if encoder.requires_frames and any(scenes[i].frames is None for i in rest):
            name = type(encoder.meta_encoder).__name__
            raise InputError(f"{name} needs the frames of each video: give frames=[(T, 3, H, W), ...]")
        views = [view_of_encoder(encoder, scenes[i], shown[i], patch_size) for i in rest]
        frames, given, own_windows = (list(each) for each in zip(*views, strict=True))
        windows |= dict(zip(rest, own_windows, strict=True))
        computed = encoder(frames, given, tokens=tokens, cameras=cameras)
        check_count(encoder.meta_encoder, "scenes", computed, len(rest))
        for own, each in zip(frames, computed, strict=True):
            _check_geometry(encoder, each, None if own is None else len(own), tokens)
        found |= dict(zip(rest, computed, strict=True))
    for i, window in windows.items():
        if window is not None:
            found[i] = under_tower(found[i], window, scenes[i].grid_thw[1:], encoder.patch_size)
    for i, frames_of in enumerate(shown):
        if frames_of != EVERY_FRAME:
            found[i] = found[i].repeated(TEMPORAL_PATCH_SIZE)
    # 2. Tokens of other scenes, in a perturbed test.
    for i, other in enumerate(scene.geometry_override for scene in scenes):
        if other == "nothing" and tokens:
            found[i] = found[i].with_tokens_of(found[i], scale=0.0)
        elif isinstance(other, SceneInputs) and tokens:
            (source,) = encode_geometry(
                encoder, [other], patch_size, tokens=True, cameras=False, stills_once=stills_once
            )
            assert source is not None
            found[i] = found[i].with_tokens_of(source)
    return [found[i] for i in range(len(scenes))]


class FusedScene(NamedTuple):
    """A scene after view mixing and fusion.

    Attributes:
        visual: Its visual tokens.
        raw_depth: See `ViewMixer.raw_depth`; None without.
    """

    visual: VisualTokens
    raw_depth: Float[Tensor, "t n ends"] | None = None


def fuse_scenes(
    scenes: Sequence[SceneInputs],
    visual: Sequence[VisualTokens],
    cameras: Sequence[SceneCameras | None],
    geometry: Sequence[SceneGeometry | None],
    fusion: Fusion | None,
    view_mixer: ViewMixer | None,
) -> list[FusedScene]:
    """Mix the views of each scene and fuse its 2D and 3D tokens.

    Scenes of one grid are fused as one long scene, since temporal patches are independent in a fusion.

    Args:
        scenes: Of the batch.
        visual: Their 2D tokens.
        cameras: Their cameras, for the view mixer.
        geometry: 3D tokens of each, for a fusion that uses them.
        fusion: None keeps the 2D tokens.
        view_mixer: None mixes nothing.
    """
    fused = [FusedScene(each) for each in visual]
    if fusion is None and view_mixer is None:
        return fused
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, scene in enumerate(scenes):
        patches = None if (own := geometry[i]) is None else own.patches
        groups.setdefault((*scene.grid_thw, *(() if patches is None else patches.shape[1:3])), []).append(i)
    for (steps, height, width, *_), members in groups.items():
        tokens = torch.cat([visual[i].tokens.flatten(0, 1) for i in members])
        mix: _Mixing | None = None
        known_cameras = [each for each in (cameras[i] for i in members) if each is not None]
        if view_mixer is not None and len(known_cameras) == len(members):
            mix = _Mixing(view_mixer, known_cameras, scenes[members[0]].token_grid)
        if fusion is not None:
            found = [geometry[i] for i in members] if fusion.uses_geometry else []
            known = [each for each in found if each is not None]
            read = SceneGeometry.joined(known) if len(known) == len(members) else None
            long = (steps * len(members), height, width)
            joined, deep = fusion(tokens, long, read, mix), fusion.deep_features(read, long, tokens.dtype)
            per_view = scenes[members[0]].tokens_per_step
            per_view += fusion.appended.count(per_view)
            check_shape(fusion, "visual tokens (t, n, D)", joined, long[0], per_view, tokens.shape[1])
        elif mix is not None:
            joined, deep = mix(tokens).unflatten(0, (steps * len(members), -1)), None
        else:
            continue
        raw_depths = mix.raw_depths if mix is not None and mix.raw_depths else [None] * len(members)
        for place, (i, each, raw_depth) in enumerate(zip(members, joined.split(steps), raw_depths, strict=True)):
            features = visual[i].deepstack
            if fusion is not None:
                own_deep = None if deep is None else deep[:, place * steps : (place + 1) * steps]
                features = fusion.fit_deepstack(features, each.shape[1], own_deep)
            fused[i] = FusedScene(VisualTokens(each, features), raw_depth)
    return fused


class _Mixing:
    """The mixing of the views of scenes with one grid, as a fusion calls it.

    Args:
        view_mixer: The mixer.
        scenes: The cameras of each.
        grid: (t, h, w) of one scene in tokens.

    Attributes:
        raw_depths: Of each scene, see `ViewMixer.raw_depth`; none before the call, or of a mixer that predicts none.
    """

    def __init__(self, view_mixer: ViewMixer, scenes: Sequence[SceneCameras], grid: tuple[int, int, int]) -> None:
        self.view_mixer, self.scenes, self.grid = view_mixer, scenes, grid
        self.raw_depths: Sequence[Float[Tensor, "t n ends"]] = ()

    def __call__(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        poses, K, present = stack_cameras([[scene.patches] for scene in self.scenes])
        cameras = add_scene_statistics(Cameras.trusted(poses, K), [[scene] for scene in self.scenes], present)
        if points := [scene.points for scene in self.scenes if scene.points is not None]:
            cameras = cameras.with_tokens(points=torch.stack(points))
        is_complete = all(scene.patches.is_complete for scene in self.scenes)
        mixed = self.view_mixer(tokens, cameras=cameras, grid=self.grid, has_camera=None if is_complete else present)
        check_shape(self.view_mixer, "2D tokens (N, D)", mixed, *tokens.shape)
        if (raw_depth := self.view_mixer.raw_depth(tokens)) is not None:
            self.raw_depths = raw_depth.unflatten(0, (len(self.scenes), self.grid[0], -1)).unbind()
        return mixed


def _check_geometry(encoder: GeometryEncoder, geometry: SceneGeometry, frames: int | None, tokens: bool) -> None:
    """Check the shapes of a scene's geometry."""
    part = encoder.meta_encoder
    if tokens and encoder.width:
        check_shape(part, "3D tokens (S, h, w, D)", geometry.patches, frames, None, None, encoder.width)
    for name, what, sides in (("world_to_camera", "poses (S, 4, 4)", (4, 4)), ("K_normalized", "K (S, 3, 3)", (3, 3))):
        if (value := getattr(geometry, name)) is not None:
            check_shape(part, what, value, frames, *sides)
