"""How scenes are encoded: one function each for vision, geometry, cameras, view mixing and fusion.

`SpatialVLM.encode_scenes` calls them in this order. Each takes values and returns values. None makes the host wait for
a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from zoo.backbones.base import Backbone, VisualTokens
from zoo.backbones.decoder import Interactions
from zoo.cameras import Cameras
from zoo.cameras.cameras import balanced_views
from zoo.cameras.rays import patch_depth, token_points
from zoo.cameras.scene_geometry import MergedCamera, PatchCameras, SceneGeometry, Window, merge_cameras, stack_cameras
from zoo.encodings.base import ViewMixer
from zoo.errors import InputError
from zoo.fusions.base import Fusion, resize_grid
from zoo.geometry.base import GeometryEncoder, covers, encoder_frames, resample_depth
from zoo.geometry.cache import check_grid, geometry_of_frames
from zoo.model_spec import CameraPlan
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.layout import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import EVERY_FRAME, FrameRules, Grid, PreparedScene, TeacherTargets, read_by_vision
from zoo.sequences.position_ids import check_all_have_cameras, valid_index
from zoo.values import check_count, check_shape


@dataclass(frozen=True, eq=False)
class EncodedScene:
    """One encoded scene: visual tokens, their cameras, and the targets of objectives.

    Attributes:
        scene: The scene that was encoded.
        visual: (t, n, D) tokens of each temporal patch in the decoder's width, 2D tokens first and then extra tokens,
            and the DeepStack features added in the first decoder layers.
        cameras: One per temporal patch, for a model that uses cameras. None if the scene has no cameras.
        points: 3D point of each 2D token for an encoding that uses points. NaN where unknown.
        depth: Depth of all pixels for an encoding that divides lengths by its median. NaN where unknown.
        view_features: Mean 2D token of each temporal patch, for choosing a reference view.
        target_cameras: Target of objectives, one camera per temporal patch: the dataset's true one, or in training the
            geometry encoder's.
        target_depth: Target of objectives, the depth under each 2D token, 0 where unknown. Same source as
            `target_cameras`.
        is_target_in_camera_unit: Whether `target_depth` has the unit of `cameras`.
        target_tokens: 2D tokens of the scene's target views, and of its own views before fusion, without a gradient.
            None if no objective learns them.
        teacher_targets: The teacher's outputs for this scene in training. None without a teacher.
        row_token: Token after each row of 2D tokens, which `visual` does not contain. None without one.
        end_token: Token appended after the last view. None without one.
        layer_tokens: The 3D token of each 2D token for the fusion's interactions, see `Fusion.layer_tokens`. None
            without any.
        raw_depth: The view mixer's depth prediction for each 2D token, see `ViewMixer.raw_depth`. None without one.
    """

    scene: PreparedScene
    visual: VisualTokens
    cameras: PatchCameras | None = None
    points: Float[Tensor, "tokens 3"] | None = None
    depth: Float[Tensor, " pixels"] | None = None
    view_features: Float[Tensor, "t C"] | None = None
    target_cameras: PatchCameras | None = None
    target_depth: Float[Tensor, "t n"] | None = None
    is_target_in_camera_unit: bool = True
    target_tokens: tuple[Float[Tensor, "v n D"], Float[Tensor, "t n D"]] | None = None
    teacher_targets: TeacherTargets | None = None
    row_token: Float[Tensor, " D"] | None = None
    end_token: Float[Tensor, " D"] | None = None
    layer_tokens: Float[Tensor, "t n D"] | None = None
    raw_depth: Float[Tensor, "t n ends"] | None = None

    def in_sequence(self) -> VisualTokens:
        """Return the visual tokens in sequence order: views with the tokens after their rows, then the end token."""
        tokens, deepstack = self.visual
        if self.row_token is not None:
            _, *sides = self.scene.token_grid
            tokens = end_rows(tokens, sides, self.row_token)
            deepstack = end_rows(deepstack, sides, torch.zeros_like(self.row_token))
        tokens, deepstack = tokens.flatten(0, 1), deepstack.flatten(1, 2)
        if self.end_token is not None:
            tokens = torch.cat((tokens, self.end_token[None].to(tokens.dtype)))
            deepstack = F.pad(deepstack, (0, 0, 0, 1))
        return VisualTokens(tokens, deepstack)

    def of_views(self, states: Float[Tensor, "rows N D"]) -> Float[Tensor, "rows t n D"]:
        """Return the states of the tokens in `visual`, given the states of all visual tokens in sequence order."""
        steps, per_view = self.visual.tokens.shape[:2]
        if self.row_token is None:
            return states[:, : steps * per_view].unflatten(1, (steps, per_view))
        _, rows, columns = self.scene.token_grid
        per_view += rows
        views = states[:, : steps * per_view].unflatten(1, (steps, per_view))
        of_rows, others = views.split([rows * (columns + 1), per_view - rows * (columns + 1)], 2)
        return torch.cat((of_rows.unflatten(2, (rows, -1))[:, :, :, :-1].flatten(2, 3), others), 2)

    def token_points(self) -> Float[Tensor, "tokens 3"]:
        """Return the 3D point of each 2D token, NaN where unknown."""
        if self.points is not None:
            return self.points
        count = self.scene.num_steps * self.scene.tokens_per_step
        return torch.full((count, 3), torch.nan, dtype=torch.float64, device=self.visual.tokens.device)


def end_rows(
    tokens: Float[Tensor, "*steps n D"], sides: Sequence[int], end: Float[Tensor, " D"]
) -> Float[Tensor, "*steps N D"]:
    """Add a token after each row of views, whose first tokens are a grid of `sides` rows and columns."""
    rows, columns = sides
    grid = tokens[..., : rows * columns, :].unflatten(-2, (rows, columns))
    ends = end.to(tokens.dtype).expand(*grid.shape[:-2], 1, -1)
    return torch.cat((torch.cat((grid, ends), -2).flatten(-3, -2), tokens[..., rows * columns :, :]), -2)


# ---- 1. Vision: patches to 2D tokens --------------------------------------------------------------------------------


def encode_vision(backbone: Backbone, batch: Batch) -> list[EncodedScene]:
    """Compute the 2D tokens of all scenes by one call of the vision encoder, and compress them, see `Fusion`.

    One call per batch keeps sharded processes in step. It includes the target views, see `read_by_vision`.
    """
    if batch.vision is None:
        return []
    scenes, side = read_by_vision(batch.scenes), SPATIAL_MERGE_SIZE
    pixels = [scene.pixel_values for scene in scenes if scene.pixel_values is not None]
    joined = backbone.encode_vision(pixels[0] if len(pixels) == 1 else torch.cat(pixels), batch.vision)
    grids = [(steps, height // side, width // side) for steps, height, width in (each.grid_thw for each in scenes)]
    counts = [steps * rows * columns for steps, rows, columns in grids]
    of_scenes = zip(joined.tokens.split(counts), joined.deepstack.split(counts, 1), strict=True)
    visual = [
        VisualTokens(*(compressed(each, grid, scene.token_grid) for each in own))
        for scene, grid, own in zip(scenes, grids, of_scenes, strict=True)
    ]
    count = len(batch.scenes)
    targets = {id(scene): own.tokens.detach() for scene, own in zip(scenes[count:], visual[count:], strict=True)}
    learned = [None if each.target_views is None else targets.get(id(each.target_views)) for each in batch.scenes]
    return [
        EncodedScene(scene, own, target_tokens=None if views is None else (views, own.tokens.detach()))
        for scene, own, views in zip(batch.scenes, visual[:count], learned, strict=True)
    ]


def compressed(
    tokens: Float[Tensor, "*layers N D"], grid: Grid, token_grid: Grid
) -> Float[Tensor, "*layers steps tokens D"]:
    """Return the 2D tokens of a scene, or its DeepStack features, per temporal patch and resized to the token grid."""
    steps, rows, columns = token_grid
    if grid != token_grid:
        tokens = resize_grid(tokens.reshape(-1, *grid[1:], tokens.shape[-1]), (rows, columns)).reshape(
            *tokens.shape[:-2], steps * rows * columns, tokens.shape[-1]
        )
    return tokens.unflatten(-2, (steps, rows * columns))


# ---- 2. Geometry: 3D tokens, predicted cameras and depth ------------------------------------------------------------


class GeometryInputs(NamedTuple):
    """The inputs of a geometry encoder for one scene.

    Attributes:
        frames: Frames in 0..1, in the encoder's size. None if the scene has none.
        geometry: The dataset's geometry of these frames. None if the scene has none.
        window: The part of these frames that the vision encoder sees. None is all of it.
    """

    frames: Float[Tensor, "S 3 H W"] | None
    geometry: SceneGeometry | None
    window: Window | None


def geometry_inputs(encoder: GeometryEncoder, scene: PreparedScene, shown: slice, rules: FrameRules) -> GeometryInputs:
    """Return the inputs of a geometry encoder for a scene. The encoder may be the model's or a teacher's.

    `shown` are the frames that the encoder sees, and `rules` say how the model reads frames.

    Raises:
        InputError: A cache receives frames whose patches differ from the vision encoder's.
    """
    known = None if scene.geometry is None else scene.geometry[shown]
    if scene.frames is None:
        return GeometryInputs(None, known, scene.vision_window)
    grid = scene.grid_thw[1:]
    frames = encoder_frames(
        scene.frames[shown], rules.patch_size, encoder.patch_size, grid, any_grid=rules.whole_frames
    )
    check_grid(encoder, frames, grid)
    window = scene.vision_window or window_of_vision(frames, grid, encoder.patch_size)
    own = geometry_of_frames(known, frames, window)
    return GeometryInputs(frames, resample_depth(own, (frames.shape[-2], frames.shape[-1])), window)


def window_of_vision(frames: Float[Tensor, "S 3 H W"], grid: tuple[int, int], patch_size: int) -> Window | None:
    """Return the part of a geometry encoder's frames that the vision encoder's patches cover, see `covers`.

    `grid` has the rows and columns of the vision encoder's patches. `patch_size` is the geometry encoder's, in pixels.

    Returns:
        The window, or None if the frames have no extra row or column of patches.
    """
    height, width = frames.shape[-2:]
    rows, columns = (side * patch_size for side in grid)
    if (height, width) == (rows, columns) or not covers(grid, (height // patch_size, width // patch_size)):
        return None
    return Window(height, width, 0, 0, rows, columns)


def seen_by_vision(
    geometry: SceneGeometry, window: Window, grid: tuple[int, int], patch_size: int, *, whole_frames: bool = False
) -> SceneGeometry:
    """Crop an encoder's geometry to the part of its frames that the vision encoder sees.

    A 3D token stays with the vision encoder's patch of the same row and column, as in the published models. `window`
    and `patch_size` belong to the geometry encoder, `grid` to the vision encoder. With `whole_frames` all 3D tokens are
    kept.
    """
    cropped = window.crop(geometry, (grid[0] * patch_size, grid[1] * patch_size))
    if cropped.patches is None or whole_frames:
        return cropped
    patches = cropped.patches[:, : grid[0], : grid[1]]
    return SceneGeometry(**{**cropped.present(), "patches": patches})


def encode_geometry(
    encoder: GeometryEncoder | None,
    scenes: Sequence[PreparedScene],
    rules: FrameRules,
    *,
    tokens: bool,
    cameras: bool,
) -> list[SceneGeometry | None]:
    """Return the geometry of each scene: the encoder's if the model reads it, otherwise the dataset's.

    Args:
        encoder: The geometry encoder. None in a model without one.
        scenes: Scenes of the batch.
        rules: How the model reads frames. Where the encoder sees an image once, its output serves both equal frames.
        tokens: Whether the model reads 3D tokens.
        cameras: Whether some scene needs predicted cameras.

    Raises:
        InputError: The encoder needs frames, and a scene has none.
    """
    dataset = [scene.geometry for scene in scenes]
    if encoder is None or not (tokens or cameras):
        return dataset
    # Use geometry that data workers read from a cache, and compute the rest.
    found = {i: scene.cached_geometry for i, scene in enumerate(scenes) if scene.cached_geometry is not None}
    shown = [rules.shown_to_geometry(scene.kind) for scene in scenes]
    windows = {i: scene.vision_window for i, scene in enumerate(scenes)}
    if rest := [i for i in range(len(scenes)) if i not in found]:
        if encoder.requires_frames and any(scenes[i].frames is None for i in rest):
            name = type(encoder.meta_encoder).__name__
            raise InputError(f"{name} needs the frames of each video: give frames=[(T, 3, H, W), ...]")
        views = [geometry_inputs(encoder, scenes[i], shown[i], rules) for i in rest]
        frames, given, own_windows = (list(each) for each in zip(*views, strict=True))
        windows |= dict(zip(rest, own_windows, strict=True))
        computed = encoder(frames, given, tokens=tokens, cameras=cameras)
        check_count(encoder.meta_encoder, "scenes", computed, len(rest))
        for own, each in zip(frames, computed, strict=True):
            _check_geometry(encoder, each, None if own is None else len(own), tokens)
        found |= dict(zip(rest, computed, strict=True))
    for i, window in windows.items():
        if window is not None:
            grid = scenes[i].grid_thw[1:]
            found[i] = seen_by_vision(found[i], window, grid, encoder.patch_size, whole_frames=rules.whole_frames)
    for i, frames_of in enumerate(shown):
        if frames_of != EVERY_FRAME:
            found[i] = found[i].repeated(TEMPORAL_PATCH_SIZE)
    return [found[i] for i in range(len(scenes))]


def _check_geometry(encoder: GeometryEncoder, geometry: SceneGeometry, frames: int | None, tokens: bool) -> None:
    """Check the shapes of a scene's geometry."""
    part = encoder.meta_encoder
    if tokens and encoder.gives_latents:
        check_shape(part, "3D tokens (Q, D)", geometry.latents, None, encoder.width)
    elif tokens and encoder.width:
        check_shape(part, "3D tokens (S, h, w, D)", geometry.patches, frames, None, None, encoder.width)
    for name, what, sides in (("world_to_camera", "poses (S, 4, 4)", (4, 4)), ("K_normalized", "K (S, 3, 3)", (3, 3))):
        if (value := getattr(geometry, name)) is not None:
            check_shape(part, what, value, frames, *sides)


