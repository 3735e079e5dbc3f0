"""Interventions change one thing, by the stated amount; what must follow and what must stay."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import (
    MovedPanel,
    OtherWalls,
    OtherWorlds,
    PanelOrder,
    PanelRooms,
    PanelTurn,
    Rooms,
    ScaledLengths,
    ScaledTranslations,
    TurnedCameras,
    TurnedEmptyViews,
    TurnedPanelView,
    VideoQADataModule,
)
from datamodules.interventions import Intervention, Origin, Variant, default_interventions
from datamodules.scenes import Scene
from tests.tiny import tiny_scene
from zoo.benchmarks import PanelBench, VSIBench
from zoo.cameras.poses import invert_se3, so3_log
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.errors import InputError
from zoo.sequences.loaded_scene import LoadedScene

ANSWERS = (72.0, 288.0)  # of `PanelTurn`
NOWHERE = Origin(Rooms(), "test", Scene("a", Path("a.mp4"), ()), lambda scene: pytest.fail("reads no other scene"))


@pytest.fixture(scope="module")
def turning(tmp_path_factory: pytest.TempPathFactory) -> VideoQADataModule:
    """Twelve rooms of `PanelTurn`."""
    source = PanelRooms(PanelTurn(), scenes=(0, 0, 12), root=str(tmp_path_factory.mktemp("turning")), workers=1)
    data = VideoQADataModule(source, num_frames=16)
    data.prepare_splits(("test",))
    return data


def variants(data: VideoQADataModule, intervention: Intervention, number: int = 0) -> tuple[LoadedScene, list[Variant]]:
    scenes = data.scenes("test")
    loaded = data.dataset(scenes)[number]
    origin = Origin(data.source, "test", scenes[number], lambda scene: data.dataset([scene])[0], ANSWERS)
    return loaded, intervention.variants(origin, loaded)


def true_answer(data: VideoQADataModule, number: int) -> float:
    assert isinstance(data.source, PanelRooms)
    return data.source.task.true_answer(*data.source.read_room(data.scenes("test")[number]))


def poses(scene: LoadedScene) -> torch.Tensor:
    assert scene.geometry is not None and scene.geometry.world_to_camera is not None
    return scene.geometry.world_to_camera.double()


def angles(first: LoadedScene, second: LoadedScene) -> torch.Tensor:
    """The angle in degrees by which each frame's camera is told otherwise."""
    turn = poses(first)[:, :3, :3].mT @ poses(second)[:, :3, :3]
    return torch.rad2deg(so3_log(turn).norm(dim=-1))


def test_lengths_scale_together_and_nothing_else_changes() -> None:
    loaded = tiny_scene("a")
    assert loaded.geometry is not None and loaded.geometry.depth is not None
    found = ScaledLengths(0.8, 1.25, 3).variants(NOWHERE, loaded)
    assert [math.exp(each.value) for each in found] == pytest.approx([0.8, 1.0, 1.25])
    for each in found:
        factor, geometry = math.exp(each.value), each.scene.geometry
        assert geometry is not None and geometry.depth is not None and each.scene.frames is loaded.frames
        torch.testing.assert_close(geometry.depth, factor * loaded.geometry.depth)
        torch.testing.assert_close(poses(each.scene)[:, :3, 3], factor * poses(loaded)[:, :3, 3])
        assert torch.equal(poses(each.scene)[:, :3, :3], poses(loaded)[:, :3, :3])
        assert geometry.K_normalized is loaded.geometry.K_normalized
    alone = ScaledTranslations(0.8, 1.25, 3).variants(NOWHERE, loaded)
    for each, whole in zip(alone, found, strict=True):
        assert each.scene.geometry is not None and each.scene.geometry.depth is loaded.geometry.depth
        torch.testing.assert_close(poses(each.scene), poses(whole.scene))
    assert ScaledLengths().variants(NOWHERE, LoadedScene("bare")) == []
    with pytest.raises(InputError, match="ScaledLengths: 7 factors from 1.25 to 0.8"):
        ScaledLengths(1.25, 0.8)


def test_other_worlds_keep_all_relative_poses_and_points() -> None:
    loaded = tiny_scene("a")
    assert loaded.geometry is not None
    own = poses(loaded)
    in_cameras = torch.randn(len(own), 3, dtype=torch.float64)
    points = invert_se3(own) @ torch.cat((in_cameras, torch.ones(len(own), 1)), 1)[..., None]
    fields = {name: value for name, value in loaded.geometry.present().items() if name != "depth"}
    geometry = SceneGeometry(**{**fields, "points": points[:, None, None, :3, 0].expand(-1, 2, 2, -1)})
    loaded = LoadedScene("a", geometry=geometry)
    unchanged, *moved = OtherWorlds(3).variants(NOWHERE, loaded)
    assert unchanged.scene is loaded and len(moved) == 3
    for each in moved:
        new, there = poses(each.scene), each.scene.geometry
        assert there is not None and there.points is not None
        torch.testing.assert_close(new @ invert_se3(new[:1]), own @ invert_se3(own[:1]))
        assert (new - own).abs().max() > 0.5
        at = there.points[:, 0, 0, :, None].double()
        torch.testing.assert_close((new[:, :3, :3] @ at)[..., 0] + new[:, :3, 3], in_cameras)


