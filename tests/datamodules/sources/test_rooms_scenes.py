"""Rooms as scenes: geometry, rendering, paths, and the truth of the answers, against slow references."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from datamodules.sources.rooms import layout
from datamodules.sources.rooms.questions import GLIMPSE_SHARE, SEEN_SHARE, ask, direction
from datamodules.sources.rooms.renderer import SHELL, Rendering, render
from datamodules.sources.rooms.scene import (
    RoomScene,
    Thing,
    box_distance,
    footprint,
    load_scene,
    point_distance,
    save_scene,
)


def turned(yaw: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def all_boxes(scene: RoomScene, frame: int) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(thing, center, axes as columns, size) of every part, in the world."""
    to_world = turned(scene.yaw)
    boxes = []
    for number, thing in enumerate(scene.things):
        center, yaw = np.array(thing.center), thing.yaw
        if thing.track:
            x, y, yaw = thing.track[frame]
            center = np.array([x, y, thing.center[2]])
        axes = turned(yaw)
        for part in thing.parts:
            where = to_world @ (center + axes @ np.array(part.center)) + np.array(scene.origin)
            boxes.append((number, where, to_world @ axes, np.array(part.size)))
    return boxes


def look(
    scene: RoomScene, frame: int, world_to_camera: np.ndarray, K_px: np.ndarray, column: int, row: int
) -> tuple[float, int]:
    """(depth, thing or -1) through the center of a pixel, by testing all faces of all boxes."""
    ray = np.linalg.inv(K_px) @ [column + 0.5, row + 0.5, 1]
    rotation, shift = world_to_camera[:3, :3], world_to_camera[:3, 3]
    start, along = -rotation.T @ shift, rotation.T @ ray
    room_axes = turned(scene.yaw)
    middle = np.array(scene.origin) + [0, 0, scene.size[2] / 2]
    best, seen = min(faces(start, along, middle, room_axes, np.array(scene.size))), -1
    for number, center, axes, size in all_boxes(scene, frame):
        hits = faces(start, along, center, axes, size)
        if hits and min(hits) < best:
            best, seen = min(hits), number
    return best, seen


def faces(start: np.ndarray, along: np.ndarray, center: np.ndarray, axes: np.ndarray, size: np.ndarray) -> list[float]:
    """Where a ray goes through the six faces of a box, ahead of its start."""
    hits = []
    for axis in range(3):
        for sign in (-1, 1):
            normal = axes[:, axis]
            on_face = center + sign * size[axis] / 2 * normal
            length = (on_face - start) @ normal / (along @ normal)
            point = axes.T @ (start + length * along - center)
            others = [other for other in range(3) if other != axis]
            if length > 1e-3 and all(abs(point[other]) <= size[other] / 2 for other in others):
                hits.append(length)
    return hits


def closest(a: Thing, b: Thing, rounds: int = 3000) -> float:
    """Distance of two bounding boxes by projecting to and fro between them: converges for convex sets."""
    point = np.array(a.center)
    for _ in range(rounds):
        other = into(b, point)
        again = into(a, other)
        if np.abs(again - point).max() < 1e-12:
            break
        point = again
    return float(np.linalg.norm(into(b, point) - point))


def into(thing: Thing, point: np.ndarray) -> np.ndarray:
    """The point of a thing's bounding box nearest to a point."""
    axes, half = turned(thing.yaw), np.array(thing.size) / 2
    return np.array(thing.center) + axes @ np.clip(axes.T @ (point - np.array(thing.center)), -half, half)


SIZE, FRAMES = 56, 48
K_PX = np.array([[35.0, 0, 28], [0, 35.0, 28], [0, 0, 1]])
KINDS = [("loop", True), ("local", False)]  # paths, and whether a thing moves


@cache
def drawn(path: str, moving: bool, index: int = 0) -> tuple[RoomScene, np.ndarray]:
    return layout.draw_scene(path, moving, FRAMES, np.random.default_rng([3, index]))


@cache
def rendered(path: str, moving: bool, index: int = 0) -> Rendering:
    scene, poses = drawn(path, moving, index)
    return render(scene, poses, K_PX, SIZE, SIZE)


def centers(poses: np.ndarray) -> np.ndarray:
    return np.linalg.inv(poses)[:, :3, 3]


def random_thing(rng: np.random.Generator) -> Thing:
    size = np.exp(rng.uniform(-2, 1, 3))
    return Thing("", tuple(rng.uniform(-1.5, 1.5, 3)), tuple(size), float(rng.uniform(-4, 4)), ())


