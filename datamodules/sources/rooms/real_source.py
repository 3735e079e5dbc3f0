"""Rendered rooms with real sizes and furniture, and the questions of VSI-Bench."""

from __future__ import annotations

from functools import partial

import numpy as np

from datamodules.sources.base import SPLITS, Split
from datamodules.sources.rooms.questions import ask
from datamodules.sources.rooms.real_boxes import RealRoom, read_rooms
from datamodules.sources.rooms.real_layout import draw_real_room
from datamodules.sources.rooms.rendered import RenderedScenes
from datamodules.sources.rooms.writer import DrawnScene, draw_intrinsics
from zoo.errors import InputError
from zoo.files.fingerprint import fingerprint

VERSION = 2  # increase it with every change to the scenes or the questions
DATASET = "layouts"  # of the training and validation scenes; test scenes keep their real names
HOLD_OUT_EVERY = 5  # every fifth real room of the training datasets is for validation


class RealRooms(RenderedScenes):
    """Rooms with real sizes and furniture: VSI-Bench's scenes as boxes, rendered on first use.

    The test split renders each scene of its datasets once, with its name and its real area. `datasets: [arkitscenes]`
    with `question_types: [room_size_estimation]` are therefore VSI-Bench's 150 questions about room sizes of
    ARKitScenes, word for word, without a download. All other questions have the answers of the rendered room, see
    `real_layout`. Training and validation use randomly varied rooms of other datasets.

    Args:
        meta_info: Folder with <dataset>_meta_info_val.json, data/meta_info of thinking-in-space.
        train: Datasets of the training and validation rooms.
        test: Datasets of the test rooms.
        scenes: Number of training and validation scenes.
        size: Width and height of a frame in pixels, even.
        frames: Raw frames of each video.
        seed: Seed of the variations.
        root: Cache folder, with one folder per combination of settings and boxes.
        workers: Rendering processes; null is one per CPU core.

    Raises:
        InputError: Invalid settings, or absent or malformed boxes.
    """

    description = "rendering real rooms"

    def __init__(
        self,
        meta_info: str,
        train: tuple[str, ...] = ("scannet", "scannetpp"),
        test: tuple[str, ...] = ("arkitscenes",),
        scenes: tuple[int, int] = (1500, 150),
        size: int = 56,
        frames: int = 48,
        seed: int = 0,
        root: str = "cache/rooms",
        workers: int | None = None,
    ) -> None:
        if min(scenes) < 0:
            raise InputError(f"RealRooms: scenes are two counts (train, val), not {scenes}")
        if both := set(train) & set(test):
            raise InputError(f"RealRooms: {', '.join(sorted(both))} can't be used for both training and test")
        rooms = read_rooms(meta_info)
        available = sorted({room.dataset for room in rooms})
        if unknown := sorted({*train, *test} - set(available)):
            raise InputError(
                f"RealRooms: no boxes of {', '.join(unknown)} in {meta_info}; available are {', '.join(available)}"
            )
        pool = [room for room in rooms if room.dataset in train]
        self.rooms: dict[Split, list[RealRoom]] = {
            "train": [room for i, room in enumerate(pool) if i % HOLD_OUT_EVERY],
            "val": pool[::HOLD_OUT_EVERY],
            "test": [room for room in rooms if room.dataset in test],
        }
        counts = dict(zip(SPLITS, (*scenes, len(self.rooms["test"])), strict=True))
        for split, count in counts.items():
            if count and not self.rooms[split]:
                raise InputError(f"RealRooms: no real room for the {split} split: list more datasets")
        contents = fingerprint([room.content() for room in rooms])
        key = [DATASET, VERSION, train, test, counts, size, frames, seed, contents]
        super().__init__(root, key, counts, size, frames, seed, workers)

    def draw(self, split: Split, index: int, rng: np.random.Generator) -> DrawnScene:
        """Draw a stand-in of a test room, or a variation of a random room of another split."""
        is_test = split == "test"
        room = self.rooms[split][index if is_test else rng.integers(len(self.rooms[split]))]
        dataset, name = (room.dataset, room.name) if is_test else (DATASET, f"{split}_{index:05d}")
        scene, world_to_camera = draw_real_room(room, self.frames, varied=not is_test, rng=rng)
        K_px = draw_intrinsics(self.size, rng)
        return DrawnScene(dataset, name, scene, world_to_camera, K_px, partial(ask, scene, f"{dataset}-{name}"))