@pytest.mark.parametrize("kind", [TurnedCameras, TurnedPanelView, TurnedEmptyViews])
def test_told_cameras_turn_about_their_centers(turning: VideoQADataModule, kind: type[TurnedCameras]) -> None:
    shown = 0
    for number in range(6):
        loaded, found = variants(turning, kind(degrees=30.0, variants=5), number)
        first, shows = turning.source.views_of_panel(turning.scenes("test")[number])  # type: ignore[attr-defined]
        assert first.sum() == 4 and shows.any() and not (first & shows).any()
        turned = {TurnedCameras: ~first, TurnedPanelView: shows, TurnedEmptyViews: ~shows & ~first}[kind]
        shown += len(found)
        truth = true_answer(turning, number)
        assert abs(truth - float(loaded.questions[0].ground_truth)) < 3  # the ground truth is where the panel hangs
        for each in found:
            assert each.scene.frames is loaded.frames and each.truth is not None
            torch.testing.assert_close(invert_se3(poses(each.scene))[:, :3, 3], invert_se3(poses(loaded))[:, :3, 3])
            own = angles(loaded, each.scene).numpy()
            assert np.allclose(own[~turned], 0, atol=1e-4) and np.ptp(own[turned]) < 1e-3
            # an answer of the room's turn, up to the tilt of the cameras
            change = each.truth - truth if kind is not TurnedEmptyViews else each.value - each.truth
            assert abs(abs(change) - own[turned].mean()) < 2.5
            if kind is TurnedEmptyViews:
                assert each.truth == pytest.approx(truth)
            assert ANSWERS[0] <= each.value <= ANSWERS[1]
    assert shown >= 20


def rounded(values: list[float]) -> list[float]:
    """Answers of a classifier: the nearest of the classes."""
    return [float(PanelTurn.classes[np.abs(PanelTurn.classes - value).argmin()]) for value in values]


def test_starts_lie_uniformly_between_the_classes(turning: VideoQADataModule) -> None:
    """A classifier that knows the truth has a mean slope of 1 as well, over many rooms; from one start it has not."""
    kind, pooled = TurnedCameras(), []
    starts = [np.random.default_rng(seed).uniform(-0.5, 0.5) * kind.degrees / 3 for seed in range(300)]
    sweep = np.linspace(-0.5, 0.5, kind.num_variants) * kind.degrees
    for drawn in (starts, np.zeros(300)):
        xy, xx = 0.0, 0.0
        for number, start in enumerate(drawn):
            x = PanelTurn.classes[4 + number % 8] + start + sweep
            y = np.array(rounded(x.tolist()))
            xy, xx = xy + float((x - x.mean()) @ (y - y.mean())), xx + float((x - x.mean()) @ (x - x.mean()))
        pooled.append(xy / xx)
    assert abs(pooled[0] - 1) < 0.02
    found = [variants(turning, kind, number)[1][0].value for number in range(8)]
    assert len({round(value, 3) for value in found}) == 8


def test_other_walls_show_the_same_panel(turning: VideoQADataModule) -> None:
    loaded, found = variants(turning, OtherWalls(2))
    assert len(found) == 3 and found[0].scene.frames is loaded.frames
    red = lambda scene: (scene.frames[:, 0].int() - scene.frames[:, 1].int()) > 60  # noqa: E731
    for each in found[1:]:
        assert each.scene.questions == loaded.questions and torch.equal(poses(each.scene), poses(loaded))
        assert each.scene.frames is not None and loaded.frames is not None
        assert (each.scene.frames.int() - loaded.frames.int()).abs().float().mean() > 5
        assert (red(each.scene) != red(loaded)).float().mean() < 0.01 < red(loaded).float().mean() * 2
    again = variants(turning, OtherWalls(2))[1]
    assert all(torch.equal(a.scene.frames, b.scene.frames) for a, b in zip(found, again, strict=True))  # type: ignore[arg-type]


def test_what_data_permit(turning: VideoQADataModule, tmp_path: Path) -> None:
    assert {type(each) for each in default_interventions(turning.source)} > {MovedPanel, TurnedPanelView, ScaledLengths}
    assert {type(each) for each in default_interventions(Rooms())} == {ScaledLengths, ScaledTranslations, OtherWorlds}
    scenes = turning.scenes("test")
    for each in default_interventions(turning.source):
        each.check(turning.source, scenes)
    with pytest.raises(InputError, match="MovedPanel: only the rooms of PanelRooms know .* not Rooms"):
        MovedPanel().check(Rooms(), scenes)
    bare = [type(scene)(scene.name, scene.video, scene.questions) for scene in scenes]
    with pytest.raises(InputError, match="OtherWorlds: no scene of PanelRooms has cameras or depth"):
        OtherWorlds().check(turning.source, bare)
    ordered = PanelRooms(PanelOrder(), scenes=(0, 0, 1), root=str(tmp_path), workers=1)
    ordered.prepare()
    with pytest.raises(InputError, match="PanelOrder has no continuous answer"):
        ordered.task.true_answer(*ordered.read_room(ordered.scenes("test")[0]))


def test_expected_responses() -> None:
    kinds = ("object_abs_distance", "room_size_estimation", "object_counting", "object_rel_distance")
    assert [ScaledLengths().expected(VSIBench(), kind) for kind in kinds] == [1, 2, 0, None]
    assert [ScaledLengths().expected(PanelBench(), kind) for kind in PanelBench.numeric_types] == [1, None, 0]
    assert (TurnedCameras().expected(PanelBench(), "panel_turn"), TurnedEmptyViews().expected(PanelBench(), "")) == (
        1,
        0,
    )
