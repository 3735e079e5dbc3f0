"""What a model needs from the data, in one value that the DataModule reads and data workers hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zoo.backbones.base import Preprocessor
from zoo.benchmarks import Benchmark, VSIBench
from zoo.cameras.scene_geometry import MergedCamera
from zoo.encodings.base import CameraEncoding, ViewMixer, no_sections
from zoo.errors import InputError
from zoo.fusions.base import Fusion
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.cache import GeometryReader
from zoo.sequences.layout import ExtraTokens, Placeholders
from zoo.sequences.loaded_scene import FrameRules, PreparedScene, VisionRules
from zoo.sequences.position_ids import TextAfterVision
from zoo.sequences.target_views import TargetViews
from zoo.sequences.time_index import BackboneIndex, ConstantIndex, Seconds, TimeIndex, TimestampIndex

CameraSource = Literal["dataset", "predicted", "auto"]
Target = Literal["cameras", "depth"]  # targets of objectives


@dataclass(frozen=True)
class ModelSpec:
    """Everything that a model needs from the data. Picklable, without weights.

    `SpatialVLM.model_spec` and `Task.model_spec` create it, for training or evaluation, and the DataModule reads it
    once for each. The defaults describe a model that reads scenes without questions.

    Attributes:
        preprocessor: Turns frames and chats into patches and tokens. None for a model without questions.
        frames: How the frames of a scene are read.
        requires_frames: A geometry encoder reads RGB frames in the size that the backbone sees.
        requires_posed_frames: An objective reads each frame with its own camera in every answer. Frames are kept where
            the geometry comes from a cache, and a frame without a pose is an error.
        requires_frame_times: The prompt states the time of each video frame. A video without times is an error.
        seconds: Which seconds per temporal patch a time index uses, see `TimestampIndex`.
        vision: The vision encoder's inputs that depend on sizes alone.
        requires_cameras: The model needs the dataset's pose and intrinsics of each frame. A scene without them is an
            error.
        requires_depth: The model needs the dataset's depth map of each frame. A scene without it is an error.
        reads_depth: The dataset's depth is loaded for scenes that have it.
        merged_camera: The camera of a token that merges two frames.
        uses_cameras: Some part reads cameras.
        may_predict_cameras: A scene without cameras in the dataset gets predicted cameras.
        only_predicted_cameras: All scenes get predicted cameras, whether or not the dataset has cameras.
        geometry_reader: Reads cached geometry. None if nothing is cached.
        arbitrary_unit: Name of the geometry encoder if the model reads lengths from it in a unit that differs per
            scene. Such a model can't answer in meters. None if it reads no such lengths.
        targets: What objectives learn to predict. It is loaded for each scene that has it.
        target_views: Frames beside the shown ones whose content objectives predict. None if no objective does.
        required_targets: Targets that at least one training scene must have. Pseudo-labels are not among them.
        has_posed_labels: Pseudo-labels depend on the dataset's poses, as the model is told them.
        placeholders: Token ids that mark visual tokens.
        extra_tokens: The tokens after the 2D tokens of each row and view, and after the last view of a video.
        time_index: The time component of the position ids.
        tokens_per_second: Positions per second.
        text_after_vision: The position of the text after a video, see `SpatialVLM`.
        context_length: Maximum number of tokens of a sequence.
        packs_questions: Several questions may share a sequence.
        is_hybrid: Some layers keep a recurrent state, see `Backbone`.
        asks_in_training: Training batches contain prompts, as in a test, instead of answers.
        question_types: Question types that the model's settings name. The benchmark must have them.
        typed_questions: At least one training question must have a type of its benchmark.
        least_batch_size: Minimum number of sequences of a training batch.
    """

    # frames
    preprocessor: Preprocessor | None = None
    frames: FrameRules = FrameRules()
    requires_frames: bool = False
    requires_posed_frames: bool = False
    requires_frame_times: bool = False
    seconds: Seconds = "nominal"
    vision: VisionRules | None = None
    # cameras, depth, geometry features
    requires_cameras: bool = False
    requires_depth: bool = False
    reads_depth: bool = False
    merged_camera: MergedCamera = "first"
    uses_cameras: bool = False
    may_predict_cameras: bool = False
    only_predicted_cameras: bool = False
    geometry_reader: GeometryReader | None = None
    arbitrary_unit: str | None = None
    targets: tuple[Target, ...] = ()
    target_views: TargetViews | None = None
    required_targets: tuple[Target, ...] = ()
    has_posed_labels: bool = False
    # sequences
    placeholders: Placeholders = Placeholders(-1, -1, -1)
    extra_tokens: ExtraTokens = ExtraTokens.NONE
    time_index: TimeIndex = TimestampIndex()
    tokens_per_second: int | float = 2
    text_after_vision: TextAfterVision = "max_thw"
    context_length: int = 0
    packs_questions: bool = False
    is_hybrid: bool = False
    # questions
    asks_in_training: bool = False
    question_types: tuple[str, ...] = ()
    typed_questions: bool = False
    least_batch_size: int = 1

    def check_cameras(self, scene: PreparedScene) -> None:
        """Raise an InputError if a prepared scene lacks cameras that the model requires."""
        if self.requires_cameras and scene.cameras is None:
            raise InputError("no cameras, and this model needs them: give the scene a cameras.json")
        posed = None if scene.geometry is None else scene.geometry.has_camera
        if self.requires_posed_frames and posed is not None and not posed.all():
            frames = scene.frame_indices or range(len(posed))
            raise InputError(
                f"frame {frames[int(posed.int().argmin())]} has no pose, and --model.objectives reads the pose of each "
                "shown frame: take a sampler that selects by poses"
            )

    def check_scene_packing(self) -> None:
        """Check that several scenes may share a sequence.

        Raises:
            InputError: Some layers ignore masks, or the attention does not accept a mask of several scenes.
        """
        if self.is_hybrid:
            raise InputError(
                "--data.pack_scenes: Gated DeltaNet layers (Qwen3.5) carry their state from one scene into the next, "
                "whatever the mask: leave it out"
            )
        if not self.packs_questions:
            raise InputError(
                "--data.pack_scenes: this attention takes no mask of several scenes, choose "
                "--model.backbone.attn_implementation flex_attention on a GPU, or sdpa"
            )


@dataclass(frozen=True)
class DataSettings:
    """What the DataModule tells the task about the run's data. The task never sees the DataModule itself.

    Attributes:
        config: The DataModule's options without the source. `SpatialVLM.answer` uses them to read videos after
            training.
        benchmark: Phrases and scores the questions.
        tokens_per_sequence: Maximum number of tokens in a training sequence. None is unlimited.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    benchmark: Benchmark = field(default_factory=VSIBench)
    tokens_per_sequence: int | None = None


