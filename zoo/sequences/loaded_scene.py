"""A vision tower's inputs beside the patches, computed from their grids on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from zoo.cameras.scene_geometry import PatchCameras, SceneGeometry, Window
from zoo.sequences.layout import SPATIAL_MERGE_SIZE, ExtraTokens, MediaKind
from zoo.values import Movable


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
    """The keyword arguments of a stock vision tower that follow from grids.

    Args:
        lengths: Visual tokens of each video or still image.
        tensors: Tensors and `Segments` by the names that the tower gives them.
        numbers: Numbers of the host, likewise.
    """

    def __init__(self, lengths: list[int], tensors: dict[str, Tensor | Segments], numbers: dict[str, int]) -> None:
        self.lengths, self.names, self.numbers = lengths, tuple(tensors), numbers
        self.values = list(tensors.values())

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments, in a new dict: a tower takes them out of it."""
        return {**dict(zip(self.names, self.values, strict=True)), **self.numbers}


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


# ---- The model's inputs of one scene --------------------------------------------------------------------------------

Grid = tuple[int, int, int]  # (t, h, w) in patches before the spatial merge


class SceneInputs(Movable):
    """One scene: one video, or all still images of a sequence.

    What the host reads are numbers, so that no step waits for a GPU to know them.

    Args:
        pixel_values: Patches as the backbone's processor cuts them, temporal patch after temporal patch: bytes, or
            normalized.
        grid_thw: (t, h, w) in patches before the spatial merge; each still image is one temporal patch.
        kind: "video" or "image".
        frames: RGB frames, two per temporal patch, in 0..1 or as bytes; for models that require frames. In the vision
            tower's size, or in the geometry encoder's own (`encoder_frames`).
        tower_window: What of the geometry encoder's frames the tower sees; None is everything, but for a row or column
            of patches that frames in the encoder's own size have beyond the tower's.
        geometry: The dataset's cameras and depth for each frame.
        cached_geometry: What data workers have read of the geometry encoder's outputs, in place of frames; None asks
            the encoder.
        cameras: The dataset's camera of each temporal patch, merged from those of its frames; None without.
        frame_indices: The raw video frames shown, for a time index that requires frames.
        seconds_per_grid: Seconds per temporal patch; None takes the time index's nominal value.
        geometry_override: Another scene whose 3D tokens it gets, or "nothing" for zeros, in a perturbed test.
        question_types: In training, of all questions about it that the optimizer step learns from, also in other
            batches, for objectives that depend on them.
        has_true_cameras: False in a test with the cameras of another scene, which no prediction is compared with.
        teacher: What objectives learn from, in training; see `zoo.objectives.teacher_model`.
        draw: Seed of what a training step draws about it: of the data's seed, the scene and the epoch.
    """

    def __init__(
        self,
        pixel_values: Shaped[Tensor, "patches channels"],
        grid_thw: Sequence[int] | Tensor,
        *,
        kind: MediaKind = "video",
        frames: Shaped[Tensor, "S 3 H W"] | None = None,
        tower_window: Window | None = None,
        geometry: SceneGeometry | None = None,
        cached_geometry: SceneGeometry | None = None,
        cameras: PatchCameras | None = None,
        frame_indices: Sequence[int] | None = None,
        seconds_per_grid: float | None = None,
        geometry_override: SceneInputs | Literal["nothing"] | None = None,
        question_types: Sequence[str] = (),
        has_true_cameras: bool = True,
        draw: int = 0,
        teacher: TeacherTargets | None = None,
    ) -> None:
        steps, height, width = (int(side) for side in grid_thw)
        self.grid_thw: Grid = (steps, height, width)
        self.pixel_values, self.kind, self.frames, self.tower_window = pixel_values, kind, frames, tower_window
        self.geometry, self.cached_geometry, self.cameras = geometry, cached_geometry, cameras
        self.frame_indices, self.seconds_per_grid = frame_indices, seconds_per_grid
        self.geometry_override, self.question_types = geometry_override, question_types
        self.has_true_cameras, self.draw, self.teacher = has_true_cameras, draw, teacher

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
        """(t, h, w) of each medium in the prompt: one video, or each still image."""
        steps, height, width = self.grid_thw
        return [self.grid_thw] if self.kind == "video" else [(1, height, width)] * steps
