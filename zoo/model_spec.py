"""Whose cameras and depth the parts of a model get: the dataset's, or those of its geometry encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from zoo.encodings.base import CameraEncoding, ViewMixer
from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder
from zoo.sequences.layout import IMAGE_PIXELS
from zoo.sequences.time_index import BackboneIndex, ConstantIndex, Seconds, TimeIndex, TimestampIndex

if TYPE_CHECKING:
    from zoo.model import AssembledModel

CameraSource = Literal["dataset", "predicted", "auto"]
Target = Literal["cameras", "depth"]  # what an objective learns to predict
PSEUDO_LABELS: dict[CameraSource, tuple[Target, ...]] = {  # those that the geometry encoder may provide in training
    "dataset": (),
    "auto": ("cameras",),
    "predicted": ("cameras", "depth"),
}


@dataclass(frozen=True)
class CameraPlan:
    """Whose cameras and depth the parts of a model get; tests have its truth table.

    Attributes:
        source: The option `--model.camera_source`.
        uses_cameras: Whether an encoding, the view mixer or the time index reads cameras.
        uses_depth: Whether one of them reads depth in the unit of the cameras.
        targets: What objectives learn to predict.
        encoder_predicts: Whether there is a geometry encoder that predicts cameras.
    """

    source: CameraSource
    uses_cameras: bool
    targets: tuple[Target, ...] = ()
    uses_depth: bool = False
    encoder_predicts: bool = False

    @property
    def asks_encoder(self) -> bool:
        """Whether a geometry encoder is needed for cameras or depth."""
        wanted = self.uses_cameras or bool(self._possible_labels)
        return self.source == "predicted" or (self.source == "auto" and wanted)

    @property
    def predicts_cameras(self) -> bool:
        """Whether the cameras of some scenes come from the encoder; `auto` has no depth in the unit of these."""
        is_asked = self.source == "predicted" or (self.source == "auto" and not self.uses_depth)
        return self.uses_cameras and is_asked and self.encoder_predicts

    @property
    def pseudo_labels(self) -> tuple[Target, ...]:
        """The targets that the encoder predicts, in training."""
        return self._possible_labels if self.asks_encoder and self.encoder_predicts else ()

    @property
    def predicts_depth(self) -> bool:
        """Whether the encoder has to predict depth, in the unit of its cameras."""
        return self.source == "predicted" and (self.uses_depth or "depth" in self.targets)

    @property
    def _possible_labels(self) -> tuple[Target, ...]:
        return tuple(target for target in self.targets if target in PSEUDO_LABELS[self.source])


# ---- Requirements of a model on the data, computed from its parts ---------------------------------------------------


@dataclass(frozen=True)
class CameraUse:
    """What the camera parts of a model read.

    Attributes:
        cameras: Poses reach the 2D tokens, the decoder's attention, or its positions.
        lengths: With their unit, to which a part is not invariant.
        points: The 3D points of tokens reach an encoding.
        median_depth: Lengths are divided by the median depth.
        balanced_reference: The reference view is chosen by the 2D tokens.
    """

    cameras: bool
    lengths: bool
    points: bool
    median_depth: bool
    balanced_reference: bool

    @classmethod
    def of(cls, parts: Sequence[CameraEncoding | ViewMixer | None], time_index: TimeIndex) -> CameraUse:
        """Combine the parts that read cameras."""
        present = [part for part in parts if part is not None]
        return cls(
            cameras=bool(present) or time_index.requires_cameras,
            lengths=any(not part.symmetries.scale for part in present) or time_index.uses_lengths,
            points=any(part.uses_points for part in present),
            median_depth=any(part.uses_median_depth for part in present),
            balanced_reference=any(part.uses_balanced_reference for part in present),
        )

    @property
    def depth(self) -> bool:
        """Whether depth in the unit of the cameras is used."""
        return self.points or self.median_depth


@dataclass(frozen=True)
class DataRequirements:
    """Inputs beside the backbone's pixels and the questions.

    Attributes:
        cameras: The dataset's pose and intrinsics for each frame; a scene without is an error.
        depth: The dataset's depth map for each frame; a scene without is an error.
        frames: RGB frames in the size that the backbone sees, for a geometry encoder.
        own_frames: The geometry encoder may see other frames than the backbone, in patches of its own size.
        seconds: Whose seconds per temporal patch a time index uses, see `TimestampIndex`.
        frame_times: The time of each frame of a video, for a prompt that states them; a video without is an error.
        token_px: Side of a visual token in pixels; the sides of resized frames are multiples of it.
        image_pixels: Least and most pixels of a still image, those of the model's own processor.
        targets: What objectives learn to predict: it is read of the scenes that have it.
        required_targets: Those of them that some scene of the training split must have: all but pseudo-labels.
        question_types: Those that the model's settings name, which the benchmark must have.
        typed_questions: Some question of the training split must have a type of its benchmark.
        arbitrary_unit: The geometry encoder whose lengths, in a unit of each scene's own, the model reads, so that it
            can't answer in meters; None if it reads no such lengths.
    """

    cameras: bool = False
    depth: bool = False
    frames: bool = False
    own_frames: bool = False
    seconds: Seconds = "nominal"
    frame_times: bool = False
    token_px: int = 28
    image_pixels: tuple[int, int] = IMAGE_PIXELS
    targets: tuple[Target, ...] = ()
    required_targets: tuple[Target, ...] = ()
    question_types: tuple[str, ...] = ()
    typed_questions: bool = False
    arbitrary_unit: str | None = None

    @classmethod
    def of(cls, model: AssembledModel) -> DataRequirements:
        """Combine what the parts of a model read."""
        geometry, objectives, use = model.geometry, model.objectives, model.camera_use
        plan = model.camera_plan
        # 1. What the geometry encoder shows the decoder, and what objectives learn from it.
        fused = geometry if model.uses_geometry_tokens else None
        encoder = geometry if plan.predicts_cameras else fused
        shown = geometry if plan.pseudo_labels else encoder  # the frames, in training at least
        # 2. Lengths in a unit of its own.
        lengths = (plan.predicts_cameras and use.lengths) or objectives.uses_lengths_of(plan.pseudo_labels)
        has_own_unit = bool(lengths and geometry and not geometry.is_metric)
        has_own_unit = has_own_unit or bool(fused and not fused.has_metric_tokens)
        # 3. What is learned from the dataset.
        required_targets = {target for target in objectives.targets if target not in plan.pseudo_labels}
        if plan.pseudo_labels and geometry is not None and geometry.requires_cameras:
            required_targets.add("cameras")
        return cls(
            cameras=(use.cameras and not plan.predicts_cameras) or bool(encoder and encoder.requires_cameras),
            depth=(use.depth and plan.source != "predicted") or bool(fused and fused.requires_depth),
            frames=bool(shown and shown.requires_frames),
            own_frames=bool(shown and not shown.meta_encoder.takes_tower_patches),
            seconds=model.time_index.seconds,
            frame_times=model.backbone.span_per_step,
            token_px=model.backbone.patch_size * model.backbone.spatial_merge_size,
            image_pixels=model.backbone.image_pixels,
            targets=objectives.targets,
            required_targets=tuple(sorted(required_targets)),
            question_types=objectives.question_types,
            arbitrary_unit=model.geometry_name if has_own_unit else None,
        )


def choose_time_index(encoding: CameraEncoding | None, given: TimeIndex | None, default: TimeIndex) -> TimeIndex:
    """The encoding's own time index, the given one, or the backbone's default.

    Raises:
        InputError: Both are set, or the encoding needs a constant time and the index is not.
    """
    own = None if encoding is None else encoding.time_index
    if own is not None and given is not None:
        raise InputError(f"{type(encoding).__name__} sets the time index itself: leave --model.time_index out")
    if isinstance(given, BackboneIndex):
        counts_seconds = isinstance(default, TimestampIndex)
        given = TimestampIndex(given.seconds_per_grid, given.seconds) if counts_seconds else default
        if own is not None or (encoding is not None and encoding.requires_constant_time):
            given = None if own is not None else ConstantIndex()
    chosen = own or given or default
    if encoding is not None and encoding.requires_constant_time and not chosen.constant:
        raise InputError(
            f"{type(encoding).__name__} acts on mRoPE's T section, where {type(chosen).__name__} would mix time with "
            "the camera: set --model.time_index ConstantIndex"
        )
    return chosen


def check_geometry(
    geometry: GeometryEncoder | None, source: CameraSource, *, uses_cameras: bool, uses_tokens: bool
) -> None:
    """Raise an InputError if the parts ask the geometry encoder for more than it has."""
    if source == "predicted" and not (uses_cameras and geometry and geometry.predicts_cameras):
        raise InputError(
            "--model.camera_source predicted needs a --model.geometry that predicts cameras, such as PretrainedVGGT, "
            "and a part that reads them: --model.camera_encoding, --model.view_mixer, or one of --model.objectives"
        )
    scale = None if geometry is None else geometry.scale_from
    if scale is not None and (source == "dataset" or not uses_cameras):
        raise InputError(
            "--model.geometry.scale_from is for predicted cameras: set --model.camera_source predicted in a model that "
            "reads cameras, or leave it out"
        )
    if scale is not None and source == "auto" and scale.requires_cameras:
        raise InputError(
            f"--model.geometry.scale_from {type(scale).__name__} needs cameras, where --model.camera_source auto "
            "predicts none: set predicted, or take MetricModel"
        )
    if uses_tokens and not (geometry and geometry.width):
        raise InputError("--model.fusion needs 3D tokens: name their encoder with --model.geometry")
