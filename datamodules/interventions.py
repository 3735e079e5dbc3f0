"""Interventions: variants of a scene that differ in one thing, which must change the answer by a known amount.

    python main.py measure-responses runs/PRoPEMLLM-20261125-012048 --interventions+ ScaledLengths

The slope of a model's answer on what changes is its *response*: 1 if the model uses the thing fully, 0 if it ignores
it. `commands.measure_responses` measures it. A score can't show this, because a rule that lacks the thing may reach the
same score.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from datamodules.augmentations import with_poses
from datamodules.perturbations import ScaledCameras
from datamodules.scenes import Scene
from datamodules.sources import PanelRooms
from datamodules.sources.base import SceneSource, Split
from zoo.benchmarks import Benchmark
from zoo.cameras.poses import invert_se3, rigid_matrix, so3_exp
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.sequences.loaded_scene import LoadedScene

# `answer`: slope of the answer on the true answer. `exponent`: slope of its logarithm on the logarithm of a factor.
# `change`: nothing is to change, and only the size of the change is measured.
Measure = Literal["answer", "exponent", "change"]
Told = Literal["images", "cameras", "lengths"]


class Variant(NamedTuple):
    """One variant of a scene.

    Attributes:
        scene: What the model reads.
        value: What the answer is compared with: the true answer, or the logarithm of the factor.
        truth: The true answer of this variant, if it is known.
    """

    scene: LoadedScene
    value: float
    truth: float | None = None


class Origin(NamedTuple):
    """Where a scene comes from.

    Attributes:
        source: The dataset.
        split: The split.
        scene: The scene.
        read: Reads another scene as the model's data are read.
        answers: Smallest and largest answer to the dataset's questions. Beyond them a model that chooses among the
            answers of its training can't follow.
    """

    source: SceneSource
    split: Split
    scene: Scene
    read: Callable[[Scene], LoadedScene]
    answers: tuple[float, float] = (-math.inf, math.inf)

    @property
    def number(self) -> int:
        """The number of a rendered scene in its split."""
        return int(self.scene.name.rpartition("_")[2])


class Intervention(Configurable, ABC):
    """Change one thing in a scene, in several steps. Subclasses set the attributes and define `variants`.

    Attributes:
        measure: What the response is.
        told: What the model is told differently.
        num_variants: Number of variants of a scene if all count.
    """

    measure: ClassVar[Measure]
    told: ClassVar[Told]
    num_variants: int

    @abstractmethod
    def variants(self, origin: Origin, loaded: LoadedScene) -> list[Variant]:
        """Return the variants of a scene that count, in the order of the change.

        Args:
            origin: Where the scene comes from.
            loaded: The scene as it is, without an error.
        """

    @abstractmethod
    def expected(self, benchmark: Benchmark, question_type: str) -> float | None:
        """Return the response of a model that uses the thing fully. None if the type has no declared one."""

    def check(self, source: SceneSource, scenes: Sequence[Scene]) -> None:
        """Raise an InputError if the data does not permit this intervention."""
        if all(scene.cameras is None and scene.depth is None for scene in scenes):
            raise InputError(
                f"{type(self).__name__}: no scene of {type(source).__name__} has cameras or depth to change: put "
                "<scene>.cameras.json beside the videos, or take another dataset"
            )


# ---- Lengths, on any data with cameras or depth ----------------------------------------------------------------------


class ScaledLengths(Intervention):
    """Multiply all lengths that a model is told by a factor: translations of the cameras, depth and points.

    The frames stay. The logarithm of a model's answer should follow that of the factor with the exponent of the
    question: 1 for lengths, 2 for areas, 0 for counts and angles. Familiar things in the frames have a size of their
    own, so a sound model may lie between 0 and this exponent.

    Args:
        least: Smallest factor.
        most: Largest factor.
        variants: Number of factors, at even steps of the logarithm.

    Raises:
        InputError: The factors are no positive range, or there are fewer than two.
    """

    measure = "exponent"
    told = "lengths"

    def __init__(self, least: float = 0.8, most: float = 1.25, variants: int = 7) -> None:
        if not 0 < least < most or variants < 2:
            raise InputError(
                f"{type(self).__name__}: {variants} factors from {least} to {most}; at least 2, and 0 < least < most"
            )
        self.factors, self.num_variants = np.geomspace(least, most, variants).tolist(), variants

    def variants(self, origin: Origin, loaded: LoadedScene) -> list[Variant]:
        """Return the scene with each factor. Empty for a scene that tells no lengths."""
        if loaded.geometry is None:
            return []
        return [Variant(self.scaled(loaded, factor), math.log(factor)) for factor in self.factors]

    def scaled(self, loaded: LoadedScene, factor: float) -> LoadedScene:
        """Return the scene with one factor."""
        assert loaded.geometry is not None
        return replace(loaded, geometry=loaded.geometry.scaled(factor), true_geometry=loaded.target_geometry)

    def expected(self, benchmark: Benchmark, question_type: str) -> float | None:
        """Return the exponent that the benchmark declares."""
        return benchmark.exponents.get(question_type)


class ScaledTranslations(ScaledLengths):
    """Multiply the translations of the cameras alone, see `ScaledCameras`. Depth and points keep their unit.

    Where depth is told as well, cameras and depth then contradict each other. The response shows which of them a model
    follows.
    """

    def scaled(self, loaded: LoadedScene, factor: float) -> LoadedScene:
        """Return the scene with one factor."""
        return ScaledCameras(factor)(loaded, lambda: loaded)


# ---- Nuisances: nothing is to change ---------------------------------------------------------------------------------


class OtherWorlds(Intervention):
    """State the same cameras and points in other world frames, each with a random rotation and translation.

    Args:
        variants: Number of world frames.
        meters: Standard deviation of the translation on each axis.
    """

    measure = "change"
    told = "cameras"

    def __init__(self, variants: int = 4, meters: float = 3.0) -> None:
        self.num_variants, self.meters = variants + 1, meters

    def variants(self, origin: Origin, loaded: LoadedScene) -> list[Variant]:
        """Return the scene as it is, and in each world frame."""
        if loaded.geometry is None or loaded.geometry.world_to_camera is None:
            return []
        draws = torch.Generator().manual_seed(random.Random(loaded.name).getrandbits(32))
        axes, moves = torch.randn(2, self.num_variants - 1, 3, dtype=torch.float64, generator=draws)
        worlds = rigid_matrix(so3_exp(2 * axes), self.meters * moves)
        moved = [replace(loaded, geometry=in_world(loaded.geometry, world)) for world in worlds]
        return [Variant(each, 0.0) for each in (loaded, *moved)]

    def expected(self, benchmark: Benchmark, question_type: str) -> float | None:
        """Return 0: the answer stays."""
        return 0.0


def in_world(geometry: SceneGeometry, new_from_old: Float64[Tensor, "4 4"]) -> SceneGeometry:
    """Return the geometry in another world frame. Frames without a camera keep their identity."""
    changed, (poses, _, has_camera) = copy(geometry), geometry.cameras()
    moved = (poses.double() @ invert_se3(new_from_old)).to(poses.dtype)
    changed.world_to_camera = moved.where(has_camera[:, None, None], poses)
    if geometry.points is not None:
        turned = geometry.points.double() @ new_from_old[:3, :3].mT + new_from_old[:3, 3]
        changed.points = turned.to(geometry.points.dtype)
    return changed


# ---- Rendered rooms with a panel: the true answer of each variant is known -------------------------------------------


class PanelIntervention(Intervention):
    """An intervention on the rooms of `PanelRooms`."""

    measure: ClassVar[Measure] = "answer"

    def expected(self, benchmark: Benchmark, question_type: str) -> float | None:
        """Return 1: the answer follows the true answer."""
        return 1.0

    def check(self, source: SceneSource, scenes: Sequence[Scene]) -> None:
        """See `Intervention`."""
        if not isinstance(source, PanelRooms):
            raise InputError(
                f"{type(self).__name__}: only the rooms of PanelRooms know the true answers of its variants, not "
                f"{type(source).__name__}: take ScaledLengths, or a run on PanelRooms"
            )


class MovedPanel(PanelIntervention):
    """Move the panel alone, so that only pixels change. Cameras stay, bit for bit.

    A variant counts if the panel stays whole in, or absent from, the same views. Otherwise a model may answer from the
    views that show it.

    Args:
        variants: Number of places of the panel in each room.
    """

    told = "images"

    def __init__(self, variants: int = 7) -> None:
        self.num_variants = variants

    def variants(self, origin: Origin, loaded: LoadedScene) -> list[Variant]:
        """Return the room with the panel at each place that counts."""
        moved = origin.source.moved_panels(origin.number, origin.split, self.num_variants)  # type: ignore[attr-defined]
        scenes = [(origin.read(scene), truth) for scene, truth, counts in moved if counts]
        return [Variant(replace(each, questions=loaded.questions), truth, truth) for each, truth in scenes]


class TurnedCameras(PanelIntervention):
    """Turn the told cameras about their own centers and the vertical, all but the first view's. The frames stay.

    The first angle is drawn uniformly within a third of `degrees`, and the angles then sweep `degrees`. So a model that
    chooses among answers 25 degrees apart, and can't follow a smaller change, still has a mean response of 1. Variants
    whose true answer is beyond the dataset's answers do not count.

    Args:
        degrees: Difference between the largest and the smallest angle.
        variants: Number of angles.
    """

    told = "cameras"

    def __init__(self, degrees: float = 40.0, variants: int = 7) -> None:
        self.degrees, self.num_variants = degrees, variants

    def turns(self, is_first: Bool[np.ndarray, " T"], shows_panel: Bool[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
        """Return which frames' cameras turn.

        Args:
            is_first: The frames of the first view.
            shows_panel: The frames that show some part of the panel.
        """
        return ~is_first

    def variants(self, origin: Origin, loaded: LoadedScene) -> list[Variant]:
        """Return the room with its cameras turned by each angle that counts. Empty if no camera turns."""
        source, (least, most) = origin.source, origin.answers
        assert isinstance(source, PanelRooms)
        turns, told = self.turns(*source.views_of_panel(origin.scene)), source.poses(origin.scene)
        if not turns.any():
            return []
        room, video = source.read_room(origin.scene)
        world_from_room = np.linalg.inv(room.room_from_world())
        start, found = self.degrees / 3 * (random.Random(loaded.name).random() - 0.5), list[Variant]()
        for angle in (start + np.linspace(-0.5, 0.5, self.num_variants) * self.degrees).tolist():
            poses = turned(told, turns, angle)
            truth = source.task.true_answer(room, video._replace(given_from_room=poses.numpy() @ world_from_room))
            value = self.value(truth, angle)
            if least <= value <= most:
                found.append(Variant(with_poses(loaded, poses[list(loaded.frame_indices or ())]), value, truth))
        return found

    def value(self, truth: float, angle: float) -> float:
        """Return what the answer is compared with, from the true answer and the angle in degrees."""
        return truth


class TurnedPanelView(TurnedCameras):
    """Turn the cameras of the frames that show the panel, see `TurnedCameras`."""

    def turns(self, is_first: Bool[np.ndarray, " T"], shows_panel: Bool[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
        """See `TurnedCameras`."""
        return shows_panel & ~is_first


class TurnedEmptyViews(TurnedCameras):
    """Turn the cameras of the frames that show no part of the panel, see `TurnedCameras`. The answer stays.

    The response is the slope on what the answer would be if the panel were seen there. All of them turn by one angle,
    so a use of the angle between two of them is not seen.
    """

    def turns(self, is_first: Bool[np.ndarray, " T"], shows_panel: Bool[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
        """See `TurnedCameras`."""
        return ~shows_panel & ~is_first

    def value(self, truth: float, angle: float) -> float:
        """See `TurnedCameras`."""
        return truth + angle

    def expected(self, benchmark: Benchmark, question_type: str) -> float | None:
        """Return 0: the answer stays."""
        return 0.0


class OtherWalls(PanelIntervention):
    """Render the room with other walls and another lamp. Cameras, panel and answer stay.

    Args:
        variants: Number of renderings.
    """

    measure = "change"
    told = "images"

    def __init__(self, variants: int = 4) -> None:
        self.num_variants = variants + 1

    def variants(self, origin: Origin, loaded: LoadedScene) -> list[Variant]:
        """Return the room as it is, and with each of the other walls."""
        source = origin.source
        assert isinstance(source, PanelRooms)
        others = [
            origin.read(scene) for scene in source.other_walls(origin.split, origin.number, self.num_variants - 1)
        ]
        return [Variant(replace(each, questions=loaded.questions), 0.0) for each in (loaded, *others)]

    def expected(self, benchmark: Benchmark, question_type: str) -> float | None:
        """Return 0: the answer stays."""
        return 0.0


def turned(
    world_to_camera: Float64[Tensor, "T 4 4"], turns: Bool[np.ndarray, " T"], degrees: float
) -> Float64[Tensor, "T 4 4"]:
    """Turn some cameras to the left about their own centers and the world's z axis."""
    turn = so3_exp(torch.tensor([0.0, 0.0, math.radians(degrees)], dtype=torch.float64))
    rotation = world_to_camera[:, :3, :3] @ turn.mT
    centers = invert_se3(world_to_camera)[:, :3, 3:]
    changed = rigid_matrix(rotation, -(rotation @ centers)[..., 0])
    return changed.where(torch.from_numpy(turns)[:, None, None], world_to_camera)


def default_interventions(source: SceneSource) -> list[Intervention]:
    """Return the interventions that a dataset permits, with their default settings."""
    found: list[Intervention] = [ScaledLengths(), ScaledTranslations(), OtherWorlds()]
    if isinstance(source, PanelRooms):
        found = [MovedPanel(), TurnedPanelView(), TurnedCameras(), TurnedEmptyViews(), OtherWalls(), *found]
    return found
