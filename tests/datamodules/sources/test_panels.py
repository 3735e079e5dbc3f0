"""Rooms with panels: exact answers of which cameras and text say nothing, and panels that are seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import (
    FrameSampler,
    PanelAnywhere,
    PanelDirection,
    PanelDistance,
    PanelDwelling,
    PanelGlimpse,
    PanelIntrinsics,
    PanelKnownSize,
    PanelMotion,
    PanelOrder,
    PanelPairs,
    PanelParallax,
    PanelRooms,
    PanelRotation,
    PanelTask,
    PanelTranslation,
    PanelTurn,
    PanelTwoViews,
    PoseFarthestSampler,
    SceneView,
    UniformSampler,
    VideoQADataModule,
)
from datamodules.cameras_file import read_cameras
from datamodules.sources.rooms import Rendering, load_scene, read_scene, render
from datamodules.sources.rooms.layout import look
from datamodules.sources.rooms.panel_layout import HALL_M
from datamodules.sources.rooms.panel_tasks import PanelScene
from datamodules.sources.rooms.scene import RoomScene, Thing
from datamodules.sources.rooms.source import draw_intrinsics
from datamodules.video import Video
from zoo.benchmarks import PanelBench
from zoo.errors import InputError

FRAMES = 16
TASKS = (
    *(PanelDistance, PanelTranslation, PanelPairs, PanelRotation, PanelTurn, PanelDirection, PanelMotion),
    *(PanelDwelling, PanelIntrinsics, PanelOrder, PanelParallax, PanelKnownSize, PanelAnywhere, PanelTwoViews),
)


class OwnBench(PanelBench):
    """A benchmark with a question type of a user's."""

    numeric_types = (*PanelBench.numeric_types, "my_distance")


class OwnTask(PanelDistance):
    """A task of a user's."""

    question_type = "my_distance"
    benchmark = OwnBench()


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> PanelRooms:
    made = PanelRooms(root=str(tmp_path_factory.mktemp("panels")), scenes=(6, 1, 2), workers=1)
    made.prepare()
    return made


def draw(task: PanelTask, seed: int, fov: tuple[float, float] = (90.0, 110.0)) -> tuple[PanelScene, np.ndarray]:
    """A scene, and its intrinsics in pixels."""
    rng = np.random.default_rng(seed)
    K_px = draw_intrinsics(56, rng, fov)
    return task.draw(FRAMES, K_px, rng), K_px


def to_world(room: RoomScene, thing: Thing) -> np.ndarray:
    """The center of a thing in the world."""
    return (np.linalg.inv(room.room_from_world()) @ [*thing.center, 1.0])[:3]


def centers(world_to_camera: np.ndarray) -> np.ndarray:
    """Camera centers."""
    return np.linalg.inv(world_to_camera)[:, :3, 3]


def rendered(scene: PanelScene, K_px: np.ndarray, size: int = 56) -> Rendering:
    return render(scene.room, scene.camera_from_room @ scene.room.room_from_world(), K_px, size, size)


def test_the_answer_is_the_distance_in_the_written_files(rooms: PanelRooms) -> None:
    for scene in rooms.scenes("train"):
        (question,) = scene.questions
        room, poses = load_scene(scene.depth), read_cameras(scene.cameras, FRAMES, 56, 56)[0].numpy()
        (panel,) = room.things
        distances = np.linalg.norm(to_world(room, panel) - centers(poses), axis=1)
        assert question.question_type == "panel_distance"
        assert float(question.ground_truth) == pytest.approx(distances[0], abs=0.0501)
        assert float(question.ground_truth) != pytest.approx(distances[-1], abs=0.0501)  # of another camera


def test_the_panel_is_seen_in_its_color_in_few_raw_frames(rooms: PanelRooms) -> None:
    for scene in rooms.scenes("train"):
        arguments = read_scene(scene.depth)
        shares = (render(*arguments).ids == 0).mean((1, 2))
        best = int(shares.argmax())
        assert shares[best] > 0.015 and (shares > 0).mean() <= 0.5
        pixels = Video(scene.video).read([best])[0].numpy()[:, render(*read_scene(scene.depth, [best])).ids[0] == 0]
        assert (pixels[0].mean() > 2 * pixels[1:].mean(1)).all()


