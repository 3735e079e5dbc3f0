"""A scene with its frames and geometry, as the dataset reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from datamodules.scenes import Question, Scene, num_answers
from zoo.cameras import SceneGeometry
from zoo.cameras.window import Window
from zoo.sequences.sequence_layout import MediaKind

FramesAs = Literal["video", "image", "labeled_image", "indexed_image"]


class FrameLabels(NamedTuple):
    """Text around each frame that is shown as an image.

    Attributes:
        first: Number of the first frame.
        end: What follows an image.
    """

    first: int
    end: str

    def before(self, number: int) -> str:
        """Return what stands before the image of this number, from 0."""
        return f"Frame-{self.first + number}: "


LABELS = {"labeled_image": FrameLabels(1, "\n"), "indexed_image": FrameLabels(0, "")}  # the latter is VG-LLM's


@dataclass
class LoadedScene:
    """A scene with its frames and geometry, or with the error of reading them.

    Attributes:
        scene: The scene.
        questions: The questions to ask.
        question_types: See `SceneInputs`, as for `draw`.
        frames: The selected and resized frames.
        geometry_frames: The same as the geometry encoder sees them, where it sees others, see `StillResize`.
        tower_window: See `SceneInputs`.
        frame_indices: Their indices among the video's raw frames.
        seconds_per_grid: Real seconds between two temporal patches.
        frame_times: Real seconds of each frame; None for images, or if unknown.
        geometry: Cameras and depth of the frames; None if the scene has none.
        error: Why the scene can't be read; None if it can.
        target_error: Why the depth that the model only learns to predict can't be read: answers do without.
        is_supervised: Whether its answers are learned from.
        geometry_override: See `SceneInputs`, as for `has_true_cameras`.
        num_images: Still images that the frames show, two frames each; 0 for a video.
        labels: Of the images, if they have some.
    """

    scene: Scene
    questions: tuple[Question, ...]
    frames: UInt8[Tensor, "T 3 H W"] | None = None
    frame_indices: tuple[int, ...] = ()
    seconds_per_grid: float = 1.0
    geometry: SceneGeometry | None = None
    error: str | None = None
    target_error: str | None = None
    is_supervised: bool = True
    geometry_override: LoadedScene | Literal["nothing"] | None = None
    frame_times: tuple[float, ...] | None = None
    num_images: int = 0
    labels: FrameLabels | None = None
    has_true_cameras: bool = True
    draw: int = 0
    question_types: tuple[str, ...] = ()
    geometry_frames: UInt8[Tensor, "T 3 _H _W"] | None = None
    tower_window: Window | None = None

    @property
    def kind(self) -> MediaKind:
        """Whether its frames are a video or still images."""
        return "image" if self.num_images else "video"

    @property
    def seen_by_geometry(self) -> UInt8[Tensor, "T 3 _H _W"]:
        """The frames of a scene that could be read, as the geometry encoder sees them."""
        assert self.frames is not None
        return self.frames if self.geometry_frames is None else self.geometry_frames

    @property
    def num_answers(self) -> int:
        """Answers that are learned from."""
        return int(num_answers(self.questions).sum()) if self.is_supervised else 0
