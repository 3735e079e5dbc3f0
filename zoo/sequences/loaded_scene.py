"""A scene as the dataset reads it and as the model does, and the vision encoder's inputs besides patches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.cameras.scene_geometry import PatchCameras, SceneGeometry, Window
from zoo.errors import InputError
from zoo.sequences.layout import IMAGE_PIXELS, SPATIAL_MERGE_SIZE, TEMPORAL_PATCH_SIZE, ExtraTokens, MediaKind
from zoo.values import Movable

Grid = tuple[int, int, int]  # (t, h, w) in patches before spatial merging
EVERY_FRAME = slice(None)


class Segments(Movable):
    """Runs of patches that attend only to each other, such as windows or frames.

    Args:
        boundaries: The first patch of each run, and the total number of patches.

    Attributes:
        boundaries: The same, as `cu_seqlens` of FlashAttention.
        order: Order of patches that sorts the runs by length. None if all runs have the same length.
        shapes: Number of runs and patches per run, for each length in this order.
        longest: Number of patches of the longest run.
    """

    def __init__(self, boundaries: Int[Tensor, " runs_and_one"]) -> None:
        lengths = boundaries.diff()
        sizes, counts = lengths.unique(return_counts=True)  # ascending, as in the sort below
        self.boundaries = boundaries
        self.shapes: list[tuple[int, int]] = list(zip(counts.tolist(), sizes.tolist(), strict=True))
        self.longest = max((length for _, length in self.shapes), default=0)
        is_one = len(self.shapes) == 1
        self.order = None if is_one else lengths.repeat_interleave(lengths).argsort(stable=True)


class VisionInputs(Movable):
    """Keyword arguments of an original vision encoder that depend only on grids.

    Args:
        lengths: Number of visual tokens of each video or image.
        tensors: Tensors and `Segments` by the vision encoder's argument names.
        numbers: Python numbers by the vision encoder's argument names.
    """

    def __init__(self, lengths: list[int], tensors: dict[str, Tensor | Segments], numbers: dict[str, int]) -> None:
        self.lengths, self.names, self.numbers = lengths, tuple(tensors), numbers
        self.values = list(tensors.values())

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments in a new dict, because the vision encoder removes them from it."""
        return {**dict(zip(self.names, self.values, strict=True)), **self.numbers}


class VisionRules(ABC):
    """Computes a vision encoder's inputs that depend only on sizes."""

    @abstractmethod
    def inputs(self, grids: Sequence[Grid]) -> VisionInputs:
        """Return the encoder's inputs besides the patches, on the CPU."""


@dataclass(frozen=True)
class FrameRules:
    """How a model reads the frames of a scene: its backbone, its fusion and its geometry encoder decide together.

    Attributes:
        patch_size: Side of a patch of the vision encoder in pixels.
        image_pixels: See `Backbone`.
        compress_beyond: See `Fusion`.
        stills_once: The geometry encoder sees an image once instead of as two equal frames.
        whole_frames: See `Fusion`.
        own_frames: The geometry encoder may see other frames than the backbone, in patches of its own size.
    """

    patch_size: int = 14
    image_pixels: tuple[int, int] | None = IMAGE_PIXELS
    compress_beyond: int | None = None
    stills_once: bool = False
    whole_frames: bool = False
    own_frames: bool = False

    @property
    def token_px(self) -> int:
        """Side of a visual token in pixels. The sides of resized frames are multiples of it."""
        return self.patch_size * SPATIAL_MERGE_SIZE

    def token_side(self, grid_thw: Grid) -> int:
        """Return the patches per side in a visual token of a scene: twice as many where tokens are compressed.

        Raises:
            InputError: The views are too small to be compressed.
        """
        steps, *sides = grid_thw
        if self.compress_beyond is None or steps <= self.compress_beyond:
            return SPATIAL_MERGE_SIZE
        if min(sides) < (side := 2 * SPATIAL_MERGE_SIZE):
            raise InputError(
                f"--model.fusion.compress_beyond {self.compress_beyond}: views of {sides[0]} x {sides[1]} patches are "
                f"too small, {side} x {side} make a token: show larger frames or fewer views, or set it to null"
            )
        return side

    def shown_to_geometry(self, kind: MediaKind) -> slice:
        """Return the frames of a scene that the geometry encoder sees."""
        return slice(None, None, TEMPORAL_PATCH_SIZE) if self.stills_once and kind == "image" else EVERY_FRAME


# ---- A frozen teacher's outputs for the views of a scene, for objectives that learn from them -----------------------

TeacherTarget = Literal["tokens", "pose_enc", "depth", "meters_per_unit"]


class TeacherTargets(NamedTuple):
    """A teacher's outputs for the first frame of each of t temporal patches. None for what it does not predict.

    Attributes:
        tokens: Tokens of each of its layers.
        pose_enc: VGGT's pose encodings (translation, quaternion, fields of view) in the encoder's world. For VGGT and
            the dataset this is the frame of the first view.
        has_camera: The views with a valid camera.
        depth: Depth of each pixel, 0 where unknown.
        meters_per_unit: Meters per unit of its lengths.
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
        end: Text after an image.
    """

    first: int
    end: str

    def before(self, number: int) -> str:
        """Return the text before the image of this number, from 0."""
        return f"Frame-{self.first + number}: "