@pytest.mark.parametrize(
    "task", [task for task in TASKS if not issubclass(task, PanelRotation)], ids=lambda task: task.__name__
)
def test_panels_hang_on_walls_and_each_is_seen(task: type[PanelTask]) -> None:
    for seed in range(4):
        scene, K_px = draw(task(), seed)
        room, ids = scene.room, rendered(scene, K_px).ids
        for number, panel in enumerate(room.things):
            center, half = np.array(panel.center), np.array(panel.size) / 2
            ends = np.abs(np.stack([center - half, center + half]))[:, :2]
            assert (ends <= np.array(room.size[:2]) / 2 + 1e-9).all()
            assert np.isclose(ends, np.array(room.size[:2]) / 2).sum() == 1
            assert half[2] < center[2] < room.size[2] - half[2]
            assert (ids == number).mean((1, 2)).max() > 0.004
        assert len(scene.camera_from_room) == FRAMES


def test_turns_are_those_of_the_first_camera_to_the_left() -> None:
    for seed in range(12):
        scene, K_px = draw(PanelRotation(), seed)
        start = scene.camera_from_room[0]
        panel, above = (start[:3] @ [*point, 1] for point in (scene.room.things[0].center, (0, 0, 1e6)))
        x, z = panel[[0, 2]]  # right and forward: pitch and roll are of some degrees
        turn = np.rad2deg(np.arctan2(-x, z)) % 360
        assert above[1] < 0 and abs(turn - float(scene.ground_truth)) < 6
        shares = (rendered(scene, K_px).ids == 0).mean((1, 2))
        assert shares[:2].max() == 0 and shares.max() > 0.03


def test_the_first_panel_is_the_one_that_is_rendered_first() -> None:
    for seed in range(8):
        scene, K_px = draw(PanelOrder(), seed)
        ids = rendered(scene, K_px).ids
        first = [(ids == number).any((1, 2)).argmax() for number in range(len(scene.room.things))]
        letters = {option.split(". ")[1]: option[0] for option in scene.options}
        assert letters[scene.room.things[int(np.argmin(first))].category] == scene.ground_truth
        assert len(set(first)) == len(first)


def test_the_panel_moves_in_the_images_to_the_side_of_the_answer_and_rests_within_a_token() -> None:
    answers = set()
    for seed in range(8):
        scene, K_px = draw(PanelMotion(), seed)
        ids = rendered(scene, K_px, 112).ids
        columns = np.array([np.argwhere(frame == 0)[:, 1].mean() for frame in ids])  # the panel is in each frame
        moved = np.sign(columns[-1] - columns[0])
        assert scene.ground_truth == ("A" if moved < 0 else "B")
        assert (np.sign(np.diff(columns[::2])) == moved).all()  # from token to token, by more than the camera shakes
        x = np.array(scene.room.things[0].track)[:, 0]
        assert (x[::2] == x[1::2]).all()
        answers.add(scene.ground_truth)
    assert len(answers) == 2
    for seed in range(3):  # where it moves does not depend on the direction
        (one, _), (other, _) = (draw_with(PanelMotion(), answer, seed) for answer in (0, 1))
        assert one.room.things[0].track == other.room.things[0].track[::-1]
        assert (one.camera_from_room == other.camera_from_room).all() and one.ground_truth != other.ground_truth


def test_the_second_panel_is_where_the_answer_says_for_who_faces_the_first() -> None:
    for seed in range(3):
        drawn = [draw_with(PanelDirection(), answer, seed) for answer in range(3)]
        scenes, K_px = [scene for scene, _ in drawn], drawn[0][1]
        for scene, (least, greatest) in zip(scenes, PanelDirection.turn_range_deg, strict=True):
            ids = rendered(scene, K_px).ids
            eyes = centers(scene.camera_from_room)
            red, blue = (np.array(thing.center)[:2] - eyes[:, :2].mean(0) for thing in scene.room.things)
            turn = np.rad2deg(np.arctan2(red[0] * blue[1] - red[1] * blue[0], red @ blue)) % 360
            assert least - 3 < turn < greatest + 3
            assert {0, 1} <= set(ids.ravel())
        assert all((scene.camera_from_room == scenes[0].camera_from_room).all() for scene in scenes)
        assert len({scene.ground_truth for scene in scenes}) == 3


def test_the_width_in_pixels_times_the_distance_over_the_focal_length_is_the_answer() -> None:
    for seed, fov in enumerate((35.0, 70.0, 110.0)):
        scene, K_px = draw(PanelIntrinsics(), seed, fov=(fov, fov))
        rendering = rendered(scene, K_px)
        shares = (rendering.ids == 0).mean((1, 2))
        assert (shares > 0).all()
        frame = int(shares.argmax())
        width_px = (rendering.ids[frame] == 0).sum(1).max()
        meters = width_px * rendering.depth[frame][rendering.ids[frame] == 0].mean() / K_px[0, 0]
        assert 100 * meters == pytest.approx(float(scene.ground_truth), abs=110 * 1.6 / K_px[0, 0])