# ---- Sources of cameras and depth -----------------------------------------------------------------------------------

PSEUDO_LABELS: dict[CameraSource, tuple[Target, ...]] = {  # targets that the geometry encoder may provide in training
    "dataset": (),
    "auto": ("cameras",),
    "predicted": ("cameras", "depth"),
}


def possible_labels(source: CameraSource, targets: Sequence[Target]) -> tuple[Target, ...]:
    """Return the targets of objectives that a geometry encoder may provide in training."""
    return tuple(target for target in targets if target in PSEUDO_LABELS[source])


def asks_encoder(source: CameraSource, targets: Sequence[Target], *, uses_cameras: bool) -> bool:
    """Return whether a geometry encoder is needed for cameras or depth."""
    wanted = uses_cameras or bool(possible_labels(source, targets))
    return source == "predicted" or (source == "auto" and wanted)


@dataclass(frozen=True)
class CameraPlan:
    """Which cameras and depth the parts of a model read, and whether the geometry encoder predicts them.

    Attributes:
        source: The option `--model.camera_source`.
        uses_cameras: Poses affect the 2D tokens, the decoder's attention, or its positions.
        targets: What objectives learn to predict.
        uses_lengths: Some part depends on the unit of lengths.
        uses_points: An encoding uses the 3D points of tokens.
        uses_median_depth: Lengths are divided by the median depth.
        uses_view_features: The reference view is chosen by the 2D tokens.
        encoder_predicts: The model has a geometry encoder that predicts cameras.
    """

    source: CameraSource
    uses_cameras: bool
    targets: tuple[Target, ...] = ()
    uses_lengths: bool = False
    uses_points: bool = False
    uses_median_depth: bool = False
    uses_view_features: bool = False
    encoder_predicts: bool = False

    @classmethod
    def of(
        cls,
        source: CameraSource,
        targets: tuple[Target, ...],
        parts: Sequence[CameraEncoding | ViewMixer | None],
        time_index: TimeIndex,
        geometry: GeometryEncoder | None,
    ) -> CameraPlan:
        """Combine the needs of all parts that read cameras."""
        present = [part for part in parts if part is not None]
        return cls(
            source,
            uses_cameras=bool(present) or time_index.requires_cameras,
            targets=targets,
            uses_lengths=any(not part.symmetries.scale for part in present) or time_index.uses_lengths,
            uses_points=any(part.uses_points for part in present),
            uses_median_depth=any(part.uses_median_depth for part in present),
            uses_view_features=any(part.uses_balanced_reference for part in present),
            encoder_predicts=geometry is not None and geometry.predicts_cameras,
        )

    @property
    def uses_depth(self) -> bool:
        """Whether some part reads depth in the unit of the cameras."""
        return self.uses_points or self.uses_median_depth

    @property
    def asks_encoder(self) -> bool:
        """See `asks_encoder`."""
        return asks_encoder(self.source, self.targets, uses_cameras=self.uses_cameras)

    @property
    def predicts_cameras(self) -> bool:
        """Whether the encoder predicts the cameras of some scenes.

        `auto` never predicts cameras for parts that read depth, because it has no depth in their unit.
        """
        is_asked = self.source == "predicted" or (self.source == "auto" and not self.uses_depth)
        return self.uses_cameras and is_asked and self.encoder_predicts

    @property
    def pseudo_labels(self) -> tuple[Target, ...]:
        """The targets that the encoder predicts in training."""
        asks = self.asks_encoder and self.encoder_predicts
        return possible_labels(self.source, self.targets) if asks else ()

    @property
    def predicts_depth(self) -> bool:
        """Whether the encoder must predict depth, in the unit of its cameras."""
        return self.source == "predicted" and (self.uses_depth or "depth" in self.targets)

    def needs_prediction(self, scene: PreparedScene, *, training: bool) -> bool:
        """Return whether a scene gets the geometry encoder's cameras."""
        may_need = self.predicts_cameras or (bool(self.pseudo_labels) and training)
        return may_need and (self.source == "predicted" or scene.cameras is None)


