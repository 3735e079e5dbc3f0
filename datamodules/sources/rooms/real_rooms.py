"""Rendered rooms with real sizes and furniture, from the room sizes and object boxes behind VSI-Bench's answers.

    <folder>/<dataset>_meta_info_val.json   data/meta_info of thinking-in-space: for each scene its `room_size` in
                                            square meters and `object_bbox` {category: [boxes]}, meters, z up

The area of a real room and the boxes of some things are known. Walls, height and camera path are random. Things are
moved only as far as the rectangle of the walls requires. Things in the camera's path are removed.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from datamodules.sources.base import SPLITS, Split
from datamodules.sources.rooms.layout import (
    CATALOG,
    Category,
    draw_parts,
    draw_shell,
    is_clear,
    ring_along_walls,
    walk,
)
from datamodules.sources.rooms.questions import ask
from datamodules.sources.rooms.scene import RoomScene, Thing, footprint, to_vector
from datamodules.sources.rooms.source import DrawnScene, RenderedScenes, draw_intrinsics
from zoo.errors import InputError
from zoo.files.fingerprint import fingerprint

UPRIGHT = 0.9  # cosine of the tilt up to which a box counts as upright


@dataclass(frozen=True)
class RealRoom:
    """A real room as upright boxes. The x and y axes are along most of them, z is up, and the origin is arbitrary.

    Attributes:
        dataset: Name of the dataset.
        name: Name of the scene.
        area: Floor area in square meters.
        categories: Category of each box.
        centers: Centers of the boxes in meters.
        sizes: Sizes along the axes of each box, in meters.
        yaws: Rotations about z in radians.
    """

    dataset: str
    name: str
    area: float
    categories: tuple[str, ...]
    centers: Float64[np.ndarray, "n 3"]
    sizes: Float64[np.ndarray, "n 3"]
    yaws: Float64[np.ndarray, " n"]

    def content(self) -> dict[str, Any]:
        """Return all fields as JSON-like content."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(self).items()}


def read_rooms(folder: str | Path) -> list[RealRoom]:
    """Read the rooms of all datasets in a folder, in the order of files and scenes.

    Raises:
        InputError: The folder has no such files, or one is malformed.
    """
    folder = Path(folder).expanduser()
    files = sorted(folder.glob("*_meta_info_val.json"))
    if not files:
        raise InputError(
            f"{folder}: no *_meta_info_val.json: get data/meta_info of github.com/vision-x-nyu/thinking-in-space"
        )
    rooms = []
    for file in files:
        try:
            for name, scene in json.loads(file.read_bytes()).items():
                rooms.append(_room(file.name.split("_", 1)[0], name, scene))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: not the room sizes and boxes of thinking-in-space ({error!r})") from error
    return rooms


def _room(dataset: str, name: str, scene: dict[str, Any]) -> RealRoom:
    labeled = [(category, _upright(box)) for category, boxes in scene["object_bbox"].items() for box in boxes]
    centers = np.array([center for _, (center, _, _) in labeled]).reshape(-1, 3)
    sizes = np.array([size for _, (_, size, _) in labeled]).reshape(-1, 3)
    yaws = np.array([yaw for _, (_, _, yaw) in labeled])
    turn = _main_direction(sizes, yaws)
    cos, sin = np.cos(turn), np.sin(turn)
    centers[:, :2] = centers[:, :2] @ np.array([[cos, -sin], [sin, cos]])
    return RealRoom(dataset, name, float(scene["room_size"]), tuple(c for c, _ in labeled), centers, sizes, yaws - turn)


def _upright(box: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, float]:
    """Return center, size and yaw, with z along the axis that points up. A tilted box becomes its upright hull."""
    axes, lengths = np.array(box["normalizedAxes"], float).reshape(3, 3), np.array(box["axesLengths"], float)
    low, high = np.array(box["min"], float), np.array(box["max"], float)
    up = int(np.abs(axes[:, 2]).argmax())
    if abs(axes[up, 2]) < UPRIGHT:
        return (low + high) / 2, high - low, 0.0
    first, second = (axis for axis in range(3) if axis != up)
    yaw = float(np.arctan2(axes[first, 1], axes[first, 0]))
    return np.array(box["centroid"], float), lengths[[first, second, up]], yaw


def _main_direction(sizes: np.ndarray, yaws: np.ndarray) -> float:
    """Return the angle in -45 to 45 degrees of most boxes, weighted by footprint, modulo quarter turns."""
    weights = sizes[:, 0] * sizes[:, 1]
    return float(np.angle((weights * np.exp(4j * yaws)).sum()) / 4) if len(yaws) else 0.0