def test_nothing_but_the_width_of_a_panel_depends_on_the_focal_length() -> None:
    """Else images alone would tell it: the panel's height and place in pixels, a pattern, or a step of the camera."""
    for seed in range(4):
        shown = []
        for fov in (35.0, 110.0):
            scene, K_px = draw(PanelIntrinsics(), seed, fov=(fov, fov))
            (panel,), camera_from_room = scene.room.things, scene.camera_from_room
            points = np.array(panel.center) + [[0, 0, 0], [0, 0, panel.size[2] / 2]]  # the center, and above it the end
            pixels = (points @ camera_from_room[0, :3, :3].T + camera_from_room[0, :3, 3]) @ K_px.T
            shown.append(pixels[:, :2] / pixels[:, 2:])
            assert np.ptp(camera_from_room, axis=0).max() == 0
        np.testing.assert_allclose(*shown, atol=0.15)  # the panel is 2 cm thick: its front is nearer than the wall


def test_a_scene_depends_on_the_generator_alone() -> None:
    for task in TASKS:
        (one, _), (same, _), (other, _) = (draw(task(), seed) for seed in (3, 3, 4))
        assert one.room == same.room and (one.camera_from_room == same.camera_from_room).all()
        assert one.room != other.room


class Fixed(np.random.Generator):
    """Draws a given answer first, and everything else as the generator."""

    answer: int | None = None

    def integers(self, *args: Any, **kwargs: Any) -> Any:
        drawn = super().integers(*args, **kwargs)
        given, self.answer = self.answer, None
        return drawn if given is None else given


def draw_with(task: PanelTask, answer: int, seed: int) -> tuple[PanelScene, np.ndarray]:
    """Draw a scene with a given answer; everything else follows from the seed."""
    rng = Fixed(np.random.PCG64(seed))
    rng.answer = answer
    K_px = draw_intrinsics(56, np.random.default_rng(seed), (90.0, 110.0))
    return task.draw(FRAMES, K_px, rng), K_px


@pytest.mark.parametrize(
    "task", [PanelDistance, PanelAnywhere, PanelTranslation, PanelPairs, PanelRotation, PanelTurn, PanelDwelling]
)
def test_the_camera_path_says_nothing_about_the_answer(task: type[PanelTask]) -> None:
    """By construction: every answer is drawn for the same rooms and paths."""
    for seed in range(3):
        paths = []
        for answer in (0, 8, 15):
            scene, _ = draw_with(task(), answer, seed)
            if issubclass(task, PanelRotation):
                assert scene.ground_truth == f"{task.classes[answer]:.0f}"
            else:
                (panel,), (start,) = scene.room.things, centers(scene.camera_from_room[:1])
                distance = np.linalg.norm(np.array(panel.center) - start)
                assert distance == pytest.approx(PanelDistance.classes[answer])
                assert scene.ground_truth == f"{PanelDistance.classes[answer]:.1f}"
            paths.append((scene.camera_from_room, scene.room.size, scene.room.things[0].size[2]))
        assert all((path[0] == paths[0][0]).all() and path[1:] == paths[0][1:] for path in paths)


def test_a_view_of_a_glimpse_is_one_color_but_for_the_panel_which_one_view_shows_whole() -> None:
    """Nothing that a view shows tells where it looks. The control: the walls of `PanelTurn` tell the views apart."""
    for seed in range(8):
        scene, K_px = draw(PanelGlimpse(), seed, (50.0, 55.0))
        rendering = rendered(scene, K_px)
        is_red = rendering.ids == 0
        assert len(np.unique(rendering.rgb[~is_red], axis=0)) == 1
        assert (rendering.rgb[is_red][:, 0] > 2 * rendering.rgb[is_red][:, 1:].max(1)).all()
        views, first = is_red.reshape(4, 4, 56, 56), is_red[::4]
        assert (views == first[:, None]).all()  # the frames of a view are equal
        (shown,) = np.flatnonzero(first.any((1, 2)))
        assert shown > 0
        rows, columns = np.nonzero(first[shown])
        width = np.ptp(columns) + 1
        assert 5 <= width <= 8 and len(rows) > 0.8 * width * (np.ptp(rows) + 1)  # a pixel per degree
        assert min(columns.min(), rows.min(), 55 - columns.max(), 55 - rows.max()) >= width - 1
        yaw = np.sort(np.rad2deg(np.arctan2(*scene.camera_from_room[::4, 2, 1::-1].T)) % 360)
        assert np.diff(yaw, append=yaw[0] + 360).min() > 2 * np.rad2deg(np.arctan(28 / K_px[0, 0]))  # no overlap
        scene, K_px = draw(PanelTurn(), seed)
        control = rendered(scene, K_px)
        assert len(np.unique(control.rgb[control.ids != 0], axis=0)) > 50