def choose_time_index(encoding: CameraEncoding | None, given: TimeIndex | None, default: TimeIndex) -> TimeIndex:
    """Return the encoding's own time index, the given one, or the backbone's default.

    Raises:
        InputError: Both are set, or the encoding needs a constant time and the chosen index is not constant, or the
            backbone's positions have one axis and a time is set.
    """
    own = None if encoding is None else encoding.time_index
    if default.is_sequential:
        if encoding is not None and (own or encoding.requires_constant_time):
            raise InputError(no_sections(encoding))
        if given is not None and not (given.is_sequential or isinstance(given, BackboneIndex)):
            raise InputError(
                f"--model.time_index {type(given).__name__}: this backbone's positions have one axis, without a time: "
                "leave it out"
            )
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


def check_tokens(fusion: Fusion, geometry: GeometryEncoder) -> None:
    """Raise InputError if a fusion reads other 3D tokens than the encoder gives: of frames, or of the whole scene."""
    if fusion.reads_latents != geometry.gives_latents:
        kinds = ("patches of the frames", "latents of the whole scene")
        raise InputError(
            f"--model.fusion {type(fusion).__name__} reads {kinds[fusion.reads_latents]}, and --model.geometry "
            f"{type(geometry.meta_encoder).__name__} gives {kinds[geometry.gives_latents]}: choose another of the two"
        )


def check_geometry(
    geometry: GeometryEncoder | None, source: CameraSource, *, uses_cameras: bool, uses_tokens: bool
) -> None:
    """Raise an InputError if the parts need something that the geometry encoder lacks."""
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
