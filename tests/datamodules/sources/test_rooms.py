"""Rooms as a dataset: what lies on disk, written once, whole or not at all, and asked as the real questions."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.cameras_file import read_cameras
from datamodules.scenes import Scene
from datamodules.sources.base import SPLITS
from datamodules.sources.rooms import Rooms, read_scene, render, render_depth
from datamodules.sources.rooms import questions as wording
from datamodules.sources.rooms.questions import direction, relative_angle, things_distance
from datamodules.sources.rooms.scene import Thing
from datamodules.video import Video
from zoo.files.ownership import partial_of

SMALL = {"scenes": (3, 1, 1), "workers": 1}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Rooms:
    made = Rooms(root=str(tmp_path_factory.mktemp("rooms")), **SMALL)
    made.prepare()
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def description(scene: Scene) -> Path:
    return scene.video.with_suffix(".scene.json")


def test_the_layout_reads_back(rooms: Rooms) -> None:
    ids = set()
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        scenes = rooms.scenes(split)
        assert [scene.name for scene in scenes] == [f"rooms/{split}_{index:05d}" for index in range(count)]
        for scene in scenes:
            video = Video(scene.video)
            assert (video.num_frames, video.height, video.width) == (48, 56, 56)
            assert scene.cameras is not None
            poses, intrinsics = read_cameras(scene.cameras, 48, 56, 56)
            assert torch.allclose(intrinsics[0, :2, 2], torch.zeros(2, dtype=torch.float64))
            assert len(poses) == 48
            assert scene.questions[0].question_type == "room_size_estimation"
            assert 5 <= len(scene.questions) <= 12
            ids |= {question.id for question in scene.questions}
    assert rooms.missing == {}
    assert "rooms-loop-train-00000-00" in ids
    assert len(ids) == sum(len(s.questions) for split in SPLITS for s in rooms.scenes(split))


def test_a_scene_depends_on_seed_split_and_index_only(rooms: Rooms, tmp_path: Path) -> None:
    other = Rooms(root=str(tmp_path), scenes=(2, 0, 1), workers=2)
    other.prepare()
    mine, theirs = files(rooms.folder), files(other.folder)
    same = [name for name in theirs if name.startswith("rooms/")]
    assert len(same) == 3 * 3
    assert all(mine[name] == theirs[name] for name in same)
    assert mine["train.jsonl"].startswith(theirs["train.jsonl"]) and theirs["train.jsonl"]
    assert other.scenes("val") == []

    reseeded = Rooms(root=str(tmp_path), scenes=(1, 0, 1), workers=1, seed=1)
    reseeded.prepare()
    changed = {name: content for name, content in files(reseeded.folder).items() if name.startswith("rooms/")}
    assert len(changed) == 2 * 3 and all(theirs[name] != content for name, content in changed.items())


def test_the_video_shows_what_was_rendered(rooms: Rooms) -> None:
    for scene in rooms.scenes("train"):
        shown = Video(scene.video).read(list(range(48))).permute(0, 2, 3, 1).numpy().astype(float)
        rendered = render(*read_scene(description(scene))).rgb.astype(float)
        assert np.abs(shown - rendered).mean() < 5  # of 255: H.264 and half the color's resolution
        assert np.abs(shown - rendered).mean((1, 2, 3)).max() < 12
        assert np.abs(shown - rendered[::-1]).mean() > 15  # the control: other frames are far
        depth = render(*read_scene(description(scene), [40, 3])).depth
        assert np.array_equal(render_depth(description(scene), [40, 3]), depth)


def test_every_setting_has_its_folder_of_a_stable_name(tmp_path: Path) -> None:
    """The folder's name is a digest of the version and all settings: it may not change by itself."""
    root = str(tmp_path)
    variants = [
        Rooms(root=root), Rooms(trajectory="local", root=root), Rooms(dynamic_objects=True, root=root),
        Rooms(seed=1, root=root),
        Rooms(scenes=(1, 1, 1), root=root), Rooms(size=64, root=root), Rooms(frames=64, root=root),
    ]  # fmt: skip
    assert len({variant.folder for variant in variants}) == len(variants)
    assert Rooms(root=root, workers=7).folder == variants[0].folder
    assert variants[0].folder.name == "0d5bdb8ce6597589"
    local = Rooms(root=root, trajectory="local", dynamic_objects=True, scenes=(3, 1, 1))
    assert local.folder.name == "0093b8520469d8dc"