def test_places_in_a_glimpse_and_directions_of_its_views_are_independent_and_spread_evenly() -> None:
    turns, bearings = [], []
    for seed in range(300):
        scene, K_px = draw(PanelGlimpse(), seed, (50.0, 55.0))
        views = scene.camera_from_room[::4]
        x, _, z = (views @ [*scene.room.things[0].center, 1.0])[:, :3].T
        off = np.rad2deg(np.arctan2(-x, z))
        best = int(np.abs(off).argmin())
        bearings.append(off[best] / (np.rad2deg(np.arctan(28 / K_px[0, 0])) - 9))
        turns.append((float(scene.ground_truth) - off[best]) % 360)
    assert abs(np.corrcoef(turns, bearings)[0, 1]) < 0.15
    assert np.histogram(bearings, 4, (-1, 1))[0].min() > 50 and np.abs(bearings).max() <= 1
    assert np.histogram(turns, 4, (50, 310))[0].min() > 45
    with pytest.raises(InputError, match="PanelGlimpse: 4 views overlap, or hide the panel: --data.source.fov"):
        draw(PanelGlimpse(), 0)


@pytest.mark.parametrize("task", [PanelTurn, PanelDwelling])
def test_the_first_view_shows_no_part_of_the_panel_to_which_a_camera_must_turn(task: type[PanelTurn]) -> None:
    """Else the images alone would tell some of the answers."""
    for seed in range(3):
        for answer in (0, 15):
            scene, K_px = draw_with(task(), answer, seed)
            ids, first = rendered(scene, K_px).ids, task.frames_per_station
            assert not (ids[:first] == 0).any() and (ids[first:] == 0).any()


def draw_long(task: PanelTask, seed: int) -> tuple[PanelScene, np.ndarray, np.ndarray]:
    """A scene of 64 frames, its intrinsics in pixels, and whether the panel is in a frame."""
    rng = np.random.default_rng(seed)
    K_px = draw_intrinsics(28, rng, (90.0, 110.0))
    scene = task.draw(64, K_px, rng)
    return scene, K_px, (rendered(scene, K_px, 28).ids == 0).any((1, 2))


def test_a_dwelling_camera_shows_the_panel_in_few_frames_of_a_short_sweep_and_a_turning_one_in_more() -> None:
    ends = set()
    for seed in range(6):
        scene, _, is_shown = draw_long(PanelDwelling(), seed)
        forward = scene.camera_from_room[:, 2, :3]
        is_swept = forward @ forward[0] < np.cos(np.deg2rad(20))
        (swept,) = np.nonzero(is_swept)
        assert len(swept) == 14 == np.ptp(swept) + 1 and swept[-1] >= 47  # one sweep, in the last quarter
        assert is_swept[is_shown].all() and 2 <= is_shown.sum() <= 8
        others = np.abs(forward[swept[::2], None] - forward[swept[::2]]).max(-1) + np.eye(7)
        assert others.min() > 0.2  # seven directions
        ends.add(int(swept[-1]))
        *_, is_shown = draw_long(PanelTurn(), seed)
        assert is_shown.sum() > 12  # the control
    assert len(ends) > 2
    with pytest.raises(InputError, match="PanelDwelling: --data.source.frames 14: at least 16"):
        PanelDwelling().draw(14, np.eye(3), np.random.default_rng(0))


def test_eight_distant_poses_show_a_dwelling_cameras_panel_and_even_steps_often_miss_it() -> None:
    def found(task: PanelTask, sampler: FrameSampler) -> float:
        hits = []
        for seed in range(16):
            scene, _, is_shown = draw_long(task, seed)
            view = SceneView(
                Video(torch.zeros(64, 3, 28, 28, dtype=torch.uint8)), torch.from_numpy(scene.camera_from_room)
            )
            hits.append(is_shown[sampler(view, 8)].any())
        return float(np.mean(hits))

    assert found(PanelDwelling(), PoseFarthestSampler()) == 1.0 > 0.8 > found(PanelDwelling(), UniformSampler())
    assert found(PanelTurn(), UniformSampler()) > 0.8  # the control


