"""A frozen geometry encoder that objectives learn from: in training only, and no part of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from zoo.cameras.intrinsics import intrinsics_in_pixels
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.cameras.teacher_targets import TeacherTargets
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder, encoder_frames
from zoo.geometry.cache import GeometryCache
from zoo.geometry.cached import CachedGeometry
from zoo.geometry.scale import ScaleSource
from zoo.geometry.vggt.pose_encoding import cameras_to_pose_encoding
from zoo.precision import full_precision
from zoo.sequences.scene_inputs import SceneInputs
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE
from zoo.weights.deferred import load_deferred


class Teacher(Configurable):
    """A geometry encoder whose tokens, cameras, depth and scale are targets of objectives.

    It is built when a training starts. An evaluation neither builds nor downloads it, and a saved model does not name
    it. Lengths stay in its own unit; `scale` measures that.

    Args:
        encoder: Builds the geometry encoder; with several `layers`, each is a target of its own.
        cache: Keeps its outputs on disk; null computes them each time.
        scale: Builds what measures how its lengths become meters, for `MetricScale`; null knows no scale but that of a
            metric encoder.
        token_channels: The share of its tokens' channels that is learned: 0.5 takes VGGT's frame attention alone.
        shuffled: Exchange the targets of a batch's scenes, or those of a single scene's views: a control, from which
            nothing of a scene can be learned.

    Raises:
        InputError: A share outside of 0 to 1.
    """

    def __init__(
        self,
        encoder: Callable[[], GeometryEncoder],
        cache: GeometryCache | None = None,
        scale: Callable[[], ScaleSource] | None = None,
        token_channels: float = 1.0,
        shuffled: bool = False,
    ) -> None:
        if not 0 < token_channels <= 1:
            raise InputError(f"--model.teacher.token_channels {token_channels}: a share above 0, up to 1")
        self._build, self._cache, self._build_scale = encoder, cache, scale
        self.token_channels, self.shuffled = token_channels, shuffled
        self._device = torch.device("cpu")

    @cached_property
    def outline(self) -> GeometryEncoder:
        """The encoder without weights."""
        with torch.device("meta"):
            return self._build()

    @cached_property
    def encoder(self) -> GeometryEncoder:
        """The encoder itself, frozen, on the device of the last call."""
        made = load_deferred(self._build()) if self._cache is None else CachedGeometry(self._build, self._cache)
        for head in ("camera", "depth"):
            if getattr(made, {"camera": "predicts_cameras", "depth": "predicts_depth"}[head]):
                made.enable_head(head)  # type: ignore[arg-type]
        return made.requires_grad_(False).eval()

    @cached_property
    def scale(self) -> ScaleSource | None:
        """What measures the unit of its lengths."""
        return None if self._build_scale is None else self._build_scale()

    @torch.no_grad()
    def __call__(self, scenes: Sequence[SceneInputs], patch_size: int) -> list[TeacherTargets]:
        """Compute the targets of scenes.

        Args:
            scenes: With frames, on the device of the model.
            patch_size: Of the vision tower.

        Raises:
            InputError: A scene without frames.
        """
        encoder = self.encoder
        frames, given = [], []
        for scene in scenes:
            if scene.frames is None:
                raise InputError("--model.teacher needs the frames of each video")
            encoder.match_patches(patch_size)
            shown = scene.frames[::TEMPORAL_PATCH_SIZE]
            frames.append(encoder_frames(shown, patch_size, encoder.patch_size))
            given.append(None if scene.geometry is None else scene.geometry[slice(None, None, TEMPORAL_PATCH_SIZE)])
        if frames[0].device != self._device:
            encoder.to(frames[0].device)
            self._device = frames[0].device
        with full_precision(self._device):
            found = encoder(frames, given, tokens=bool(encoder.width), cameras=True)
            targets = [self._targets(*each) for each in zip(found, frames, given, strict=True)]
        return _exchanged(targets) if self.shuffled else targets

    def _targets(self, found: SceneGeometry, frames: Tensor, given: SceneGeometry | None) -> TeacherTargets:
        tokens: tuple[Tensor, ...] = ()
        if found.patches is not None:
            layers = found.patches.chunk(self.encoder.num_layers, -1)
            tokens = tuple(layer[..., : max(1, round(self.token_channels * layer.shape[-1]))] for layer in layers)
        pose_enc = has_camera = None
        height, width = frames.shape[-2:]
        if found.has_cameras:
            poses, K, has_camera = found.cameras()
            pose_enc = cameras_to_pose_encoding(poses, intrinsics_in_pixels(K, width, height), (height, width)).float()
        scale = None
        if self.scale is not None:
            scale = torch.as_tensor(self.scale.meters_per_unit(found, frames, given), dtype=torch.float32)
        elif self.encoder.is_metric:
            scale = torch.ones(())
        return TeacherTargets(tokens, pose_enc, has_camera, found.depth, None if scale is None else scale.to(frames))


def _exchanged(targets: list[TeacherTargets]) -> list[TeacherTargets]:
    """Give each scene the targets of the next one of its size, or those of its own views in another order."""
    sizes = [None if each.depth is None else each.depth.shape for each in targets]
    if len(targets) > 1 and len(set(sizes)) == 1:
        return targets[1:] + targets[:1]

    def rolled(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.roll(len(value) // 2, 0)

    return [
        each._replace(
            tokens=tuple(layer.roll(len(layer) // 2, 0) for layer in each.tokens),
            pose_enc=rolled(each.pose_enc),
            has_camera=rolled(each.has_camera),
            depth=rolled(each.depth),
        )
        for each in targets
    ]