class OptimizerStep(NamedTuple):
    """All batches whose gradients form one step of the optimizer.

    Attributes:
        num_answers: Number of answers that the step learns from, over all processes and accumulated batches, if all can
            be read.
        num_batches: Number of batches over which gradients are averaged: processes times `accumulate_grad_batches`,
            even in a shorter last step.
        skips_failed: Whether the step leaves out scenes that can't be read. Otherwise they end the training.
    """

    num_answers: int
    num_batches: int
    skips_failed: bool = False


@dataclass(frozen=True, eq=False)
class LoadedScene(Movable):
    """One scene, a video or a group of images, as the dataset reads it.

    Augmentations and perturbations change it. `Collate` then makes a `PreparedScene`.

    Attributes:
        name: "<dataset>/<scene_name>".
        questions: Questions to ask.
        frames: Bytes, or floats in 0..1, two frames per temporal patch, in the vision encoder's size.
        geometry_frames: The same frames in the geometry encoder's own size, if it differs.
        vision_window: The part of the geometry encoder's frames that the vision encoder sees. None is all of them,
            except for a row or column of patches by which frames in the geometry encoder's own size may exceed the
            vision encoder's.
        kind: "video" or "image".
        is_one_medium: The images are frames of a video and are shown together where the prompt has the video.
        labels: Text around these frames.
        frame_indices: Indices of the raw video frames.
        frame_times: Time of each frame in seconds. None for images, or if unknown.
        seconds_per_grid: Seconds between two temporal patches. None if unknown.
        geometry: The dataset's cameras and depth of each frame, as the model is told them.
        true_geometry: The same with the true cameras, if the model is told others. None if `geometry` is true.
        geometry_override: In a perturbed test, another scene that provides the 3D tokens, or "nothing" for zeros.
        target_views: Frames beside the shown ones, each twice, whose content objectives predict. They have the size of
            `frames` and true cameras. None without any.
        question_types: In training, the types of all questions about the scene in the optimizer step, including other
            batches, for objectives that depend on them.
        is_supervised: Whether the scene's answers are learned from.
        step: The optimizer step for which the scene is read. None in an evaluation.
        draw: Seed of a training step's random draws for this scene, from the data's seed, the scene and the epoch.
        error: Why the scene can't be read. None if it can.
        target_error: Why the depth or the target views can't be read. Answers do not need them.
    """

    name: str = ""
    questions: tuple[Any, ...] = ()
    frames: Shaped[Tensor, "S 3 _H _W"] | None = None
    geometry_frames: Shaped[Tensor, "S 3 _h _w"] | None = None
    vision_window: Window | None = None
    # presentation in the prompt, and time
    kind: MediaKind = "video"
    is_one_medium: bool = False
    labels: FrameLabels | None = None
    frame_indices: Sequence[int] | None = None
    frame_times: Sequence[float] | None = None
    seconds_per_grid: float | None = None
    # cameras, depth, 3D tokens
    geometry: SceneGeometry | None = None
    true_geometry: SceneGeometry | None = None
    geometry_override: LoadedScene | Literal["nothing"] | None = None
    # training
    target_views: LoadedScene | None = None
    question_types: Sequence[str] = ()
    is_supervised: bool = True
    step: OptimizerStep | None = None
    draw: int = 0
    # faults
    error: str | None = None
    target_error: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether the questions are plain text, without a video or images."""
        return self.frames is None and self.error is None

    @property
    def target_geometry(self) -> SceneGeometry | None:
        """The dataset's geometry with the true cameras. Whatever is learned, or compared with predictions, is its."""
        return self.geometry if self.true_geometry is None else self.true_geometry

    def change_geometry(self, change: Callable[[SceneGeometry], SceneGeometry]) -> LoadedScene:
        """Change what the model is told and what is true alike, for instance to the geometry of other frames."""
        both = {"geometry": self.geometry, "true_geometry": self.true_geometry}
        changed: dict[str, Any] = {name: change(each) for name, each in both.items() if each is not None}
        return replace(self, **changed)

    @property
    def seen_by_geometry(self) -> Shaped[Tensor, "S 3 _H _W"]:
        """The frames that the geometry encoder sees, of a scene that could be read."""
        frames = self.frames if self.geometry_frames is None else self.geometry_frames
        assert frames is not None
        return frames

    @property
    def num_images(self) -> int:
        """Number of images that the frames show, two frames each. 0 for a video."""
        return len(self.frame_indices or ()) // TEMPORAL_PATCH_SIZE if self.kind == "image" else 0


NESTED = frozenset({"geometry_override", "target_views"})  # scenes within a scene, which are prepared as well