def bounds(room: RealRoom) -> tuple[Float64[np.ndarray, " 2"], Float64[np.ndarray, " 2"]]:
    """Return the lower and upper x and y of all footprints."""
    corners = footprint(room.centers, room.sizes, room.yaws).reshape(-1, 2)
    return corners.min(0), corners.max(0)


# ---- Layout: a rectangle of the real area, and furniture of real sizes near its real places -------------------------

MAX_ASPECT = 2.0  # of the rectangle, because a few boxes in a row do not make a corridor
WALL_GAP_M = 0.01
CEILING_M = (2.3, 2.9)
CLEARANCE_M = 0.2  # between the camera and things
INSETS_M = (0.45, 0.7, 0.95, 1.2)  # candidate distances of the camera path from the walls
THINNEST_M = 0.02

KNOWN = {category.name: category for category in CATALOG}
SIMILAR = {
    "washing machine": "washer", "dishwasher": "washer", "oven": "stove", "microwave": "stove",
    "trash can": "trash bin", "bucket": "trash bin", "basket": "trash bin", "radiator": "heater",
    "table lamp": "lamp", "monitor": "tv", "laptop": "tv", "mattress": "bed", "crate": "nightstand",
    "counter": "nightstand", "shoe rack": "bookshelf", "backpack": "suitcase", "guitar": "suitcase",
}  # fmt: skip


def draw_real_room(
    room: RealRoom, frames: int, varied: bool, rng: np.random.Generator
) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
    """Draw a layout and its world-to-camera poses.

    Args:
        room: The real room.
        frames: Number of frames.
        varied: Mirror, rotate and scale the room at random by up to 15 %, for training. Otherwise its area is the real
            one.
        rng: Random generator.
    """
    if varied:
        room = _varied(room, rng)
    low, high = bounds(room) if room.categories else (np.zeros(2), np.ones(2))
    extent = np.maximum(high - low, 0.1)
    aspect = np.clip(extent[0] / extent[1], 1 / MAX_ASPECT, MAX_ASPECT)
    sides = np.array([np.sqrt(room.area * aspect), np.sqrt(room.area / aspect)])
    floor = _floor(room)
    top = (room.centers[:, 2] + room.sizes[:, 2] / 2).max(initial=floor) - floor
    size = np.array([*sides, max(rng.uniform(*CEILING_M), top + WALL_GAP_M)])

    things = _furnish(room, low, extent, floor, size, rng)
    camera_from_room, things = _choose_path(size, things, frames, rng)
    scene = replace(draw_shell(size, 1.0, rng), things=tuple(things))
    return scene, camera_from_room @ scene.room_from_world()


def _varied(room: RealRoom, rng: np.random.Generator) -> RealRoom:
    scale = np.exp(rng.uniform(-0.15, 0.15))
    centers, sizes, yaws = room.centers * scale, room.sizes * scale, room.yaws
    if rng.random() < 0.5:  # mirror
        centers, yaws = centers * [-1, 1, 1], -yaws
    if rng.random() < 0.5:  # quarter turn
        centers, yaws = centers[:, [1, 0, 2]] * [-1, 1, 1], yaws + np.pi / 2
    return replace(room, area=room.area * scale**2, centers=centers, sizes=sizes, yaws=yaws)


def _floor(room: RealRoom) -> float:
    """Return the height of the floor: the lower edge of the lowest standing thing."""
    bottoms = room.centers[:, 2] - room.sizes[:, 2] / 2
    standing = [name in KNOWN and KNOWN[name].place in ("floor", "wall") for name in room.categories]
    return float(bottoms[standing].min() if any(standing) else bottoms.min(initial=0.0))


def _furnish(
    room: RealRoom, low: np.ndarray, extent: np.ndarray, floor: float, size: np.ndarray, rng: np.random.Generator
) -> list[Thing]:
    """Place things inside the walls. Things that are larger than the room are removed."""
    shrink = np.minimum(1.0, size[:2] / extent)
    slack = size[:2] - extent * shrink
    shift = rng.uniform(-0.5, 0.5, 2) * slack
    things = []
    for category, center, box, yaw in zip(room.categories, room.centers, room.sizes, room.yaws, strict=True):
        box = np.maximum(box, THINNEST_M)
        template = _template(category)
        plan = (center[:2] - low - extent / 2) * shrink + shift
        box, yaw = _orient(template, box, yaw, plan)
        reach = footprint(np.zeros(3), box, np.array(yaw)).max(0)
        limit = size[:2] / 2 - reach - WALL_GAP_M
        if (limit < 0).any() or box[2] > size[2]:
            continue
        plan = np.clip(plan, -limit, limit)
        z = np.clip(center[2] - floor, box[2] / 2, size[2] - box[2] / 2)
        parts = draw_parts(template, to_vector(box), rng)
        things.append(Thing(category, to_vector(np.array([*plan, z])), to_vector(box), float(yaw), parts))
    return things


