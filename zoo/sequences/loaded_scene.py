"""A scene on its way from the dataset to the model, and what the vision encoder needs beside its patches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.cameras.scene_geometry import PatchCameras, SceneGeometry, Window
from zoo.sequences.layout import SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE, ExtraTokens, MediaKind
from zoo.values import Movable

Grid = tuple[int, int, int]  # (t, h, w) in patches before the spatial merge


class Segments(Movable):
    """Runs of patches that attend to each other alone, such as windows or frames.

    Args:
        boundaries: The first patch of each run, and the number of patches.

    Attributes:
        boundaries: The same; `cu_seqlens` of FlashAttention.
        order: The order of patches that sorts the runs by length; None if all have one length.
        shapes: Number of runs, and patches of each, for each length in this order.
        longest: Patches of the longest run.
    """

    def __init__(self, boundaries: Int[Tensor, " runs_and_one"]) -> None:
        lengths = boundaries.diff()
        sizes, counts = lengths.unique(return_counts=True)  # in ascending order, as the sort below has them
        self.boundaries = boundaries
        self.shapes: list[tuple[int, int]] = list(zip(counts.tolist(), sizes.tolist(), strict=True))
        self.longest = max((length for _, length in self.shapes), default=0)
        is_one = len(self.shapes) == 1
        self.order = None if is_one else lengths.repeat_interleave(lengths).argsort(stable=True)


class VisionInputs(Movable):
    """The keyword arguments of a stock vision encoder that follow from grids.

    Args:
        lengths: Visual tokens of each video or image.
        tensors: Tensors and `Segments` by the names that the vision encoder gives them.
        numbers: Numbers of the host, likewise.
    """

    def __init__(self, lengths: list[int], tensors: dict[str, Tensor | Segments], numbers: dict[str, int]) -> None:
        self.lengths, self.names, self.numbers = lengths, tuple(tensors), numbers
        self.values = list(tensors.values())

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments, in a new dict: the vision encoder takes them out of it."""
        return {**dict(zip(self.names, self.values, strict=True)), **self.numbers}


class VisionRules(ABC):
    """What a vision encoder computes from the sizes of its inputs alone."""

    @abstractmethod
    def inputs(self, grids: Sequence[Grid]) -> VisionInputs:
        """Return the encoder's inputs beside the patches, on the CPU.

        Args:
            grids: (t, h, w) in patches of each video or image.
        """


# ---- What a frozen teacher says of the views of a scene, for objectives that learn from it --------------------------

TeacherTarget = Literal["tokens", "pose_enc", "depth", "meters_per_unit"]


class TeacherTargets(NamedTuple):
    """What a teacher says of the first frame of each of t temporal patches; None for what it does not predict.

    Attributes:
        tokens: Of each of its layers.
        pose_enc: VGGT's pose encodings (translation, quaternion, fields of view) in the encoder's world: of VGGT
            and the dataset the frame of the first view.
        has_camera: The views with a valid camera.
        depth: Of each pixel, 0 where unknown.
        meters_per_unit: Of its lengths.
    """

    tokens: tuple[Float[Tensor, "t h w C"], ...] = ()
    pose_enc: Float[Tensor, "t 9"] | None = None
    has_camera: Bool[Tensor, " t"] | None = None
    depth: Float[Tensor, "t H W"] | None = None
    meters_per_unit: Float[Tensor, ""] | None = None


# ---- The scene ------------------------------------------------------------------------------------------------------


class FrameLabels(NamedTuple):
    """Text around each frame of a video that is shown as an image.

    Attributes:
        first: Number of the first frame.
        end: What follows an image.
    """

    first: int
    end: str

    def before(self, number: int) -> str:
        """Return what stands before the image of this number, from 0."""
        return f"Frame-{self.first + number}: "


class OptimizerStep(NamedTuple):
    """All batches whose gradients make one step of the optimizer.

    Attributes:
        num_answers: Answers that it learns from, over all processes and accumulated batches, if all can be read.
        num_batches: Batches over which gradients are averaged: processes times `accumulate_grad_batches`, also in a
            shorter last step.
        skips_failed: Whether it leaves out what can't be read, which else ends the training.
    """

    num_answers: int
    num_batches: int
    skips_failed: bool = False