def override_tokens(
    geometry: Sequence[SceneGeometry | None],
    scenes: Sequence[PreparedScene],
    encoder: GeometryEncoder | None,
    rules: FrameRules,
) -> list[SceneGeometry | None]:
    """Replace the 3D tokens of scenes in a perturbed test, see `PreparedScene.geometry_override`.

    Args:
        geometry: Geometry of each scene. Scenes whose tokens are replaced have some.
        scenes: Scenes of the batch.
        encoder: The geometry encoder.
        rules: How the model reads frames.
    """
    found = list(geometry)
    for i, (own, other) in enumerate(zip(geometry, (scene.geometry_override for scene in scenes), strict=True)):
        if own is None or other is None:
            continue
        if isinstance(other, PreparedScene):
            (source,) = encode_geometry(encoder, [other], rules, tokens=True, cameras=False)
            assert source is not None
            found[i] = own.with_tokens_of(source)
        else:
            found[i] = own.with_tokens_of(own, scale=0.0)
    return found


# ---- 3. Cameras and targets -----------------------------------------------------------------------------------------


def add_cameras(
    encoded: EncodedScene, predicted: SceneGeometry | None, plan: CameraPlan, merged: MergedCamera, *, training: bool
) -> EncodedScene:
    """Add the cameras that the parts read, and the targets of objectives.

    Args:
        encoded: A scene with 2D tokens. Its scene has the dataset's cameras.
        predicted: The geometry encoder's geometry if its cameras are used, otherwise None.
        plan: What the parts read.
        merged: The camera of a token that merges two frames.
        training: Whether objectives may learn from the encoder's predictions.

    Raises:
        InputError: A part reads depth and the scene has none, or the number of cameras is wrong.
    """
    scene, pseudo_labels = encoded.scene, plan.pseudo_labels if training else ()
    geometry, cameras = scene.geometry, scene.cameras
    if predicted is not None:
        geometry = predicted
        cameras = merge_cameras(predicted, merged) if predicted.has_cameras else None
    # 1. Targets of objectives.
    if "cameras" in plan.targets:
        true = scene.cameras if scene.true_geometry is None else merge_cameras(scene.true_geometry, merged)
        is_label = predicted is not None and "cameras" in pseudo_labels
        encoded = replace(encoded, target_cameras=cameras if is_label else true)
    if "depth" in plan.targets:
        source = geometry if "depth" in pseudo_labels else scene.target_geometry
        depth = None if source is None else token_depth(source, scene.token_grid[1])
        in_unit = predicted is None or "depth" in pseudo_labels
        encoded = replace(encoded, target_depth=depth, is_target_in_camera_unit=in_unit)
    # 2. Cameras, points and depth that parts read.
    if cameras is None or not plan.uses_cameras:
        return encoded
    if (count := len(cameras.world_to_camera)) != scene.num_steps:
        raise InputError(f"{count} cameras for {scene.num_steps} temporal patches: one for each, not per frame")
    return replace(
        encoded,
        cameras=cameras,
        points=scene_points(geometry, scene.token_grid[1], merged).flatten(0, 2) if plan.uses_points else None,
        depth=known_depth(geometry) if plan.uses_median_depth else None,
        view_features=encoded.visual.tokens.mean(1) if plan.uses_view_features else None,
    )


