"""Rendered stand-ins of real rooms, with the questions of VSI-Bench."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np

from datamodules.sources.base import Split
from datamodules.sources.rooms.real_boxes import RealRoom, read_rooms
from datamodules.sources.rooms.real_layout import draw_real_room
from datamodules.sources.rooms.rendered import Make, RenderedScenes
from datamodules.sources.rooms.source import check_rendering, folder_of
from datamodules.sources.rooms.writer import SPLITS, draw_intrinsics, write_rendered
from zoo.errors import InputError

VERSION = 2  # of what the settings lead to: raise it with every change to the scenes or the questions
DATASET = "layouts"  # of the training and validation scenes; those of the test have their real names
HELD_OUT = 5  # every fifth real room of the training datasets is for validation


class RealRooms(RenderedScenes):
    """Rooms with the sizes and the furniture of real ones: VSI-Bench's scenes as boxes, rendered on first use.

    The test renders each scene of its datasets once, under its name and with its real area, so that `datasets:
    [arkitscenes]` with `question_types: [room_size_estimation]` are VSI-Bench's 150 questions about the size of
    ARKitScenes' rooms, word for word, without any download. All other questions are about the stand-in, with its
    own answers: see `real_layout`. Training and validation take rooms of other datasets, varied.

    Args:
        meta_info: folder with <dataset>_meta_info_val.json, data/meta_info of thinking-in-space.
        train: datasets whose rooms training and validation take.
        test: datasets whose rooms the test takes.
        scenes: how many scenes to make for training and validation.
        size: width and height of a frame in pixels, even.
        frames: raw frames of each video.
        seed: another seed gives other variations.
        root: cache folder; each combination of settings and boxes has a folder of its own in it.
        workers: processes that render; null takes one for each CPU core.

    Raises InputError for settings that make no sense and where the boxes are absent or can't be understood.
    """

    what = "rendering real rooms"

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
        check_rendering("RealRooms", size, frames, seed, workers)
        if min(scenes) < 0:
            raise InputError(f"RealRooms: scenes are two counts (train, val), not {scenes}")
        if both := set(train) & set(test):
            raise InputError(f"RealRooms: {', '.join(sorted(both))} can't be both trained on and tested on")
        try:
            rooms = read_rooms(meta_info)
        except (OSError, ValueError) as error:
            raise InputError(str(error)) from error
        known = sorted({room.dataset for room in rooms})
        if unknown := sorted({*train, *test} - set(known)):
            raise InputError(
                f"RealRooms: no boxes of {', '.join(unknown)} in {meta_info}; there are {', '.join(known)}"
            )
        pool = [room for room in rooms if room.dataset in train]
        self.rooms: dict[Split, list[RealRoom]] = {
            "train": [room for i, room in enumerate(pool) if i % HELD_OUT],
            "val": pool[::HELD_OUT],
            "test": [room for room in rooms if room.dataset in test],
        }
        self.size, self.frames, self.seed = size, frames, seed
        counts = dict(zip(SPLITS, (*scenes, len(self.rooms["test"])), strict=True))
        for split, count in counts.items():
            if count and not self.rooms[split]:
                raise InputError(f"RealRooms: no real room is left for the {split} split: name more datasets")
        self.key = json.dumps([DATASET, VERSION, train, test, counts, size, frames, seed, _digest(rooms)])
        super().__init__(folder_of(self.key, root), counts, workers)

    def work(self, folder: Path) -> Make:
        for dataset in {DATASET, *(room.dataset for room in self.rooms["test"])}:
            (folder / dataset).mkdir()
        (folder / "settings.json").write_text(self.key)
        return partial(write_real, folder, self.rooms, self.size, self.frames, self.seed)


def write_real(
    folder: Path, rooms: dict[Split, list[RealRoom]], size: int, frames: int, seed: int, split: Split, index: int
) -> str:
    """Makes scene number `index` of a split and returns its questions as lines of JSON."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    is_test = split == "test"
    room = rooms[split][index if is_test else rng.integers(len(rooms[split]))]
    place = (room.dataset, room.name) if is_test else (DATASET, f"{split}_{index:05d}")
    scene, world_to_camera = draw_real_room(room, frames, varied=not is_test, rng=rng)
    K_px = draw_intrinsics(size, rng)
    return write_rendered(folder, place, scene, world_to_camera, K_px, "-".join(place), rng)


def _digest(rooms: list[RealRoom]) -> str:
    found = hashlib.sha256()
    for room in rooms:
        found.update(f"{room.dataset}/{room.name}/{room.area}/{room.categories}".encode())
        for values in (room.centers, room.sizes, room.yaws):
            found.update(values.tobytes())
    return found.hexdigest()[:16]