def _template(name: str) -> Category:
    """Return the catalog entry of a category. Unknown categories are boxes with a front, colored by name."""
    if known := KNOWN.get(SIMILAR.get(name, name)):
        return known
    hue = zlib.crc32(name.encode()) % 360 / 360
    recipe = ((0, 1, 0, 0.95, 0, 1, 0), (0.1, 0.9, 0.95, 1, 0.1, 0.9, 1))
    colors = ((hue, 0.6, 0.6), (hue, 0.4, 0.85))
    return Category(name, "floor", (0.2, 0.2, 0.2), (0.5, 0.5, 0.5), colors, recipe)


def _orient(template: Category, box: np.ndarray, yaw: float, plan: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the same box with its front +y towards the center of the room and its longer side as in the catalog."""
    typical = np.array(template.smallest[:2]) + template.largest[:2]
    if (typical[0] - typical[1]) * (box[0] - box[1]) < 0:
        box, yaw = box[[1, 0, 2]], yaw + np.pi / 2
    front = np.array([-np.sin(yaw), np.cos(yaw)])
    return box, yaw if front @ -plan >= 0 else yaw + np.pi


def _choose_path(
    size: np.ndarray, things: list[Thing], frames: int, rng: np.random.Generator
) -> tuple[Float64[np.ndarray, "T 4 4"], list[Thing]]:
    """Return the camera path that collides with the fewest things, and the things without a collision."""
    height = min(rng.uniform(1.2, 1.75), size[2] - 0.3)
    paths = []
    for inset in INSETS_M:
        poses = walk(ring_along_walls(size, height, inset, rng), frames, rng)
        eyes = np.linalg.inv(poses)[:, :3, 3]
        kept = [t for t in things if is_clear(np.array(t.center), np.array(t.size), t.yaw, eyes, CLEARANCE_M)]
        paths.append((poses, kept))
    return max(paths, key=lambda path: len(path[1]))


# ---- The dataset ----------------------------------------------------------------------------------------------------

VERSION = 2  # increase it with every change to the scenes or the questions
DATASET = "layouts"  # name of the training and validation scenes; test scenes keep their real names
HOLD_OUT_EVERY = 5  # every fifth real room of the training datasets is used for validation


class RealRooms(RenderedScenes):
    """Rooms with real sizes and furniture: VSI-Bench's scenes as boxes, rendered on first use.

    The test split renders each scene of its datasets once, with its real name and area. `datasets: [arkitscenes]` with
    `question_types: [room_size_estimation]` are therefore exactly VSI-Bench's 150 questions about room sizes of
    ARKitScenes, without a download. All other questions have the answers of the rendered room. Training and validation
    use randomly varied rooms of other datasets.

    Args:
        meta_info: Folder with <dataset>_meta_info_val.json, data/meta_info of thinking-in-space.
        train: Datasets of the training and validation rooms.
        test: Datasets of the test rooms.
        scenes: Number of training and validation scenes.
        size: Width and height of a frame in pixels, even.
        frames: Raw frames of each video.
        seed: Seed of the variations.
        root: Cache folder, with one folder per combination of settings and boxes.
        workers: Rendering processes. null uses one per CPU core.

    Raises:
        InputError: A setting is invalid, or boxes are missing or malformed.
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
        """Draw a test room with its real area, or a random variation of a room of another split."""
        is_test = split == "test"
        room = self.rooms[split][index if is_test else rng.integers(len(self.rooms[split]))]
        dataset, name = (room.dataset, room.name) if is_test else (DATASET, f"{split}_{index:05d}")
        scene, world_to_camera = draw_real_room(room, self.frames, varied=not is_test, rng=rng)
        K_px = draw_intrinsics(self.size, rng)
        return DrawnScene(dataset, name, scene, world_to_camera, K_px, partial(ask, scene, f"{dataset}-{name}"))