def scene_points(
    scene: SceneGeometry | None, rows: int, merged_camera: MergedCamera = "first"
) -> Float[Tensor, "t h w 3"]:
    """Compute the 3D point of each 2D token from the depth of its first frame, NaN where unknown.

    `rows` is the number of rows of 2D tokens in a view.

    Raises:
        InputError: The scene has no depth, or `merged_camera` is not "first".
    """
    if scene is None or scene.depth is None:
        raise InputError("an encoding by 3D points needs scenes with depth, and one has none")
    if merged_camera != "first":
        raise InputError("points are those of the first frame of a temporal patch: leave --model.merged_camera first")
    poses, K, present = (each[::TEMPORAL_PATCH_SIZE] for each in scene.cameras())
    points = token_points(scene.depth[::TEMPORAL_PATCH_SIZE], poses, K, scene.depth.shape[1] // rows)
    return points.where(present[:, None, None, None], torch.nan)


def token_depth(scene: SceneGeometry, rows: int) -> Float[Tensor, "t n"] | None:
    """Compute the median depth of each 2D token over the frames that it merges, 0 where unknown.

    Returns None for a scene without depth. `rows` is the number of rows of 2D tokens in a view.
    """
    if scene.depth is None:
        return None
    return patch_depth(scene.depth, scene.depth.shape[1] // rows, TEMPORAL_PATCH_SIZE).flatten(1)


def known_depth(scene: SceneGeometry | None) -> Float[Tensor, " pixels"]:
    """Return the depth of all pixels of all frames in the unit of the poses, NaN where unknown.

    Raises:
        InputError: The scene has no depth.
    """
    if scene is None or scene.depth is None:
        raise InputError("scale: median_depth needs scenes with depth, and one has none: choose another scale")
    depth = scene.depth.flatten()
    return torch.where(depth > 0, depth, torch.nan)


# ---- 4. View mixing and fusion --------------------------------------------------------------------------------------


def fuse_scenes(
    encoded: Sequence[EncodedScene],
    geometry: Sequence[SceneGeometry | None],
    fusion: Fusion | None,
    view_mixer: ViewMixer | None,
) -> list[EncodedScene]:
    """Mix the views of each scene, and fuse its 2D and 3D tokens.

    Scenes with the same grid are fused as one long scene, because most fusions treat temporal patches independently.
    Without a fusion the 2D tokens are kept, and without a view mixer they are not mixed.
    """
    fused = list(encoded)
    if fusion is None and view_mixer is None:
        return fused
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, each in enumerate(encoded):
        patches = None if (own := geometry[i]) is None else own.patches
        alone = i if fusion is not None and fusion.mixes_views else 0
        key = (*each.scene.grid_thw, alone, *(() if patches is None else patches.shape[1:3]))
        groups.setdefault(key, []).append(i)
    for (steps, height, width, *_), members in groups.items():
        tokens = torch.cat([encoded[i].visual.tokens.flatten(0, 1) for i in members])
        scenes = [encoded[i] for i in members]
        mix: _Mixing | None = None
        if view_mixer is not None and all(scene.cameras is not None for scene in scenes):
            mix = _Mixing(view_mixer, scenes)
        if fusion is not None:
            found = [geometry[i] for i in members] if fusion.uses_geometry else []
            known = [each for each in found if each is not None]
            read = SceneGeometry.joined(known) if len(known) == len(members) else None
            long = (steps * len(members), height, width)
            joined, deep = fusion(tokens, long, read, mix), fusion.deep_features(read, long, tokens.dtype)
            in_layers = fusion.layer_tokens(read, long, scenes[0].scene.token_side, tokens.dtype)
            per_view = fusion.appended.view_tokens(*scenes[0].scene.token_grid[1:])
            check_shape(fusion, "visual tokens (t, n, D)", joined, long[0], per_view, tokens.shape[1])
        elif mix is not None:
            joined, deep, in_layers = mix(tokens).unflatten(0, (steps * len(members), -1)), None, None
        else:
            continue
        raw_depths = mix.raw_depths if mix is not None and mix.raw_depths else [None] * len(members)
        for place, (i, own_tokens, raw_depth) in enumerate(zip(members, joined.split(steps), raw_depths, strict=True)):
            features, own_steps = encoded[i].visual.deepstack, slice(place * steps, (place + 1) * steps)
            if fusion is not None:
                own_deep = None if deep is None else deep[:, own_steps]
                features = fusion.fit_deepstack(features, own_tokens.shape[1], own_deep)
            fused[i] = replace(
                encoded[i],
                visual=VisualTokens(own_tokens, features),
                layer_tokens=None if in_layers is None else in_layers[own_steps],
                raw_depth=raw_depth,
            )
    return fused


class _Mixing:
    """View mixing for scenes with the same grid, as a callable that a fusion receives.

    Args:
        view_mixer: The mixer.
        scenes: Scenes with the same grid, with cameras.

    Attributes:
        raw_depths: Depth prediction of each scene, see `ViewMixer.raw_depth`. Empty before the call, and for a mixer
            that predicts none.
    """

    def __init__(self, view_mixer: ViewMixer, scenes: Sequence[EncodedScene]) -> None:
        self.view_mixer, self.scenes = view_mixer, scenes
        self.raw_depths: Sequence[Float[Tensor, "t n ends"]] = ()

    def __call__(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        grid = self.scenes[0].scene.token_grid
        of_scenes = [scene.cameras for scene in self.scenes if scene.cameras is not None]
        poses, K, present = stack_cameras([[each] for each in of_scenes])
        cameras = add_scene_statistics(Cameras.trusted(poses, K), [[scene] for scene in self.scenes], present)
        if points := [scene.points for scene in self.scenes if scene.points is not None]:
            cameras = cameras.with_tokens(points=torch.stack(points))
        is_complete = all(each.is_complete for each in of_scenes)
        mixed = self.view_mixer(tokens, cameras=cameras, grid=grid, has_camera=None if is_complete else present)
        check_shape(self.view_mixer, "2D tokens (N, D)", mixed, *tokens.shape)
        if (raw_depth := self.view_mixer.raw_depth(tokens)) is not None:
            self.raw_depths = raw_depth.unflatten(0, (len(self.scenes), grid[0], -1)).unbind()
        return mixed


# ---- 5. Fusion within decoder layers --------------------------------------------------------------------------------


def interactions_of(fusion: Fusion, scenes: Sequence[EncodedScene], sequences: Sequences) -> Interactions | None:
    """Return what a fusion does within decoder layers to the 2D tokens of sequences. None if it does nothing.

    Groups are formed from the 2D tokens of a scene in a sequence, and need not be consecutive there: a video may be
    shown between the images of a scene.
    """
    tokens = [scene.layer_tokens.flatten(0, 1) for scene in scenes if scene.layer_tokens is not None]
    if not tokens or not any(sequences.scene_index):
        return None
    # 1. The tokens of each scene of each sequence.
    joined, sources = torch.cat(tokens), sequences.grid_sources
    order = (sequences.grid_places // sequences.input_ids.shape[1] * len(joined) + sources).argsort()
    # 2. Their groups.
    lengths: list[int] = []
    for row in sequences.scene_index:
        for scene in (scenes[i].scene for i in sorted(row)):
            count, size = scene.num_steps * scene.tokens_per_step, fusion.group_size(scene.grid_thw, scene.token_side)
            lengths += [size] * (count // size)
    # 3. Groups of one length follow each other.
    groups = sorted(Counter(lengths).items())
    if len(groups) > 1:
        starts = list(accumulate(lengths, initial=0))
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        own = [token for group in by_length for token in range(starts[group], starts[group + 1])]
        order = order[torch.tensor(own).to(order.device, non_blocking=True)]
    places = sequences.in_decoder(sequences.grid_places[order])
    return Interactions(fusion.interactions, places, joined[sources[order]], [(n, length) for length, n in groups])


# ---- 6. Cameras of whole sequences ----------------------------------------------------------------------------------


def sequence_cameras(rows: Sequence[Sequence[EncodedScene]], sequences: Sequences) -> Cameras | None:
    """Return the cameras of each sequence and the camera of each token. None if there are none.

    Raises:
        InputError: Some scenes have cameras and others do not.
    """
    if (given := sequences.cameras) is not None:
        if given.index is None and not any(rows):  # text alone
            return None
        if given.index is None:
            given = given.with_token_runs(sequences.camera_index, sequences.camera_runs)
        return add_scene_statistics(given, rows, given.used_mask())
    known = [[scene.cameras for scene in row if scene.cameras is not None] for row in rows]
    if not any(known):
        return None
    check_all_have_cameras(sum(map(len, known)), sum(map(len, rows)))
    poses, K, present = stack_cameras(known)
    index = valid_index(sequences.camera_index, present)
    return add_scene_statistics(Cameras.trusted(poses, K, index, sequences.camera_runs), rows, present)


def add_scene_statistics(
    cameras: Cameras, rows: Sequence[Sequence[EncodedScene]], has_camera: Bool[Tensor, "B C"]
) -> Cameras:
    """Add the balanced reference view and the median depth of each row to its cameras, where known.

    Both are computed over all scenes of a row, because the cameras of a row share one unit.
    """
    features = [[scene.view_features for scene in row if scene.view_features is not None] for row in rows]
    if any(features):
        cameras = cameras.with_reference(balanced_views(features, has_camera))
    depths = [[scene.depth for scene in row if scene.depth is not None] for row in rows]
    if any(depths):
        one = torch.ones(1, device=has_camera.device)
        medians = [torch.cat(own or [one]).nanmedian().double() for own in depths]
        cameras = cameras.with_median_depth(torch.stack(medians))
    return cameras