def test_the_rays_of_two_stations_meet_on_the_wall_and_a_single_one_tells_nothing() -> None:
    for seed in range(4):
        paths, sizes = [], []
        for answer in (0, 11):
            scene, K_px = draw_with(PanelParallax(), answer, seed)
            poses = scene.camera_from_room
            ids = rendered(scene, K_px).ids
            whole = [n for n in range(0, FRAMES, 2) if (ids[n] == 0).any() and not (ids[n, [0, -1]] == 0).any()
                     and not (ids[n][:, [0, -1]] == 0).any()]  # fmt: skip
            assert len(whole) >= 2
            # the point that is nearest to the rays through the middle of the panel
            pixels = np.array([np.argwhere(ids[n] == 0).mean(0)[::-1] + 0.5 for n in whole])
            rays = np.column_stack([(pixels - K_px[:2, 2]) / K_px.diagonal()[:2], np.ones(len(whole))])
            rays = np.einsum("nji,nj->ni", poses[whole, :3, :3], rays / np.linalg.norm(rays, axis=1)[:, None])
            across = np.eye(3) - rays[:, :, None] * rays[:, None]
            eyes = centers(poses[whole])
            met = np.linalg.solve(across.sum(0), np.einsum("nij,nj->i", across, eyes))
            assert eyes[:, 1].mean() - met[1] == pytest.approx(PanelParallax.distances_m[answer], rel=0.25)
            assert scene.ground_truth == f"{PanelParallax.distances_m[answer]:.1f}"
            paths.append(poses)
            sizes.append([(ids[n] == 0).sum() for n in whole])
        assert (paths[0] == paths[1]).all()  # the path says nothing
        assert max(sizes[0]) == pytest.approx(max(sizes[1]), rel=0.5)  # nor does the size in an image


@pytest.mark.parametrize("task", [PanelParallax, PanelTwoViews, PanelKnownSize])
def test_a_view_of_the_wall_looks_alike_at_any_distance(task: type[PanelParallax]) -> None:
    """From the middle of the path, but for rounding; the control: shading by the lamp of a hall tells the distance."""
    differences = []
    for seed in range(4):
        views = []
        for answer in (0, 11):
            scene, K_px = draw_with(task(), answer, seed)
            eye = np.array([[0.0, -PanelParallax.behind_m, HALL_M / 2]])
            pose = look(eye, *np.array([[-np.pi / 2], [0.0], [0.0]]))
            room = replace(scene.room, things=())
            views.append(render(room, pose @ room.room_from_world(), K_px, 28, 28).rgb.astype(float))
        differences.append(abs(views[0] - views[1]).max())
    assert (max(differences) < 8) == (task is not PanelKnownSize), differences


def test_a_panel_of_known_size_looks_smaller_the_farther_it_is() -> None:
    for seed in range(3):
        shares = []
        for answer in (0, 6, 11):
            scene, K_px = draw_with(PanelKnownSize(), answer, seed)
            ids = rendered(scene, K_px, 112).ids
            shares.append((ids == 0).mean((1, 2)).max() * PanelParallax.distances_m[answer] ** 2)  # constant by area
        assert max(shares) < 1.35 * min(shares)


def test_a_task_of_the_users_with_its_own_question_type(tmp_path: Path) -> None:
    source = PanelRooms(OwnTask(), root=str(tmp_path), scenes=(0, 0, 1), workers=1)
    source.prepare()
    data = VideoQADataModule(source, question_types="default")
    (question,) = data.scenes("test")[0].questions
    assert question.question_type == "my_distance"
    assert source.benchmark.score(question.ground_truth, question.ground_truth, "my_distance", "spatial_mllm") == 1.0
    assert source.folder != PanelRooms(root=str(tmp_path), scenes=(0, 0, 1)).folder


def test_settings_and_rooms_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "scenes are three counts": {"scenes": (1, -1, 1)},
        "must be a range within 0 to 180 degrees": {"fov": (100.0, 90.0)},
        "frames 15 must be even": {"frames": 15},
    }
    for reason, settings in wrong.items():
        with pytest.raises(InputError, match=reason):
            PanelRooms(**settings)
    monkeypatch.setattr(PanelTask, "max_attempts", 20)
    with pytest.raises(InputError, match="PanelDistance: 20 rooms in a row .* than 16, or a wider"):
        draw(PanelDistance(), 0, fov=(20.0, 21.0))
