"""Stand-ins of real rooms: their areas, boxes and the 150 questions about the size of ARKitScenes' rooms."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules import VideoQADataModule
from datamodules.cameras_file import read_cameras
from datamodules.sources import RealRooms
from datamodules.sources.rooms import load_scene
from datamodules.sources.rooms import source as writer
from datamodules.sources.rooms.questions import things_distance
from datamodules.sources.rooms.real_rooms import CLEARANCE_M, RealRoom, bounds, draw_real_room, read_rooms
from datamodules.sources.rooms.renderer import SHELL
from datamodules.sources.rooms.scene import footprint, point_distance
from datamodules.video import Video
from zoo.errors import InputError

TINY = {"size": 16, "frames": 12, "workers": 1}


def box(center: tuple, size: tuple, yaw_deg: float = 0.0) -> dict:
    yaw = np.deg2rad(yaw_deg)
    axes = [np.cos(yaw), np.sin(yaw), 0, -np.sin(yaw), np.cos(yaw), 0, 0, 0, 1]
    corners = footprint(np.array(center), np.array(size), np.array(yaw))
    half = size[2] / 2
    low, high = [*corners.min(0), center[2] - half], [*corners.max(0), center[2] + half]
    return {"centroid": list(center), "axesLengths": list(size), "normalizedAxes": axes, "min": low, "max": high}


def scene(area: float, turn_deg: float = 30.0) -> dict:
    """A bed, two chairs and a thing without a recipe, in a room that stands askew in its world."""
    turn = np.deg2rad(turn_deg)
    to_world = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])

    def at(x: float, y: float, z: float, size: tuple, yaw_deg: float = 0.0) -> dict:
        plan = to_world @ [x, y] + [3.0, -7.0]
        return box((*plan.tolist(), z), size, yaw_deg + turn_deg)

    boxes = {
        "bed": [at(-1.0, 0.0, -0.6, (2.0, 1.6, 0.8))],
        "chair": [at(1.5, 1.0, -0.55, (0.5, 0.5, 0.9)), at(1.5, -1.0, -0.55, (0.5, 0.5, 0.9), 90)],
        "cup": [at(-1.0, 0.2, -0.1, (0.1, 0.1, 0.12))],
    }
    return {"room_size": area, "object_bbox": boxes}


@pytest.fixture
def meta_info(tmp_path: Path) -> Path:
    folder = tmp_path / "meta_info"
    folder.mkdir()
    for dataset, areas in (("arkitscenes", (12.34, 25.0)), ("scannet", range(10, 20))):
        scenes = {f"{dataset}{i}": scene(float(area), 7.0 * i) for i, area in enumerate(areas)}
        (folder / f"{dataset}_meta_info_val.json").write_text(json.dumps(scenes))
    return folder


def sources(meta_info: Path, tmp_path: Path, **settings) -> RealRooms:
    return RealRooms(str(meta_info), train=("scannet",), root=str(tmp_path / "cache"), **(TINY | settings))


def test_boxes_stand_along_the_room(meta_info):
    rooms = read_rooms(meta_info)
    assert len(rooms) == 12
    assert (rooms[0].dataset, rooms[0].name, rooms[0].area) == ("arkitscenes", "arkitscenes0", 12.34)
    for room in rooms:  # each was turned by another angle
        assert room.categories == ("bed", "chair", "chair", "cup")
        quarter = np.pi / 2
        np.testing.assert_allclose(room.yaws / quarter, np.round(room.yaws / quarter), atol=1e-9)
        low, high = bounds(room)
        np.testing.assert_allclose(np.sort(high - low), [2.5, 3.75], atol=1e-9)
    distances = [np.linalg.norm(room.centers[0] - room.centers[1]) for room in rooms]
    np.testing.assert_allclose(distances, np.linalg.norm([2.5, 1.0, 0.05]))  # turning moves nothing


@pytest.mark.parametrize("index", [0, 3])
def test_a_stand_in_has_the_area_and_the_things(meta_info, index):
    room = read_rooms(meta_info)[index]
    drawn, poses = draw_real_room(room, 24, False, np.random.default_rng(index))
    assert drawn.area == pytest.approx(room.area)
    assert [thing.category for thing in drawn.things] == ["bed", "chair", "chair", "cup"]
    for thing, size in zip(drawn.things, room.sizes, strict=True):
        assert sorted(thing.size) == pytest.approx(sorted(size))
        corners = footprint(np.array(thing.center), np.array(thing.size), np.array(thing.yaw))
        assert (np.abs(corners) <= np.array(drawn.size[:2]) / 2 + 1e-9).all()
        assert thing.center[2] - thing.size[2] / 2 >= 0 and thing.center[2] + thing.size[2] / 2 <= drawn.size[2]
    bed, chair, _, cup = drawn.things
    assert bed.center[2] - bed.size[2] / 2 == pytest.approx(0)  # what stands lowest stands on the floor
    assert bed.size[1] == pytest.approx(2.0)  # a bed is longer than it is wide
    assert cup.center[2] == pytest.approx(0.9)
    real = np.linalg.norm(room.centers[0, :2] - room.centers[1, :2])
    assert np.linalg.norm(np.subtract(bed.center[:2], chair.center[:2])) == pytest.approx(real, abs=0.35)
    eyes = np.linalg.inv(poses @ np.linalg.inv(drawn.room_from_world()))[:, :3, 3]
    for thing in drawn.things:
        assert point_distance(eyes, np.array(thing.center), np.array(thing.size), thing.yaw).min() > CLEARANCE_M


def test_things_in_the_way_or_too_large_are_removed():
    def room(size: tuple) -> RealRoom:
        return RealRoom("d", "n", 25.0, ("closet",), np.array([[0.0, 0, 1]]), np.array([size]), np.zeros(1))

    def left(size: tuple) -> int:
        draws = (draw_real_room(room(size), 24, False, np.random.default_rng(seed)) for seed in range(8))
        return max(len(scene.things) for scene, _ in draws)

    assert left((1.0, 0.6, 2.0)) == 1  # negative control
    assert left((4.5, 4.5, 2.0)) == 0  # nowhere to walk
    assert left((9.0, 0.6, 2.0)) == 0  # longer than the room
    empty = RealRoom("d", "n", 9.0, (), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    assert draw_real_room(empty, 24, True, np.random.default_rng(0))[0].things == ()


def test_variations_stay_near_and_differ(meta_info):
    room = read_rooms(meta_info)[0]
    drawn = [draw_real_room(room, 12, True, np.random.default_rng(i))[0] for i in range(12)]
    areas = np.array([scene.area for scene in drawn])
    assert areas.std() > 0.5 and (np.abs(np.log(areas / room.area)) <= 0.3).all()
    for scene in drawn:  # all grows alike: the gap between bed and cup with the rest
        bed, cup = scene.things[0], scene.things[-1]
        scale = np.sqrt(scene.area / room.area)
        assert bed.size[1] == pytest.approx(2.0 * scale)
        assert things_distance(bed, cup) < 0.3
    # mirrored and turned: the chairs are on any side of the bed
    sides = {tuple(np.sign(np.subtract(s.things[1].center[:2], s.things[0].center[:2]))) for s in drawn}
    assert len(sides) > 2


def test_splits_on_disk(meta_info, tmp_path):
    source = sources(meta_info, tmp_path, scenes=(3, 2))
    source.prepare()
    names = {split: [scene.name for scene in source.scenes(split)] for split in ("train", "val", "test")}
    assert names == {
        "train": [f"layouts/train_0000{i}" for i in range(3)],
        "val": [f"layouts/val_0000{i}" for i in range(2)],
        "test": ["arkitscenes/arkitscenes0", "arkitscenes/arkitscenes1"],
    }
    for scene in source.scenes("test"):
        video = Video(scene.video)
        assert (video.num_frames, video.height) == (12, 16)
        assert scene.cameras is not None and len(read_cameras(scene.cameras, 12, 16, 16)[0]) == 12
        assert scene.depth is not None and load_scene(scene.depth).area > 0
    sizes = [scene.questions[0].ground_truth for scene in source.scenes("test")]
    assert sizes == ["12.3", "25.0"]
    held_out = {room.name for room in source.rooms["val"]}
    assert held_out == {"scannet0", "scannet5"} and not held_out & {room.name for room in source.rooms["train"]}

    assert sources(meta_info, tmp_path, scenes=(3, 2)).folder == source.folder
    file = meta_info / "scannet_meta_info_val.json"
    file.write_text(file.read_text().replace("0.12", "0.13"))
    assert sources(meta_info, tmp_path, scenes=(3, 2)).folder != source.folder  # other boxes, another folder


WRONG = {
    "no boxes of mine in": {"train": ("mine",)},
    "arkitscenes can't be used for both training and test": {"train": ("arkitscenes",)},
    "scenes are two counts": {"scenes": (-1, 1)},
    "no real room for the train split": {"train": ()},
    "size 17 must be even": {"size": 17},
}


@pytest.mark.parametrize("reason", WRONG)
def test_invalid_settings(reason, meta_info, tmp_path):
    settings = {"train": ("scannet",), "root": str(tmp_path)} | TINY | WRONG[reason]
    with pytest.raises(InputError, match=reason):
        RealRooms(str(meta_info), **settings)
    with pytest.raises(InputError, match=r"gone: no \*_meta_info_val.json: get data/meta_info"):
        RealRooms(str(tmp_path / "gone"))
    (meta_info / "scannet_meta_info_val.json").write_text('{"scene0000_00": {"room_size": 3}}')
    with pytest.raises(InputError, match=r"scannet_meta_info_val\.json: not the room sizes and boxes.*object_bbox"):
        RealRooms(str(meta_info))


@pytest.mark.slow
def test_the_150_questions_about_the_size_of_arkitscenes_rooms(realdata, tmp_path, monkeypatch):
    """Asked of stand-ins, which are not rendered here, word for word and with the same answers as of the videos."""

    def walls(scene, poses, K_px, height, width):
        return SimpleNamespace(rgb=None, ids=np.full((len(poses), height, width), SHELL, np.int16))

    monkeypatch.setattr(writer, "render", walls)
    monkeypatch.setattr(writer, "write_video", lambda path, _: path.touch())
    source = RealRooms(str(realdata / "meta_info"), scenes=(2, 1), root=str(tmp_path), **TINY)
    source.prepare()
    data = VideoQADataModule(source, datasets=["arkitscenes"], question_types=["room_size_estimation"])
    asked = {scene.name: (q.question, q.ground_truth) for scene in data.scenes("test") for q in scene.questions}
    rows = [json.loads(line) for line in (realdata / "vsibench/arkitscenes_room_size.jsonl").open()]
    real = {f"arkitscenes/{row['scene_name']}": (row["question"], row["ground_truth"]) for row in rows}
    assert asked == real and len(asked) == 150
