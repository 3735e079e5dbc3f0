"""Vision and fusion of several scenes at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from zoo.backbones.base import Backbone, VisualTokens
from zoo.encodings.base import ViewMixer
from zoo.fusions import Fusion
from zoo.geometry.base import SceneGeometry
from zoo.scene_encoding.scene_cameras import stack_cameras
from zoo.scenes import SceneInputs, SceneTokens


def encode_vision(backbone: Backbone, scenes: Sequence[SceneInputs]) -> list[VisualTokens]:
    """The 2D tokens of each scene, by one call of the vision tower: sharded processes must call it equally often."""
    if not scenes:
        return []
    pixels, grids = [scene.pixel_values for scene in scenes], [scene.media_grids for scene in scenes]
    joined = pixels[0] if len(pixels) == 1 else torch.cat(pixels)
    tokens, found = backbone.encode_vision(joined, torch.cat(grids).to(joined.device)), []
    for own in grids:
        media, tokens = tokens[: len(own)], tokens[len(own) :]
        found.append(
            media[0] if len(media) == 1 else VisualTokens(*(torch.cat(x, -2) for x in zip(*media, strict=True)))
        )
    return found


def fuse_scenes(
    scenes: Sequence[SceneTokens],
    geometry: Sequence[SceneGeometry | None],
    fusion: Fusion | None,
    view_mixer: ViewMixer | None,
    spatial_merge_size: int,
) -> None:
    """Mixes the views of each scene and fuses its 2D and 3D tokens, in place.

    Scenes of one grid are fused as one long scene, since temporal patches are independent in a fusion.

    Args:
        scenes: with their 2D tokens.
        geometry: 3D tokens of each scene, for a fusion that uses them.
        fusion: None keeps the 2D tokens.
        view_mixer: None mixes nothing.
        spatial_merge_size: patches per side in one visual token.
    """
    if fusion is None and view_mixer is None:
        return
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, encoded in enumerate(scenes):
        groups.setdefault(tuple(encoded.scene.grid_thw.tolist()), []).append(i)
    for (steps, *sides), members in groups.items():
        same = [scenes[i] for i in members]
        tokens = torch.cat([encoded.tokens.flatten(0, 1) for encoded in same])
        mix = None
        if view_mixer is not None and all(encoded.cameras is not None for encoded in same):
            cameras, has_camera = stack_cameras([[encoded] for encoded in same])
            grid = (steps, *(side // spatial_merge_size for side in sides))
            mix = partial(view_mixer, cameras=cameras, grid=grid, has_camera=has_camera)
        if fusion is not None:
            known = [each for i in members if (each := geometry[i]) is not None and fusion.uses_geometry]
            read = SceneGeometry.joined(known) if len(known) == len(same) else None
            long = torch.tensor([steps * len(same), *sides])
            fused, deep = fusion(tokens, long, read, mix), fusion.deep_features(read, long, tokens.dtype)
        elif mix is not None:
            fused = mix(tokens).unflatten(0, (steps * len(same), -1))
        else:
            continue
        for i, (encoded, each) in enumerate(zip(same, fused.split(steps), strict=True)):
            encoded.tokens = each
            if fusion is not None:
                own = None if deep is None else deep[:, i * steps : (i + 1) * steps]
                encoded.deepstack = fusion.fit_deepstack(encoded.deepstack, each.shape[1], own)