def test_distances_of_boxes_and_points_are_exact() -> None:
    rng = np.random.default_rng(0)
    pairs = [(random_thing(rng), random_thing(rng)) for _ in range(60)]
    arrays = [
        np.array([getattr(pair[side], name) for pair in pairs]) for side in (0, 1) for name in ("center", "size", "yaw")
    ]
    fast = box_distance(*arrays)
    slow = np.array([closest(a, b) for a, b in pairs])
    assert (slow < 1e-3).any() and (slow > 0.5).any()
    # to and fro converges slowly from above where the boxes touch or are nearly parallel
    assert np.all(fast <= slow + 1e-9) and np.all(slow - fast < 5e-3)
    unturned = box_distance(*arrays[:2], 0 * arrays[2], *arrays[3:])
    assert np.abs(unturned - slow).max() > 0.1  # the control
    points, thing = rng.uniform(-2, 2, (50, 3)), random_thing(rng)
    fast = point_distance(points, np.array(thing.center), np.array(thing.size), thing.yaw)
    np.testing.assert_allclose(fast, np.linalg.norm([into(thing, point) - point for point in points], axis=1))


@pytest.mark.parametrize(("path", "moving"), KINDS)
def test_rendering_equals_the_slow_reference(path: str, moving: bool) -> None:
    scene, poses = drawn(path, moving)
    image = rendered(path, moving)
    assert {SHELL, 0} < set(np.unique(image.ids)) | {0}
    rng = np.random.default_rng(0)
    disagree = 0
    for frame, row, column in zip(*(rng.integers(0, n, 80) for n in (FRAMES, SIZE, SIZE)), strict=True):
        depth, seen = look(scene, int(frame), poses[frame], K_PX, int(column), int(row))
        same = image.ids[frame, row, column] == seen
        disagree += not (same and abs(image.depth[frame, row, column] - depth) < 1e-4 * depth)
    assert disagree <= 1  # a ray may graze an edge


def test_frames_can_be_rendered_alone(tmp_path: Path) -> None:
    scene, poses = drawn("loop", True)
    save_scene(scene, tmp_path / "a.scene.json")
    assert load_scene(tmp_path / "a.scene.json") == scene
    every = rendered("loop", True)

    def frozen(frames: list[int]) -> np.ndarray:
        """Object ids of these views if everything stood where it was at the start."""
        return render(scene, poses[frames], K_PX, SIZE, SIZE, [0] * len(frames)).ids

    moved = [t for t in range(FRAMES) if (frozen([t]) != every.ids[[t]]).any()]
    picked = [moved[-1], 3, 3]
    alone = render(scene, poses[picked], K_PX, SIZE, SIZE, picked)
    for name in ("rgb", "depth", "ids"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(every, name)[picked])
    assert (frozen(picked) != alone.ids).any()  # the control: what moves is elsewhere


@pytest.mark.parametrize(("path", "moving"), KINDS)
def test_no_collisions(path: str, moving: bool) -> None:
    for index in range(8):
        scene, poses = drawn(path, moving, index)
        eyes = centers(poses @ np.linalg.inv(scene.room_from_world()))
        assert (np.abs(eyes[:, :2]) < np.array(scene.size[:2]) / 2 - 0.05).all()
        assert (eyes[:, 2] > 0.3).all() and (eyes[:, 2] < scene.size[2] - 0.1).all()
        for thing in scene.things:
            box = np.array(thing.center), np.array(thing.size)
            corners = footprint(*box, np.array(thing.yaw))
            assert (np.abs(corners) <= np.array(scene.size[:2]) / 2).all()
            assert thing.center[2] + thing.size[2] / 2 <= scene.size[2]
            if not thing.track:
                assert point_distance(eyes, *box, thing.yaw).min() > 0.1
        places = [np.array([[thing.center[0], thing.center[1], thing.yaw]] * FRAMES) if not thing.track
                  else np.array(thing.track) for thing in scene.things]  # fmt: skip
        for number, (thing, place) in enumerate(zip(scene.things, places, strict=True)):
            for other, there in zip(scene.things[:number], places, strict=False):
                boxes = []
                for item, where in ((thing, place), (other, there)):
                    height = np.full((FRAMES, 1), item.center[2])
                    boxes += [np.hstack([where[:, :2], height]), np.tile(item.size, (FRAMES, 1)), where[:, 2]]
                assert (box_distance(*boxes) > 0).all()


def test_frames_say_nothing_of_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    images, areas = {}, {}
    for path in ("loop", "local"):
        for unit in (0.7, 1.4):
            monkeypatch.setattr(layout, "SCALE", (unit, unit))
            scene, poses = layout.draw_scene(path, True, FRAMES, np.random.default_rng(11))
            images[path, unit] = render(scene, poses[::8], K_PX, SIZE, SIZE, range(0, FRAMES, 8)).rgb.astype(int)
            areas[path, unit] = scene.area
    assert areas["loop", 1.4] == pytest.approx(4 * areas["loop", 0.7])
    changed = {path: (np.abs(images[path, 0.7] - images[path, 1.4]).max(-1) > 2).mean() for path in ("loop", "local")}
    assert changed["loop"] < 0.002
    assert changed["local"] > 0.1  # the control: there the radius is in meters