def prepare(root: Path, scenes: int) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    Rooms(scenes=(scenes, 1, 1), root=str(root), workers=2).prepare()


def start(root: Path, scenes: int) -> BaseProcess:
    started = multiprocessing.get_context("fork").Process(target=prepare, args=(root, scenes))
    started.start()
    return started


def test_a_killed_process_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = Rooms(scenes=(200, 1, 1), root=str(tmp_path), workers=2)
    unfinished = partial_of(rooms.folder)
    process = start(tmp_path, 200)
    while not list(unfinished.glob("rooms/*.scene.json")):
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not rooms.folder.exists() and unfinished.exists()
    with pytest.raises(FileNotFoundError, match="prepare"):
        rooms.scenes("train")
    monkeypatch.setattr(Rooms, "write_scene", lambda *_: "{}\n")
    rooms.workers = 1
    rooms.prepare()  # gets the lock: the workers ended as well
    assert not unfinished.exists()
    assert not list(rooms.folder.glob("rooms/*"))  # nothing of the first attempt


@pytest.mark.slow
def test_concurrent_processes_render_once(tmp_path: Path) -> None:
    processes = [start(tmp_path, 3) for _ in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    rooms = Rooms(scenes=(3, 1, 1), root=str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in rooms.folder.rglob("*")}
    rooms.prepare()
    assert {path: path.stat().st_mtime_ns for path in rooms.folder.rglob("*")} == before
    visible = [name for name in os.listdir(tmp_path) if not name.startswith(".")]
    assert visible == [rooms.folder.name]
    assert len(rooms.scenes("train")) == 3
    assert len(files(rooms.folder)) == 5 * 3 + 4


def test_invalid_settings_and_damaged_scene_files(rooms: Rooms, tmp_path: Path) -> None:
    for wrong in (
        *({"scenes": (1, -1, 1)}, {"scenes": (1, 2)}, {"size": 57}, {"size": 8}, {"frames": 3}, {"seed": -1}),
        *({"workers": -2}, {"trajectory": "around"}),
    ):
        with pytest.raises((ValueError, TypeError), match="Rooms"):  # TypeError if types are checked at run time
            Rooms(root=str(tmp_path), **wrong)
    path, broken = description(rooms.scenes("train")[0]), tmp_path / "a.scene.json"
    with pytest.raises(ValueError, match="scene.json: there is no frame 48"):
        read_scene(path, [0, 48])
    broken.write_text(path.read_text()[:1000])
    with pytest.raises(ValueError, match="a.scene.json: not a scene"):
        read_scene(broken)


# ---- beside the real questions


def real_questions(realdata: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (realdata / "vsibench/test.jsonl").open()]


def real_boxes(realdata: Path) -> dict[str, dict[str, Any]]:
    """Scene name -> category -> its boxes."""
    scenes: dict[str, dict[str, Any]] = {}
    for file in sorted((realdata / "meta_info").glob("*.json")):
        scenes |= {name: scene["object_bbox"] for name, scene in json.loads(file.read_text()).items()}
    return scenes


TEMPLATES = {
    "room_size_estimation": wording.ROOM, "object_counting": wording.COUNT,
    "object_size_estimation": wording.SIZE, "object_abs_distance": wording.DISTANCE,
    "object_rel_distance": wording.NEAREST, "object_rel_direction_easy": wording.EASY,
    "object_rel_direction_medium": wording.MEDIUM, "object_rel_direction_hard": wording.HARD,
    "obj_appearance_order": wording.ORDER,
}  # fmt: skip
NUMBERS = {
    "room_size_estimation": r"\d+\.\d", "object_counting": r"\d+",
    "object_size_estimation": r"\d+", "object_abs_distance": r"\d+\.\d",
}  # fmt: skip


def pattern(kind: str) -> re.Pattern[str]:
    return re.compile(re.escape(TEMPLATES[kind]).replace(r"\{\}", "([a-z, ]+)"))


def test_worded_as_the_real_questions(rooms: Rooms, realdata: Path) -> None:
    real = real_questions(realdata)
    assert {row["question_type"] for row in real} == TEMPLATES.keys() | {"route_planning"}
    for row in real:
        kind, options = row["question_type"], row["options"] or []
        if kind == "route_planning":
            continue
        assert pattern(kind).fullmatch(row["question"]), row
        if kind in NUMBERS and kind != "room_size_estimation":
            assert re.fullmatch(NUMBERS[kind], row["ground_truth"])
        if "direction" in kind:
            texts = {option[3:] for option in options}
            assert texts == set(wording.DIRECTIONS[kind.rsplit("_", 1)[1]])
    assert not pattern("object_abs_distance").fullmatch(wording.SIZE)  # the control

    choices = {row["question_type"]: len(row["options"] or []) for row in real}
    for split in SPLITS:
        for scene in rooms.scenes(split):
            for question in scene.questions:
                kind = question.question_type
                assert pattern(kind).fullmatch(question.question)
                assert len(question.options) == choices[kind]
                assert [option[:3] for option in question.options] == ["A. ", "B. ", "C. ", "D. "][: choices[kind]]
                answers = NUMBERS.get(kind, "[" + "ABCD"[: choices[kind]] + "]")
                assert re.fullmatch(answers, question.ground_truth)


def test_directions_agree_with_the_real_questions(realdata: Path) -> None:
    boxes = real_boxes(realdata)
    agree = asked = 0
    for row in real_questions(realdata):
        if "direction" not in row["question_type"]:
            continue
        kind, options = row["question_type"], row["options"]
        match = pattern(kind).fullmatch(row["question"])
        assert match
        scene = boxes[row["scene_name"]]
        if not all(name in scene for name in match.groups()):
            continue
        things = [
            Thing(name, tuple(scene[name][0]["centroid"]), (1.0, 1.0, 1.0), 0.0, ()) for name in match.groups()[:3]
        ]
        answer = direction(relative_angle(*things), kind.rsplit("_", 1)[1])
        asked += answer is not None
        agree += answer == options["ABCD".index(row["ground_truth"])][3:]
    assert asked > 800
    assert agree == asked


def test_distances_agree_with_the_real_questions(realdata: Path) -> None:
    boxes = real_boxes(realdata)
    ours, theirs = [], []
    for row in real_questions(realdata):
        match = pattern("object_abs_distance").fullmatch(row["question"])
        scene = boxes[row["scene_name"]]
        if match and all(name in scene for name in match.groups()):
            ours.append(things_distance(*(upright(scene[name][0]) for name in match.groups())))
            theirs.append(float(row["ground_truth"]))
    assert len(ours) > 800
    difference = np.abs(np.subtract(ours, theirs))  # theirs are between sampled points, to one decimal
    assert np.median(difference) < 0.06 and np.percentile(difference, 99) < 0.3


def upright(box: dict) -> Thing:
    """A real box as a thing: the axis that points up becomes z."""
    axes, lengths = np.array(box["normalizedAxes"]).reshape(3, 3), np.array(box["axesLengths"])
    up = int(np.abs(axes[:, 2]).argmax())
    first, second = (axis for axis in range(3) if axis != up)
    yaw = float(np.arctan2(axes[first, 1], axes[first, 0]))
    return Thing("", tuple(box["centroid"]), tuple(lengths[[first, second, up]].tolist()), yaw, ())
