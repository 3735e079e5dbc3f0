"""Rooms with panels: exact answers, nothing about them in cameras or text, and a panel that is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamodules import PanelRooms
from datamodules.cameras_file import read_cameras
from datamodules.sources.rooms import load_scene, read_scene, render
from datamodules.sources.rooms.panels import distance
from datamodules.sources.rooms.panels.panel import hang, places_at, seen_whole
from datamodules.sources.rooms.panels.tour import draw_room, draw_tour
from datamodules.sources.rooms.writer import draw_intrinsics
from datamodules.video import Video
from zoo.errors import InputError

SMALL = {"scenes": (6, 1, 2), "workers": 1}
FOV = (80.0, 100.0)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> PanelRooms:
    made = PanelRooms(root=str(tmp_path_factory.mktemp("panels")), **SMALL)
    made.prepare()
    return made


def panel_shares(scene) -> np.ndarray:
    """The share of each raw frame's pixels that shows the panel."""
    return (render(*read_scene(scene.depth)).ids == 0).mean((1, 2))


def test_the_answer_is_the_distance_in_the_written_files(rooms: PanelRooms) -> None:
    for scene in rooms.scenes("train"):
        (question,) = scene.questions
        assert question.question_type == "panel_distance"
        room = load_scene(scene.depth)
        poses, _ = read_cameras(scene.cameras, 24, 56, 56)
        start = np.linalg.inv(poses[0].numpy())[:3, 3]
        (panel,) = room.things
        center = np.linalg.inv(room.room_from_world()) @ [*panel.center, 1.0]
        assert float(question.ground_truth) == pytest.approx(np.linalg.norm(center[:3] - start), abs=0.051)
        last = np.linalg.inv(poses[-1].numpy())[:3, 3]  # negative control
        assert float(question.ground_truth) != pytest.approx(np.linalg.norm(center[:3] - last), abs=0.051)


def test_the_panel_is_on_a_wall_and_seen_as_red(rooms: PanelRooms) -> None:
    for scene in rooms.scenes("train"):
        room = load_scene(scene.depth)
        (panel,) = room.things
        low, high = np.array(panel.center) - np.array(panel.size) / 2, np.array(panel.center) + np.array(panel.size) / 2
        walls = np.array(room.size[:2]) / 2
        assert (low[:2] >= -walls - 1e-9).all() and (high[:2] <= walls + 1e-9).all()
        assert np.isclose(np.abs([low[:2], high[:2]]), walls).sum() == 1
        assert 0 < low[2] and high[2] < room.size[2]
        shares = panel_shares(scene)
        best = int(shares.argmax())
        assert shares[best] > 0.01 and (shares > 0).mean() < 0.5
        frame = Video(scene.video).read([best])[0].numpy().astype(float)
        seen = render(*read_scene(scene.depth, [best])).ids[0] == 0
        red, green, blue = frame[:, seen].mean(1)
        assert red > 2 * max(green, blue)
