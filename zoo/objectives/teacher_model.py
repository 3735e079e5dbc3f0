"""A teacher: a frozen geometry encoder that objectives learn from in training. It is not part of the model.

`Teacher` computes the targets of a batch, which are passed to `SpatialVLM.forward`. `zoo.objectives.teacher` has the
objectives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from zoo.cameras.poses import intrinsics_in_pixels
from zoo.cameras.scene_geometry import SceneGeometry, Window
from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder, ScaleSource, resample_frames
from zoo.geometry.cache import CachedGeometry, GeometryCache
from zoo.geometry.vggt import cameras_to_pose_encoding
from zoo.model_spec import ModelSpec
from zoo.objectives.base import BaseTeacher, Objective
from zoo.objectives.teacher import TeacherObjective
from zoo.precision import full_precision
from zoo.scene_encoding import geometry_inputs, seen_by_vision, window_of_vision
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import FrameRules, PreparedScene, TeacherTargets


class Teacher(BaseTeacher):
    """A geometry encoder whose tokens, cameras, depth and scale are targets of objectives.

    It is built when a training starts. An evaluation neither builds nor downloads it, and an export does not name it.
    Its settings are in config.yaml and in checkpoints. Lengths stay in its own unit, which `scale` measures.

    Args:
        encoder: Builds the geometry encoder. If it has several `layers`, each is a separate target.
        cache: Stores the encoder's outputs on disk. null computes them each time.
        scale: Builds the source that converts its lengths to meters, for `MetricScale`. With null only a metric encoder
            has a known scale. A scene whose scale can't be determined is left out with a warning.
        token_channels: Share of the tokens' channels that is learned. 0.5 uses only VGGT's frame attention. A negative
            share takes the last channels: -0.5 takes Depth Anything 3's blocks without their local half.
        shuffled: Exchange the targets between a batch's scenes, as a control from which nothing about a scene can be
            learned. A scene has no targets if no other scene of the batch has the same size and number of views.

    Raises:
        InputError: The share is 0, or not in -1 to 1.
    """

    def __init__(
        self,
        encoder: Callable[[], GeometryEncoder],
        cache: GeometryCache | None = None,
        scale: Callable[[], ScaleSource] | None = None,
        token_channels: float = 1.0,
        shuffled: bool = False,
    ) -> None:
        if not 0 < abs(token_channels) <= 1:
            problem = "must be in (0, 1], or in [-1, 0) for the last channels"
            raise InputError(f"--model.teacher.token_channels {token_channels}: {problem}")
        self._build, self._cache, self._build_scale = encoder, cache, scale
        self.token_channels, self.shuffled = token_channels, shuffled
        self._device = torch.device("cpu")

    @cached_property
    def outline(self) -> GeometryEncoder:
        """The encoder on the meta device, without weights."""
        with torch.device("meta"):
            return self._build()

    @cached_property
    def encoder(self) -> GeometryEncoder:
        """The encoder itself, frozen, on the device of the last call."""
        made: GeometryEncoder
        if self._cache is None:
            made = self._build()
        else:
            reads_confidence = self.scale is not None and self.scale.requires_depth
            made = CachedGeometry(self._build, self._cache, reads_confidence)
        self.enable_heads(made)
        return made.requires_grad_(False).eval()

    @property
    def wanted(self) -> dict[str, bool]:
        """The encoder outputs that the targets need, by the names of its call's arguments."""
        cameras = bool(self.targets & {"pose_enc", "depth"}) or self.scale is not None
        return {"tokens": "tokens" in self.targets and bool(self.outline.width), "cameras": cameras}

    def enable_heads(self, encoder: GeometryEncoder) -> None:
        """Enable the heads of an encoder that the targets need."""
        if encoder.predicts_cameras and self.wanted["cameras"]:
            encoder.enable_head("camera")
        if encoder.predicts_depth and ("depth" in self.targets or (self.scale and self.scale.requires_depth)):
            encoder.enable_head("depth")

    @cached_property
    def scale(self) -> ScaleSource | None:
        """The source that measures the unit of its lengths. None if no objective learns the unit."""
        build = self._build_scale if "meters_per_unit" in self.targets else None
        return None if build is None else build()

    @property
    def given(self) -> set[str]:
        outline = self.outline
        found = {
            "tokens": outline.width > 0,
            "pose_enc": outline.predicts_cameras or outline.requires_cameras,
            "depth": outline.predicts_depth or outline.requires_depth,
            "meters_per_unit": self._build_scale is not None or outline.is_metric,
        }
        return {name for name, is_given in found.items() if is_given}

    @property
    def sources(self) -> dict[str, tuple[str, tuple[Path, ...]]]:
        parts: dict[str, GeometryEncoder | ScaleSource | None] = {
            "teacher": self.outline,
            "unit of the teacher": self.outline.scale_from,
            "scale of the teacher": self.scale,
        }
        return {name: (part.path, part.files) for name, part in parts.items() if part is not None and part.path}

    @property
    def least_batch_size(self) -> int:
        """Minimum number of scenes in a batch. `shuffled` needs two to exchange their targets."""
        return 2 if self.shuffled else 1

    def match_layers(self, objectives: Iterable[Objective]) -> None:
        for objective in objectives:
            if isinstance(objective, TeacherObjective):
                objective.match_teacher(self.outline.taught_as)

    def added_to(self, spec: ModelSpec) -> ModelSpec:
        outline, scale = self.outline, self.scale
        cameras = outline.requires_cameras or (scale is not None and scale.requires_cameras)
        return replace(
            spec,
            requires_frames=True,
            requires_cameras=spec.requires_cameras or cameras,
            requires_depth=spec.requires_depth or outline.requires_depth,
            reads_depth=spec.reads_depth or outline.reads_depth,
            geometry_reader=None,  # with a teacher the frames are always loaded, because the teacher needs them
            least_batch_size=max(spec.least_batch_size, self.least_batch_size),
        )

    @torch.no_grad()
    def __call__(self, scenes: Sequence[PreparedScene], patch_size: int) -> list[TeacherTargets | None]:
        """Compute the targets of scenes. `shuffled` may leave some without targets (None).

        Args:
            scenes: Scenes with frames, on the model's device.
            patch_size: Patch size of the vision encoder.

        Raises:
            InputError: A scene has no frames, or the patches of its frames do not match the vision encoder's.
        """
        if any(scene.frames is None for scene in scenes):
            raise InputError("--model.teacher needs the frames of each video")
        assert scenes[0].frames is not None
        encoder, device = self.encoder, scenes[0].frames.device
        encoder.match_patches(patch_size)
        if device != self._device:
            encoder.to(device)
            self._device = device
        with full_precision(device):  # also in a mixed-precision step
            targets = self._compute(scenes, patch_size)
        return _exchanged(targets) if self.shuffled else list(targets)

    def _compute(self, scenes: Sequence[PreparedScene], patch_size: int) -> list[TeacherTargets]:
        encoder, every_patch = self.encoder, slice(None, None, TEMPORAL_PATCH_SIZE)
        frames, given, windows = [], [], []
        for scene in scenes:
            told_truly = replace(scene, geometry=scene.target_geometry)
            view = geometry_inputs(encoder, told_truly, every_patch, FrameRules(patch_size))
            assert view.frames is not None
            covered = window_of_vision(view.frames, scene.grid_thw[1:], encoder.patch_size)
            if self.wanted["tokens"] and scene.vision_window not in (None, covered):
                raise InputError(
                    "--model.objectives: Distillation learns tokens of what the vision encoder sees, and of --data."
                    "still_resize FixedWidthStills an encoder with patches of another size sees less than the teacher: "
                    "leave one of them out"
                )
            frames.append(view.frames)
            given.append(view.geometry)
            windows.append(view.window)
        found = encoder(frames, given, **self.wanted)
        return [self._targets(*each) for each in zip(scenes, found, frames, given, windows, strict=True)]

    def _targets(
        self,
        scene: PreparedScene,
        found: SceneGeometry,
        frames: Tensor,
        given: SceneGeometry | None,
        window: Window | None,
    ) -> TeacherTargets:
        # 1. Scale, from everything that the encoder sees. A cache takes frames in the vision encoder's size.
        patch_size = self.encoder.meta_encoder.patch_size
        frames = resample_frames(frames, self.encoder.patch_size, patch_size)
        scale = self._meters_per_unit(found, frames, given)
        # 2. Crop to the part that the vision encoder sees.
        height, width = frames.shape[-2:]
        if window is not None:
            grid = scene.grid_thw[1:]
            found = seen_by_vision(found, window, grid, patch_size)
            height, width = (side * patch_size for side in grid)
        tokens: tuple[Tensor, ...] = ()
        if found.patches is not None:
            layers = found.patches.chunk(self.encoder.num_layers, -1)
            tokens = tuple(self._share(layer) for layer in layers)
        pose_enc = has_camera = None
        if found.has_cameras:
            poses, K, has_camera = found.cameras()
            pose_enc = cameras_to_pose_encoding(poses, intrinsics_in_pixels(K, width, height), (height, width)).float()
        return TeacherTargets(tokens, pose_enc, has_camera, found.depth, None if scale is None else scale.to(frames))

    def _meters_per_unit(self, found: SceneGeometry, frames: Tensor, given: SceneGeometry | None) -> Tensor | None:
        """Measure the unit of its lengths. None if no objective learns it, or if it can't be determined."""
        if "meters_per_unit" not in self.targets:
            return None
        if self.scale is None:
            return torch.ones(()) if self.encoder.is_metric else None
        try:
            return torch.as_tensor(self.scale.meters_per_unit(found, frames, given), dtype=torch.float32)
        except InputError as error:  # only this scene is left out
            warnings.warn(f"MetricScale leaves a scene out: {error}", stacklevel=2)
            return None

    def _share(self, layer: Tensor) -> Tensor:
        channels = max(1, round(abs(self.token_channels) * layer.shape[-1]))
        return layer[..., :channels] if self.token_channels > 0 else layer[..., -channels:]


def _exchanged(targets: list[TeacherTargets]) -> list[TeacherTargets | None]:
    """Give each scene the targets of the next scene with the same shapes. None if there is no other."""
    alike: dict[tuple[torch.Size, ...], list[int]] = {}
    for number, each in enumerate(targets):
        values = (*each.tokens, *each[1:])
        alike.setdefault(tuple(value.shape for value in values if value is not None), []).append(number)
    exchanged: list[TeacherTargets | None] = [None] * len(targets)
    for group in alike.values():
        for number, other in zip(group, group[1:] + group[:1], strict=True):
            exchanged[number] = targets[other] if other != number else None
    return exchanged