@dataclass(frozen=True, eq=False)
class LoadedScene(Movable):
    """One scene, a video or a group of images: read by the dataset, prepared by `Collate`, encoded by the model.

    The dataset reads frames, cameras and depth. Augmentations and perturbations change these. `Collate` then cuts the
    patches of the vision encoder, merges the cameras of each two frames and drops what the model does not read. What
    the host reads are Python values, so that no step waits for a GPU to know them.

    Attributes:
        name: "<dataset>/<scene_name>".
        questions: Those to ask; the model does not read them.
        frames: Bytes, or floats in 0..1, two per temporal patch. As read, in the vision encoder's size. As prepared, in
            the size of the geometry encoder, for models whose geometry encoder reads frames.
        geometry_frames: As read, the same frames in the geometry encoder's own size, where it sees others.
        vision_window: What of the geometry encoder's frames the vision encoder sees; None is everything, but for a row
            or column of patches that frames in the geometry encoder's own size have beyond the vision encoder's.
        pixel_values: As prepared, the patches as the backbone's processor cuts them, temporal patch after temporal
            patch: bytes, or normalized.
        grid_thw: As prepared, (t, h, w) in patches before the spatial merge; an image is one temporal patch.
        kind: "video" or "image".
        is_one_medium: The images are frames of a video, shown together where the prompt has the video.
        labels: Text around these.
        frame_indices: The raw frames of the video.
        frame_times: Seconds of each frame; None for images, or if unknown.
        seconds_per_grid: Seconds between two temporal patches; None takes the time index's nominal value.
        geometry: The dataset's cameras and depth of each frame.
        cached_geometry: What data workers have read of the geometry encoder's outputs, in place of frames; None asks
            the encoder.
        cameras: As prepared, the dataset's camera of each temporal patch, merged from its frames; None without.
        geometry_override: Another scene whose 3D tokens it gets, or "nothing" for zeros, in a perturbed test.
        has_true_cameras: False in a test with the cameras of another scene, which no prediction is compared with.
        question_types: In training, of all questions about it that the optimizer step learns from, also in other
            batches, for objectives that depend on them.
        is_supervised: Whether its answers are learned from.
        step: The optimizer step that it is read for; None in an evaluation.
        draw: Seed of what a training step draws about it: of the data's seed, the scene and the epoch.
        error: Why the scene can't be read; None if it can.
        target_error: Why the depth that the model only learns to predict can't be read: answers do without.
    """

    name: str = ""
    questions: tuple[Any, ...] = ()
    # what the encoders see
    frames: Shaped[Tensor, "S 3 _H _W"] | None = None
    geometry_frames: Shaped[Tensor, "S 3 _h _w"] | None = None
    vision_window: Window | None = None
    pixel_values: Shaped[Tensor, "patches channels"] | None = None
    grid_thw: Grid = (0, 0, 0)
    # how the prompt shows it, and when
    kind: MediaKind = "video"
    is_one_medium: bool = False
    labels: FrameLabels | None = None
    frame_indices: Sequence[int] | None = None
    frame_times: Sequence[float] | None = None
    seconds_per_grid: float | None = None
    # cameras, depth, 3D tokens
    geometry: SceneGeometry | None = None
    cached_geometry: SceneGeometry | None = None
    cameras: PatchCameras | None = None
    geometry_override: LoadedScene | Literal["nothing"] | None = None
    has_true_cameras: bool = True
    # training
    question_types: Sequence[str] = ()
    is_supervised: bool = True
    step: OptimizerStep | None = None
    draw: int = 0
    # faults
    error: str | None = None
    target_error: str | None = None

    @property
    def seen_by_geometry(self) -> Shaped[Tensor, "S 3 _H _W"]:
        """The frames of a scene that could be read, as the geometry encoder sees them."""
        frames = self.frames if self.geometry_frames is None else self.geometry_frames
        assert frames is not None
        return frames

    @property
    def num_images(self) -> int:
        """Images that the frames show, two frames each; 0 for a video."""
        return len(self.frame_indices or ()) // TEMPORAL_PATCH_SIZE if self.kind == "image" else 0

    @property
    def num_steps(self) -> int:
        """Temporal patches."""
        return self.grid_thw[0]

    @property
    def token_grid(self) -> Grid:
        """Temporal patches, and rows and columns of 2D tokens in each."""
        steps, height, width = self.grid_thw
        return steps, height // SPATIAL_MERGE_SIZE, width // SPATIAL_MERGE_SIZE

    @property
    def tokens_per_step(self) -> int:
        """2D tokens of a temporal patch."""
        _, rows, columns = self.token_grid
        return rows * columns

    def num_tokens(self, extra_tokens: ExtraTokens) -> int:
        """Visual tokens, extra tokens included."""
        per_step = self.tokens_per_step + extra_tokens.count(self.tokens_per_step)
        return self.num_steps * per_step + (extra_tokens.at_end if self.kind == "video" else 0)

    @property
    def media_grids(self) -> list[Grid]:
        """(t, h, w) of each medium in the prompt: one video, or each image."""
        steps, height, width = self.grid_thw
        return [self.grid_thw] if self.kind == "video" else [(1, height, width)] * steps
