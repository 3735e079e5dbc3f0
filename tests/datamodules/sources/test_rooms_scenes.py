"""Rooms as scenes: geometry, rendering, paths, and the truth of the answers, against slow references."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from datamodules.sources.rooms import layout
from datamodules.sources.rooms.layout import CATALOG, MOVERS
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
from tests.cases import each_once
from tests.datamodules.sources.rooms_reference import closest, look, quadrant

SIZE, FRAMES = 56, 48
K_PX = np.array([[35.0, 0, 28], [0, 35.0, 28], [0, 0, 1]])
KINDS = each_once(["loop", "local"], [False, True])  # paths, and whether a thing moves


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


def test_box_distance_is_exact() -> None:
    rng = np.random.default_rng(0)
    pairs = [(random_thing(rng), random_thing(rng)) for _ in range(60)]
    arrays = [
        np.array([getattr(pair[side], name) for pair in pairs])
        for side in (0, 1) for name in ("center", "size", "yaw")
    ]  # fmt: skip
    fast = box_distance(*arrays)
    slow = np.array([closest(a, b) for a, b in pairs])
    assert (slow < 1e-3).any() and (slow > 0.5).any()
    # to and fro converges slowly from above where the boxes touch or are nearly parallel
    assert np.all(fast <= slow + 1e-9) and np.all(slow - fast < 5e-3)
    unturned = box_distance(*arrays[:2], 0 * arrays[2], *arrays[3:])
    assert np.abs(unturned - slow).max() > 0.1  # the control


def test_point_distance_is_exact() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-2, 2, (50, 3))
    for _ in range(5):
        thing = random_thing(rng)
        fast = point_distance(points, np.array(thing.center), np.array(thing.size), thing.yaw)
        slow = [closest(Thing("", tuple(point), (0.0, 0.0, 0.0), 0.0, ()), thing) for point in points]
        np.testing.assert_allclose(fast, slow, atol=1e-9)


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


def test_frames_can_be_rendered_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
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


def consistent(depth: np.ndarray, poses: np.ndarray, step: int = 2) -> float:
    """Share of a frame's points that a later frame's depth has at the depth that the cameras predict."""
    rays = np.linalg.inv(K_PX) @ np.stack(
        [*np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5), np.ones((SIZE, SIZE))]
    ).reshape(3, -1)
    good = total = 0
    for first in range(0, FRAMES - step, 3):
        second = first + step
        points = np.concatenate([rays * depth[first].ravel(), np.ones((1, SIZE * SIZE))])
        x, y, z, _ = poses[second] @ np.linalg.inv(poses[first]) @ points
        ahead = z > 0.05
        pixel = np.floor(K_PX[:2] @ np.stack([x, y, z])[:, ahead] / z[ahead]).astype(int)
        inside = ((pixel >= 0) & (pixel < SIZE)).all(0)
        column, row = pixel[:, inside]
        expected, found = z[ahead][inside], depth[second][row, column]
        good += (np.abs(found - expected) < 0.04 * expected).sum()
        total += SIZE * SIZE
    return good / total


@pytest.mark.parametrize("path", ["loop", "local"])
def test_depth_reprojects_through_the_cameras(path: str) -> None:
    scores: dict[str, list[float]] = {"right": [], "inverted": [], "bigger": []}
    for index in range(4):
        _, poses = drawn(path, False, index)
        depth = rendered(path, False, index).depth.astype(float)
        scores["right"].append(consistent(depth, poses))
        scores["inverted"].append(consistent(depth, np.linalg.inv(poses)))
        scores["bigger"].append(consistent(1.5 * depth, poses))
    right, inverted, bigger = (float(np.mean(scores[name])) for name in ("right", "inverted", "bigger"))
    # the rest of the points leaves the picture or is hidden
    assert right > 0.6
    assert inverted < 0.5 * right  # camera-to-world in place of world-to-camera
    assert bigger < 0.8 * right  # not meters


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


def test_parts_fill_the_bounding_box() -> None:
    for category in (*CATALOG, *MOVERS):
        recipe = np.array([part[:6] for part in category.recipe], float)
        assert (recipe[:, ::2] < recipe[:, 1::2]).all(), category.name
        assert (recipe[:, ::2].min(0) == 0).all() and (recipe[:, 1::2].max(0) == 1).all(), category.name
        assert {part[6] for part in category.recipe} == set(range(len(category.colors))), category.name


@pytest.mark.parametrize(("path", "low", "high"), [("loop", 0.85, 1.0), ("local", -0.25, 0.25)])
def test_how_far_the_path_tells_the_size_of_the_room(path: str, low: float, high: float) -> None:
    areas, extents = [], []
    for index in range(50):
        scene, poses = layout.draw_scene(path, False, 24, np.random.default_rng([5, index]))
        eyes = centers(poses)
        extent = np.linalg.norm(eyes[:, None] - eyes, axis=-1).max()
        if path == "local":
            assert 0.3 - 0.08 < extent / 2 <= 0.8 * 1.01  # the height changes a little
        areas.append(scene.area)
        extents.append(extent)
    assert low < np.corrcoef(np.log(areas), np.log(extents))[0, 1] < high
    assert min(areas) < 8 and max(areas) > 40


def test_paths_are_uneven_and_come_back() -> None:
    still = back = 0
    for index in range(20):
        _, poses = drawn("loop", False, index)
        eyes = centers(poses)[:, :2]
        steps = np.linalg.norm(np.diff(eyes, axis=0), axis=1)
        still += (steps < 0.1 * steps.mean()).sum() >= 2
        assert steps.max() > 2 * np.median(steps)
        apart = np.linalg.norm(eyes[:, None] - eyes, axis=-1) + 10 * (
            np.abs(np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES))) < 6
        )
        back += apart.min() < 0.5 * steps.mean()
    assert still > 15 and back > 15


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
            "hard": quadrant(int(angle)),
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


def test_moving_things_move_and_are_asked_about() -> None:
    asked = 0
    for index in range(6):
        scene, _ = drawn("local", True, index)
        tracks = [np.array(thing.track) for thing in scene.things if thing.track]
        assert tracks and all(np.ptp(track[:, :2], axis=0).max() > 0.2 for track in tracks)
        names = {category.name for category in MOVERS}
        questions = ask(scene, "x", rendered("local", True, index).ids, np.random.default_rng(0))
        asked += any(name in question.question for question in questions for name in names)
        assert not any(thing.track for thing in drawn("local", False, index)[0].things)
    assert asked >= 2
