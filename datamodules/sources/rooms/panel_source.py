"""`PanelRooms`, the dataset of rooms with panels, for any task of `panel_tasks`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int16

from datamodules.cameras_file import read_cameras_alone
from datamodules.scenes import Question, Scene
from datamodules.sources.annotations import read_layout
from datamodules.sources.base import SPLITS, ChangePoses, Split, build_once
from datamodules.sources.rooms.panel_layout import THICKNESS_M
from datamodules.sources.rooms.panel_oracles import Oracles, Posteriors, RoomVideo, panel_of, show
from datamodules.sources.rooms.panel_tasks import PanelDistance, PanelTask
from datamodules.sources.rooms.renderer import render
from datamodules.sources.rooms.scene import RoomScene, load_scene, to_vector
from datamodules.sources.rooms.source import DrawnScene, RenderedScenes, draw_intrinsics, write_drawn, write_video
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

        world_to_camera = drawn.camera_from_room @ drawn.room.room_from_world()
        return DrawnScene("panels", name, drawn.room, world_to_camera, K_px, partial(_asked, question))

    def oracles(self, scene: Scene, change_poses: ChangePoses | None = None) -> Oracles:
        """Return what each fitted oracle of the task knows about a scene, from the scene's files."""
        return self.task.oracles(*self.read_room(scene, change_poses))

    def posteriors(self, scene: Scene, change_poses: ChangePoses | None = None) -> Posteriors:
        """Return what each exact rule of the task knows about the answer, from the scene's files."""
        return self.task.posteriors(*self.read_room(scene, change_poses))

    def drawn(
        self, split: Split, index: int, change_poses: ChangePoses | None = None
    ) -> tuple[Scene, RoomScene, RoomVideo]:
        """Draw scene `index` of a split with its question, the room and its cameras, without rendering."""
        rng = self.generator(split, index)
        dataset, name, room, world_to_camera, K_px, ask = self.draw(split, index, rng)
        no_ids = np.zeros((0, 0, 0), np.int16)
        scene = Scene(f"{dataset}/{name}", self.folder / dataset / f"{name}.mp4", ask(no_ids, rng))
        half_view = float(K_px[0, 2] / K_px[0, 0])
        return scene, room, room_video(scene.name, room, world_to_camera, half_view, change_poses)

    def moved_panels(self, index: int, split: Split = "test", count: int = 9) -> list[tuple[Scene, float, bool]]:
        """Render scene `index` of a split several times, with its panel in other places, and all else unchanged.

        Room and cameras are the scene's, bit for bit. The true answers are `PanelTask.sweep`: even steps over more than
        1.5 classes that begin anywhere between two classes, so that a model which answers by classes also moves. They
        depend on the split, the index and the count alone. Videos are rendered on first use, into a cache folder.

        Args:
            index: Number of the scene.
            split: Its split.
            count: Number of places. Fewer are returned if the room has no place for an answer.

        Returns:
            For each place: the scene with its files, whose question has the rounded answer; the true answer, not
            rounded; and whether the place counts. Those that count are whole in the same frames, and absent from all
            others. Compare only them with each other: elsewhere it also changes how much of the panel is visible.

        Raises:
            InputError: The task has no continuous answer.
        """
        drawn_rng = self.generator(split, index)
        drawn = self.draw(split, index, drawn_rng)
        video = RoomVideo(
            drawn.world_to_camera @ np.linalg.inv(drawn.scene.room_from_world()),
            float(drawn.K_px[0, 2] / drawn.K_px[0, 0]),
        )
        answers = self.task.sweep(drawn.scene, video, count, self.generator(split, index).spawn(1)[0])
        rooms = [(self.task.moved(drawn.scene, video, answer), answer) for answer in answers.tolist()]
        moved = [(room, answer) for room, answer in rooms if room is not None]
        folder = self.folder.with_name(f"{self.folder.name}-moved") / f"{split}_{index:05d}_of_{count}"

        def write(folder: Path) -> None:
            lines = []
            for number, (room, answer) in enumerate(moved):
                name = f"{drawn.name}_{number}"
                kind, truth = self.task.question_type, self.task.write(answer)
                question = Question(f"{kind}-{name}", kind, self.task.question, truth)
                scene = drawn._replace(name=name, scene=room, ask=partial(_asked, question))
                lines.append(write_drawn(folder, scene, self.size, drawn_rng))
            (folder / f"{split}.jsonl").write_text("".join(lines))

        build_once(folder, "another process renders these rooms: waiting for it", write)
        scenes, _ = read_layout(folder, f"{split}.jsonl", benchmark=self.benchmark)
        states = [_visible(room, video) for room, _ in moved]
        clear = Counter(state for state in states if state is not None)
        usual = clear.most_common(1)[0][0] if clear else None
        return [
            (scene, answer, usual is not None and state == usual)
            for scene, (_, answer), state in zip(scenes, moved, states, strict=True)
        ]

    def read_room(self, scene: Scene, change_poses: ChangePoses | None = None) -> tuple[RoomScene, RoomVideo]:
        """Read the room of a scene, and its cameras as a model is told them, from the scene's files."""
        assert scene.depth is not None and scene.cameras is not None  # `write_drawn` writes both
        world_to_camera, K_normalized = (each.numpy() for each in read_cameras_alone(scene.cameras))
        room = load_scene(scene.depth)
        return room, room_video(scene.name, room, world_to_camera, 0.5 / float(K_normalized[0, 0, 0]), change_poses)

    def poses(self, scene: Scene) -> Float64[torch.Tensor, "T 4 4"]:
        """Return the true world-to-camera poses of all frames of a scene."""
        assert scene.cameras is not None
        return read_cameras_alone(scene.cameras)[0].double()

    def views_of_panel(self, scene: Scene) -> tuple[Bool[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
        """Return the frames of the first view, and the frames that show some part of the red panel."""
        room, video = self.read_room(scene)
        stations = np.arange(len(video.camera_from_room)) // getattr(self.task, "frames_per_station", 2)
        return stations == 0, show([panel_of(room)], video.camera_from_room, video.half_view).share[0] > 0

    def other_walls(self, split: Split, index: int, num_variants: int) -> list[Scene]:
        """Render scene `index` of a split with the walls and the lamp of other rooms, and return these scenes.

        Their videos are kept beside the folder of the dataset. Cameras and depth are the scene's.
        """
        drawn = self.draw(split, index, self.generator(split, index))
        folder = self.folder.with_name(f"{self.folder.name}-walls") / f"{split}_{index:05d}-{num_variants}"

        def write(unfinished: Path) -> None:
            for number in range(num_variants):
                # 0 would be the scene's own
                rng = np.random.default_rng([self.seed, SPLITS.index(split), index, 1 + number])
                other = self.draw(split, index, rng).scene
                light = to_vector(np.array(other.light) * drawn.scene.size / other.size)
                room = replace(drawn.scene, surfaces=other.surfaces, light=light)
                video = render(room, drawn.world_to_camera, drawn.K_px, self.size, self.size)
                write_video(unfinished / f"{number}.mp4", video.rgb)

        build_once(folder, "another process renders these walls: waiting for it", write)
        (scene,) = [each for each in self.scenes(split) if each.name == f"panels/{drawn.name}"]
        return [replace(scene, video=folder / f"{number}.mp4") for number in range(num_variants)]


def _asked(question: Question, ids: Int16[np.ndarray, "T H W"], rng: np.random.Generator) -> list[Question]:
    """Return the question of a scene, whatever its frames show."""
    return [question]


def room_video(
    scene: str,
    room: RoomScene,
    world_to_camera: Float64[np.ndarray, "T 4 4"],
    half_view: float,
    change_poses: ChangePoses | None,
) -> RoomVideo:
    """Return a scene's cameras in the frame of its room, with the ones that a test with camera errors tells."""
    world_from_room = np.linalg.inv(room.room_from_world())
    if change_poses is None:
        return RoomVideo(world_to_camera @ world_from_room, half_view)
    told = change_poses(scene, torch.from_numpy(world_to_camera)).numpy()
    return RoomVideo(world_to_camera @ world_from_room, half_view, told @ world_from_room)


def _visible(room: RoomScene, video: RoomVideo) -> tuple[bool, ...] | None:
    """Return in which frames the panel is whole, or None if some frame shows a part of it."""
    panel = panel_of(room)
    larger = replace(panel, size=to_vector(np.array(panel.size) + 2 * THICKNESS_M))
    shares = show([larger], video.camera_from_room, video.half_view).share[0]
    return tuple((shares == 1).tolist()) if np.isin(shares, (0, 1)).all() else None
