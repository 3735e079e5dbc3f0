"""`PanelRooms`, the dataset of rooms with panels, for any task of `panel_tasks.py`."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64, Int16

from datamodules.cameras_file import read_cameras_alone
from datamodules.scenes import Question, Scene
from datamodules.sources.base import SPLITS, ChangePoses, Split
from datamodules.sources.rooms.panel_oracles import Oracles, RoomVideo
from datamodules.sources.rooms.panel_tasks import PanelDistance, PanelTask
from datamodules.sources.rooms.scene import RoomScene, load_scene
from datamodules.sources.rooms.source import DrawnScene, RenderedScenes, draw_intrinsics
from zoo.configuration import to_config
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

VERSION = 1  # increase it with every change to the scenes of all tasks


class PanelRooms(RenderedScenes):
    """Empty rooms with panels on their walls and one question per room. They are rendered on first use.

    A scene depends only on the task, the other settings, its split and its index.

    Args:
        task: The question. null uses `PanelDistance`.
        fov: Range of the horizontal field of view in degrees.
        scenes: Number of training, validation and test scenes.
        size: Width and height of a frame in pixels, even.
        frames: Raw frames of each video, even. The camera takes two at each station.
        seed: Seed of all scenes.
        root: Cache folder, with one folder per combination of settings.
        workers: Rendering processes. null uses one per CPU core.

    Raises:
        InputError: A setting is invalid.
    """

    def __init__(
        self,
        task: PanelTask | None = None,
        fov: tuple[float, float] = (90.0, 110.0),
        scenes: tuple[int, int, int] = (4000, 200, 500),
        size: int = 56,
        frames: int = 16,
        seed: int = 0,
        root: str = "cache/panels",
        workers: int | None = None,
    ) -> None:
        self.task, self.fov = task or PanelDistance(), fov
        if len(scenes) != 3 or min(scenes) < 0:
            raise InputError(f"PanelRooms: scenes are three counts (train, val, test), not {scenes}")
        if not 0 < fov[0] <= fov[1] < 180:
            raise InputError(f"PanelRooms: fov {fov} must be a range within 0 to 180 degrees")
        if frames % TEMPORAL_PATCH_SIZE:
            raise InputError(f"PanelRooms: frames {frames} must be even")
        counts = dict(zip(SPLITS, scenes, strict=True))
        about = [VERSION, self.task.version, to_config(self.task)]
        super().__init__(root, [about, fov, counts, size, frames, seed], counts, size, frames, seed, workers)
        self.benchmark = self.task.benchmark
        self.default_question_types = (self.task.question_type,)

    def draw(self, split: Split, index: int, rng: np.random.Generator) -> DrawnScene:
        """Draw scene `index` of a split."""
        K_px = draw_intrinsics(self.size, rng, self.fov)
        drawn = self.task.draw(self.frames, K_px, rng)
        name, kind = f"{split}_{index:05d}", self.task.question_type
        question = Question(f"{kind}-{name}", kind, drawn.question, drawn.ground_truth, drawn.options)

        def ask(ids: Int16[np.ndarray, "T H W"], rng: np.random.Generator) -> list[Question]:
            return [question]

        world_to_camera = drawn.camera_from_room @ drawn.room.room_from_world()
        return DrawnScene("panels", name, drawn.room, world_to_camera, K_px, ask)

    def oracles(self, scene: Scene, change_poses: ChangePoses | None = None) -> Oracles:
        """Return what each oracle of the task knows about a scene, from the scene's files."""
        assert scene.depth is not None and scene.cameras is not None  # `write_drawn` writes both
        world_to_camera, K_normalized = (each.numpy() for each in read_cameras_alone(scene.cameras))
        half_view = 0.5 / float(K_normalized[0, 0, 0])
        return self._oracles(scene.name, load_scene(scene.depth), world_to_camera, half_view, change_poses)

    def drawn_oracles(self, split: Split, index: int, change_poses: ChangePoses | None = None) -> tuple[Scene, Oracles]:
        """Draw scene `index` of a split with its questions, and return what each oracle knows, without rendering."""
        rng = self.generator(split, index)
        dataset, name, room, world_to_camera, K_px, ask = self.draw(split, index, rng)
        no_ids = np.zeros((0, 0, 0), np.int16)
        scene = Scene(f"{dataset}/{name}", self.folder / dataset / f"{name}.mp4", ask(no_ids, rng))
        half_view = K_px[0, 2] / K_px[0, 0]
        return scene, self._oracles(scene.name, room, world_to_camera, half_view, change_poses)

    def _oracles(
        self,
        name: str,
        room: RoomScene,
        world_to_camera: Float64[np.ndarray, "T 4 4"],
        half_view: float,
        change_poses: ChangePoses | None,
    ) -> Oracles:
        world_from_room = np.linalg.inv(room.room_from_world())
        given = world_to_camera
        if change_poses is not None:
            given = change_poses(name, torch.from_numpy(world_to_camera)).numpy()
        video = RoomVideo(world_to_camera @ world_from_room, half_view, given @ world_from_room)
        return self.task.oracles(room, video)