@dataclass(frozen=True, eq=False)
class PreparedScene(Movable):
    """One scene as the model reads it. `Collate.prepare` makes it from a `LoadedScene`.

    Values that the host needs are Python values, so that no step waits for a GPU to read them.

    Attributes:
        name: As in `LoadedScene`, like the other attributes that are not described here.
        pixel_values: The patches cut by the backbone's processor, ordered by temporal patch. Bytes or normalized.
        grid_thw: (t, h, w) in patches before spatial merging. An image is one temporal patch.
        token_side: Patches per side in a visual token, see `FrameRules.token_side`.
        frames: The frames that the geometry encoder sees, for models whose geometry encoder reads frames.
        vision_window: See `LoadedScene`.
        kind: See `LoadedScene`.
        frame_indices: See `LoadedScene`.
        seconds_per_grid: Seconds between two temporal patches. None uses the time index's nominal value.
        geometry: See `LoadedScene`.
        true_geometry: See `LoadedScene`.
        cached_geometry: Outputs of the geometry encoder that data workers read from a cache, instead of frames. None
            runs the encoder.
        cameras: The dataset's camera of each temporal patch, merged from its frames. None without cameras.
        geometry_override: In a perturbed test, another scene that provides the 3D tokens, or "nothing" for zeros.
        target_views: The target views as images of their own, without a prompt. Their `frames` are followed by the
            first frame of each temporal patch of this scene. None without any.
        question_types: See `LoadedScene`.
        draw: See `LoadedScene`.
    """

    name: str = ""
    # inputs of the encoders
    pixel_values: Shaped[Tensor, "patches channels"] | None = None
    grid_thw: Grid = (0, 0, 0)
    token_side: int = SPATIAL_MERGE_SIZE
    frames: Shaped[Tensor, "S 3 _H _W"] | None = None
    vision_window: Window | None = None
    # presentation in the prompt, and time
    kind: MediaKind = "video"
    frame_indices: Sequence[int] | None = None
    seconds_per_grid: float | None = None
    # cameras, depth, 3D tokens
    geometry: SceneGeometry | None = None
    true_geometry: SceneGeometry | None = None
    cached_geometry: SceneGeometry | None = None
    cameras: PatchCameras | None = None
    geometry_override: PreparedScene | Literal["nothing"] | None = None
    # training
    target_views: PreparedScene | None = None
    question_types: Sequence[str] = ()
    draw: int = 0

    @classmethod
    def of(cls, loaded: LoadedScene, **own: Any) -> PreparedScene:
        """Return a prepared scene with what it has in common with the scene as read, and with values of its own."""
        common = {each.name for each in fields(cls)} & {each.name for each in fields(loaded)} - NESTED
        return cls(**{**{name: getattr(loaded, name) for name in common}, **own})

    @property
    def target_geometry(self) -> SceneGeometry | None:
        """See `LoadedScene`."""
        return self.geometry if self.true_geometry is None else self.true_geometry

    @property
    def num_steps(self) -> int:
        """Number of temporal patches."""
        return self.grid_thw[0]

    @property
    def token_grid(self) -> Grid:
        """Number of temporal patches, and rows and columns of 2D tokens in each."""
        steps, height, width = self.grid_thw
        return steps, height // self.token_side, width // self.token_side

    @property
    def tokens_per_step(self) -> int:
        """Number of 2D tokens of a temporal patch."""
        _, rows, columns = self.token_grid
        return rows * columns

    def num_tokens(self, extra_tokens: ExtraTokens) -> int:
        """Return the number of visual tokens, extra tokens included."""
        steps, rows, columns = self.token_grid
        return steps * extra_tokens.view_tokens(rows, columns) + (extra_tokens.at_end if self.kind == "video" else 0)

    @property
    def vision_grids(self) -> list[Grid]:
        """(t, h, w) of each medium, which is one video or each image, in patches of the vision encoder."""
        return self._of_each_medium(self.grid_thw)

    @property
    def media_grids(self) -> list[Grid]:
        """(t, h, w) of each medium in the prompt, in patches of which 2 x 2 make a visual token."""
        return self._of_each_medium(prompt_grid(self.grid_thw, self.token_side))

    def _of_each_medium(self, grid: Grid) -> list[Grid]:
        steps, height, width = grid
        return [grid] if self.kind == "video" else [(1, height, width)] * steps


def read_by_vision(scenes: Sequence[PreparedScene]) -> list[PreparedScene]:
    """Return what the vision encoder reads in one call: the scenes, then their target views."""
    views = [scene.target_views for scene in scenes if scene.target_views is not None]
    return [*scenes, *(each for each in views if each.pixel_values is not None)]


def prompt_grid(grid: Grid, token_side: int) -> Grid:
    """Return the grid of patches that makes as many visual tokens by 2 x 2 as `grid` by `token_side` x `token_side`."""
    steps, height, width = grid
    return steps, height // token_side * SPATIAL_MERGE_SIZE, width // token_side * SPATIAL_MERGE_SIZE