@pytest.mark.parametrize(("path", "moving"), KINDS)
def test_answers_are_true(path: str, moving: bool) -> None:
    kinds = set()
    for index in range(6):
        scene, _ = drawn(path, moving, index)
        ids = rendered(path, moving, index).ids
        for question in ask(scene, "x", ids, np.random.default_rng(index)):
            kinds.add(question.question_type)
            check(question.question_type, question.question, question.ground_truth, question.options, scene, ids)
    assert len(kinds) == 9


def check(kind, text, truth, options, scene, ids) -> None:  # type: ignore[no-untyped-def]
    groups: dict[str, list[Thing]] = {}
    for thing in scene.things:
        groups.setdefault(thing.category, []).append(thing)
    moving = {thing.category for thing in scene.things if thing.track}
    answer = options["ABCD".index(truth)][3:] if options else truth
    if kind == "obj_appearance_order":
        names = text.split("video: ")[1][:-1].split(", ")
        first = {}
        for frame in range(FRAMES):
            for name in names:
                covered = [int((ids[frame] == i).sum()) for i, t in enumerate(scene.things) if t.category == name]
                if max(covered) > SEEN_SHARE * SIZE * SIZE:
                    first.setdefault(name, frame)
        order = sorted(names, key=first.__getitem__)
        assert answer == ", ".join(order)
        assert sorted(options, key=lambda option: option[0]) == list(options) and len(set(options)) == 4
        for before, after in zip(order, order[1:], strict=False):
            assert first[before] + 2 <= first[after]
            early = ids[: first[before] + 2]
            for i, thing in enumerate(scene.things):
                if thing.category == after:
                    assert (early == i).sum((1, 2)).max() <= GLIMPSE_SHARE * SIZE * SIZE
        return
    asked = [name for name in groups if f"the {name} " in text or f"the {name}?" in text or f"the {name}," in text]
    assert not moving & set(asked)
    if kind == "room_size_estimation":
        assert truth == f"{scene.size[0] * scene.size[1]:.1f}"
    elif kind == "object_counting":
        assert int(truth) == len(groups[text.split("many ")[1].split("(s)")[0]]) >= 2
    elif kind == "object_size_estimation":
        (thing,) = groups[text.split(") of the ")[1].split(",")[0]]
        assert abs(int(truth) - 100 * max(thing.size)) <= 0.5
    elif kind == "object_abs_distance":
        a, b = text.split("between the ")[1].split(" (in")[0].split(" and the ")
        assert abs(float(truth) - closest(*groups[a], *groups[b])) < 0.055
    elif kind == "object_rel_distance":
        names = text.split("objects (")[1].split(")")[0].split(", ")
        (target,) = groups[text.split("closest to the ")[1][:-1]]
        assert names == [option[3:] for option in options]
        assert answer == min(names, key=lambda name: min(closest(target, thing) for thing in groups[name]))
    else:
        names = text.split("by the ")[1].replace(" and facing the ", "|").replace(", is the ", "|").split("|")
        names[2] = names[2].split(" to ")[0]
        standing, facing, there = (np.array(groups[name][0].center[:2]) for name in names)
        assert all(len(groups[name]) == 1 for name in names)
        turns = [np.rad2deg(np.arctan2(*(point - standing)[::-1])) for point in (facing, there)]
        angle = (turns[1] - turns[0]) % 360
        level = kind.rsplit("_", 1)[1]
        left = "left" if angle < 180 else "right"
        expected = {
            "easy": left,
            "medium": "back" if 135 < angle < 225 else left,
            "hard": ("front-left", "back-left", "back-right", "front-right")[int(angle) % 360 // 90],
        }
        assert answer == expected[level]


def test_directions_near_a_border_are_not_asked() -> None:
    for level, borders in (("easy", (0, 180)), ("medium", (0, 135, -135)), ("hard", (0, 90, -90, 180))):
        for border in borders:
            for offset in (-10, 0, 10):
                assert direction(np.deg2rad((border + offset + 180) % 360 - 180), level) is None
    assert direction(np.deg2rad(40.0), "hard") == "front-left"
    assert direction(np.deg2rad(-110.0), "hard") == "back-right"
    assert direction(np.deg2rad(40.0), "medium") == "left"
    assert direction(np.deg2rad(-150.0), "medium") == "back"
