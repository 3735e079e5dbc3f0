"""Perturbed and augmented scenes: what is changed, what is not, and that a model answers what it is shown."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from datamodules import (
    CameraErrors,
    DriftingCameras,
    FramesAtOtherCenters,
    FramesOnOtherCameras,
    LongerFocalLength,
    MissingCameras,
    NoisyCameras,
    OtherCameras,
    OtherGeometry,
    PixelBounds,
    RandomCameraErrors,
    RandomFocalLength,
    ReversedFrames,
    Rooms,
    ScaledCameras,
    ShuffledFrameNumbers,
    ShuffledFrames,
    UniformSampler,
    VideoQADataModule,
    WrongFocalLength,
    ZeroGeometry,
)
from datamodules.augmentations import enlarged
from datamodules.dataset import SceneDataset
from datamodules.perturbations import Perturbation, PerturbedScenes
from datamodules.question_sampler import TrainingItem
from tests.conftest import ROOMS
from tests.tiny import tiny_batch, tiny_model, tiny_scene
from zoo.cameras.poses import pose_distance
from zoo.cameras.rays import patch_directions
from zoo.cameras.scene_geometry import Window
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.model_spec import ModelSpec
from zoo.sequences.loaded_scene import LoadedScene

A, B = tiny_scene("a", steps=4), tiny_scene("b", steps=4, seed=1)


# each with what it changes
PERTURBATIONS: dict[str, tuple[Perturbation, set[str]]] = {
    "cameras": (OtherCameras(), {"world_to_camera"}),  # the intrinsics of both scenes are equal
    "frames on other cameras": (FramesOnOtherCameras(), {"frames", "depth"}),
    "frames at other centers": (FramesAtOtherCenters(), {"frames", "depth", "world_to_camera"}),
    "intrinsics": (WrongFocalLength(0.2), {"K_normalized"}),
    "noise": (NoisyCameras(degrees=5.0, translation=0.1), {"world_to_camera"}),
    "drift": (DriftingCameras(degrees=5.0), {"world_to_camera"}),
    "scale": (ScaledCameras(0.5), {"world_to_camera"}),
    "missing cameras": (MissingCameras(2), {"world_to_camera", "has_camera"}),
    "field of view": (LongerFocalLength(1.4), {"K_normalized", "frames", "depth"}),
    "shuffled": (ShuffledFrames(), {"world_to_camera", "depth", "frames", "frame_indices"}),
    "reversed": (ReversedFrames(), {"world_to_camera", "depth", "frames", "frame_indices"}),
    "frame numbers": (ShuffledFrameNumbers(), {"frame_indices"}),
    "other 3D tokens": (OtherGeometry(), {"is_other"}),
    "no 3D tokens": (ZeroGeometry(), {"is_other"}),
}


def content(loaded: LoadedScene) -> dict[str, Tensor]:
    geometry = loaded.geometry or SceneGeometry()
    if geometry.has_cameras:
        geometry = SceneGeometry(**{**geometry.present(), "has_camera": geometry.cameras()[2]})
    return {
        **geometry.present(),
        "frames": loaded.frames,
        "frame_indices": torch.tensor(loaded.frame_indices),
        "is_other": torch.tensor(loaded.geometry_override is not None),
    }


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_each_changes_what_it_names_and_nothing_else(name: str) -> None:
    perturbation, changed = PERTURBATIONS[name]
    before, after = content(A), content(perturbation(A, lambda: B))
    assert {key for key in before if not torch.equal(before[key], after[key])} == changed
    assert after["frame_indices"].sort().values.equal(before["frame_indices"])


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_true_cameras_of_the_shown_frames_stay_known(name: str) -> None:
    found, true = PERTURBATIONS[name][0](A, lambda: B), A.geometry
    if name == "field of view":  # whose cameras are correct
        assert found.true_geometry is None and found.geometry.world_to_camera is true.world_to_camera
        return
    order = [next(i for i, own in enumerate(A.frames) if own.equal(frame)) for frame in found.frames]
    for key, value in true[order].present().items():
        assert getattr(found.target_geometry, key).equal(value)
    is_told_so = found.geometry.world_to_camera.equal(true[order].world_to_camera) and (
        found.geometry.K_normalized.equal(true[order].K_normalized)
    )
    assert (found.true_geometry is None) == is_told_so


def test_true_cameras_follow_further_changes_of_the_frames() -> None:
    """As in an augmentation of one's own that joins two."""
    noisy = NoisyCameras(5.0)
    for change in (lambda scene: enlarged(scene, 1.4), lambda scene: ReversedFrames()(scene, lambda: B)):
        expected, found = change(A), change(noisy(A, lambda: B))
        for key, value in expected.geometry.present().items():
            assert found.target_geometry.present()[key].equal(value)
        assert not found.geometry.world_to_camera.equal(expected.geometry.world_to_camera)  # the control


def test_frames_keep_their_cameras_and_those_of_a_token_stay_together() -> None:
    for perturbation in (ShuffledFrames(), ReversedFrames()):
        found = perturbation(A, lambda: B)
        order = [A.frame_indices.index(i) for i in found.frame_indices]
        assert order != list(range(8)) and found.frames.equal(A.frames[order])
        assert found.geometry.world_to_camera.equal(A.geometry.world_to_camera[order])
        pairs = {frozenset(pair) for pair in zip(order[::2], order[1::2], strict=True)}
        assert pairs == {frozenset((i, i + 1)) for i in range(0, 8, 2)}
    for steps in (1, 2, 3):  # short videos are shuffled as well
        for number in range(20):
            found = ShuffledFrames()(tiny_scene(f"s{number}", steps=steps), lambda: B)
            assert (found.frame_indices == tuple(range(0, 20 * steps, 10))) == (steps == 1)
    short = tiny_scene("c", steps=2, seed=2)  # the cameras of a shorter scene start again
    found = OtherCameras()(A, lambda: short).geometry
    assert found.world_to_camera.equal(short.geometry.world_to_camera.repeat(2, 1, 1))


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_no_token_keeps_its_camera(steps: int) -> None:
    for number in range(20):
        before = tiny_scene(f"s{number}", steps=steps)
        after = FramesOnOtherCameras()(before, lambda: B)
        order = [next(i for i, own in enumerate(before.frames) if own.equal(frame)) for frame in after.frames]
        assert sorted(order) == list(range(2 * steps)) and after.geometry.depth.equal(before.geometry.depth[order])
        stay = [place for place, frame in enumerate(order) if place == frame]
        assert stay == ([0, 1] if steps == 1 else [])
        assert order[1::2] == [first + 1 for first in order[::2]] and all(first % 2 == 0 for first in order[::2])


def test_frames_at_other_centers_look_in_the_same_directions() -> None:
    after = FramesAtOtherCenters()(A, lambda: B)
    order = [next(i for i, own in enumerate(A.frames) if own.equal(frame)) for frame in after.frames]
    assert not any(place == frame for place, frame in enumerate(order))
    given, found = A.geometry.world_to_camera, after.geometry.world_to_camera
    assert found[:, :3, :3].equal(given[order, :3, :3]) and not found[:, :3, :3].equal(given[:, :3, :3])
    centers = [torch.linalg.inv(poses)[:, :3, 3] for poses in (given, found)]
    assert torch.allclose(*centers, atol=1e-5)


# ---- errors of poses -------------------------------------------------------------------------------------------------

EXACT = 1e-4  # of float32 poses


def poses_of(loaded: LoadedScene) -> Tensor:
    assert loaded.geometry is not None and loaded.geometry.world_to_camera is not None
    return loaded.geometry.world_to_camera


def errors_of(before: LoadedScene, after: LoadedScene) -> tuple[Tensor, Tensor]:
    """The angle in degrees by which each camera has turned, and the share of the mean distance by which it moved."""
    angles, moves = pose_distance(poses_of(before).double(), poses_of(after).double())
    views = poses_of(before)[::2].double()
    distances = [pose_distance(views[i], views[j])[1] for i, j in combinations(range(len(views)), 2)]
    return angles.rad2deg(), moves / torch.stack(distances).mean()


@pytest.mark.parametrize(("degrees", "translation"), [(20.0, 0.0), (0.0, 0.5), (3.0, 0.2)])
def test_each_view_has_an_error_of_the_given_size_in_its_own_direction(degrees: float, translation: float) -> None:
    found = NoisyCameras(degrees, translation)(A, lambda: B)
    angles, moves = errors_of(A, found)
    torch.testing.assert_close(angles, torch.full_like(angles, degrees), rtol=0, atol=0.05)
    torch.testing.assert_close(moves, torch.full_like(moves, translation), rtol=0, atol=EXACT)
    own = poses_of(found) @ torch.linalg.inv(poses_of(A))
    first, second = own[::2], own[1::2]
    assert torch.allclose(first, second, atol=EXACT)  # the frames of a view
    assert all((first[i] - first[j]).abs().max() > 1e-2 for i, j in combinations(range(len(first)), 2))


def test_drift_is_the_sum_of_steps_of_the_given_size() -> None:
    long = tiny_scene("long", steps=12)
    found = DriftingCameras(degrees=3.0, translation=0.1)(long, lambda: B)
    angles, moves = errors_of(long, found)
    assert angles[:2].max() < 0.05 and moves[:2].max() < EXACT  # the first view is correct
    before, after = (poses_of(each).double() for each in (long, found))
    steps = [poses[2::2] @ torch.linalg.inv(poses[:-2:2]) for poses in (before, after)]
    turned, _ = pose_distance(*steps)
    torch.testing.assert_close(turned.rad2deg(), torch.full_like(turned, 3.0), rtol=0, atol=0.05)
    pairs = [poses[1::2] @ torch.linalg.inv(poses[::2]) for poses in (before, after)]
    assert torch.allclose(*pairs, atol=EXACT)  # a view moves as a whole
    grown = [DriftingCameras(3.0, seed=seed)(long, lambda: B) for seed in range(20)]
    ends = torch.stack([errors_of(long, each)[0] for each in grown]).mean(0)
    assert ends[-1] > 2 * ends[2] and ends[2] == pytest.approx(3, abs=0.05)
    noisy = errors_of(long, NoisyCameras(3.0)(long, lambda: B))[0]  # the control: independent errors do not grow
    assert noisy[-1] == pytest.approx(3, abs=0.05)


def test_scale_multiplies_all_distances_and_turns_nothing() -> None:
    found = ScaledCameras(0.5)(A, lambda: B)
    before, after = (pose_distance(poses_of(each)[:1], poses_of(each)) for each in (A, found))
    assert torch.allclose(after[1], before[1] / 2, atol=EXACT) and torch.allclose(after[0], before[0], atol=EXACT)
    assert before[1].max() > 0.1


def test_more_missing_cameras_contain_the_fewer() -> None:
    missing = []
    for count in (1, 2, 3):
        geometry = MissingCameras(count)(A, lambda: B).geometry
        gone = ~geometry.has_camera
        assert gone.sum() == 2 * count and gone[::2].equal(gone[1::2])
        assert geometry.world_to_camera[~gone].equal(poses_of(A)[~gone])
        missing.append(set(gone.nonzero().flatten().tolist()))
    assert missing[0] < missing[1] < missing[2]
    with pytest.raises(InputError, match="views 4: a scene has 4 views with a camera"):
        MissingCameras(4)(A, lambda: B)


def test_the_first_view_with_a_camera_may_keep_it() -> None:
    scenes = [replace(A, name=f"a/{n}") for n in range(16)]
    kept = [MissingCameras(2, keep_first=True)(each, lambda: B).geometry.has_camera for each in scenes]
    assert all(each[:2].all() and each.sum() == 4 for each in kept)
    others = [MissingCameras(2)(each, lambda: B).geometry.has_camera for each in scenes]
    assert not all(each[0] for each in others)  # the control


@pytest.mark.parametrize("kind", [partial(NoisyCameras, 5.0, 0.1), partial(DriftingCameras, 5.0, 0.1), MissingCameras])
def test_errors_depend_on_the_scene_and_the_seed_alone(kind: Any) -> None:
    perturbation = kind(seed=1)
    found = content(perturbation(A, lambda: B))
    torch.rand(3)
    assert all(value.equal(found[name]) for name, value in content(perturbation(A, lambda: A)).items())
    others = [poses_of(kind(seed=seed)(A, lambda: B)) for seed in range(8)]
    others += [poses_of(perturbation(replace(A, name=f"a/{n}"), lambda: B)) for n in range(8)]
    assert sum(not each.equal(found["world_to_camera"]) for each in others) >= 8


def test_views_without_a_camera_keep_none() -> None:
    gaps = replace(A, geometry=copy(A.geometry))
    gaps.geometry.has_camera = torch.arange(8) >= 3  # the first view, and the first frame of the second
    for perturbation in (NoisyCameras(5.0, 0.1), DriftingCameras(5.0, 0.1), ScaledCameras()):
        geometry = perturbation(gaps, lambda: B).geometry
        assert geometry.has_camera.equal(gaps.geometry.has_camera)
        assert geometry.world_to_camera[:3].equal(torch.eye(4).repeat(3, 1, 1))
        assert geometry.world_to_camera.isfinite().all()
    without = replace(A, geometry=None)
    assert NoisyCameras(5.0)(without, lambda: B) is without and RandomCameraErrors(5.0)(without) is without


def test_errors_that_do_nothing_or_are_negative_are_refused() -> None:
    for kind in (NoisyCameras, DriftingCameras, RandomCameraErrors):
        with pytest.raises(InputError, match="degrees 0.0 and translation 0.0"):
            kind()
        with pytest.raises(InputError, match="degrees -1"):
            kind(degrees=-1.0)
    with pytest.raises(InputError, match="perturbation.factor 0"):
        ScaledCameras(0.0)
    with pytest.raises(InputError, match="perturbation.views 0"):
        MissingCameras(0)


def test_a_model_answers_from_the_wrong_cameras() -> None:
    task = tiny_model("prope.yaml")
    errors: tuple[CameraErrors, ...] = (NoisyCameras(10.0), DriftingCameras(10.0), ScaledCameras(), MissingCameras())

    def tokens(loaded: LoadedScene) -> Tensor:
        with torch.no_grad():
            (encoded,) = task.model.encode_scenes(tiny_batch(task, loaded))
        return encoded.visual.tokens

    assert all((tokens(each(A, lambda: B)) - tokens(A)).abs().max() > 1e-4 for each in errors)


def test_training_draws_new_errors_for_each_sample() -> None:
    augmentation = RandomCameraErrors(degrees=20.0, translation=0.4)
    sizes = []
    for draw in range(200):
        found = augmentation(replace(A, draw=draw))
        angles, moves = errors_of(A, found)
        assert angles.max() - angles.min() < 0.05 and moves.max() - moves.min() < EXACT  # one size for all views
        sizes.append((angles[0], moves[0]))
        assert found.true_geometry is A.geometry
        assert found.frames is A.frames and found.geometry.depth is A.geometry.depth
    degrees, shares = torch.tensor(sizes).T
    assert degrees.max() < 20.1 and shares.max() < 0.401
    assert degrees.mean() == pytest.approx(10, abs=1.5) and shares.mean() == pytest.approx(0.2, abs=0.03)
    again = augmentation(replace(A, draw=3))
    assert poses_of(again).equal(poses_of(augmentation(replace(A, draw=3))))
    assert not poses_of(again).equal(poses_of(augmentation(replace(A, draw=4))))


def test_training_removes_cameras_of_up_to_a_share_of_the_views() -> None:
    def kept(missing: float, draw: int) -> Tensor:
        return RandomCameraErrors(missing=missing)(replace(A, draw=draw)).geometry.has_camera.reshape(-1, 2)

    views = len(A.frame_indices) // 2
    for missing, most in ((0.5, views // 2), (1.0, views - 1)):
        found = [kept(missing, draw) for draw in range(60)]
        assert all(each[:, 0].equal(each[:, 1]) for each in found)  # both frames of a view
        lost = [views - int(each[:, 0].sum()) for each in found]
        assert {*lost} == {*range(most + 1)}
    whole = RandomCameraErrors(degrees=20.0)(replace(A, draw=3))
    assert whole.geometry.has_camera.all()  # the control
    fewer = RandomCameraErrors(degrees=20.0, missing=0.5)(replace(A, draw=3))
    assert poses_of(fewer)[fewer.geometry.has_camera].equal(poses_of(whole)[fewer.geometry.has_camera])
    with pytest.raises(InputError, match="augmentation.missing 1.5: a share"):
        RandomCameraErrors(missing=1.5)
    with pytest.raises(InputError, match="degrees -5"):
        RandomCameraErrors(degrees=-5.0, missing=0.5)


# ---- 3D tokens -------------------------------------------------------------------------------------------------------


def test_3d_tokens_of_another_scene_are_those_that_it_would_have() -> None:
    task = tiny_model("prope.yaml")

    def tokens(loaded: LoadedScene) -> Tensor:
        with torch.no_grad():
            (encoded,) = task.model.encode_scenes(tiny_batch(task, loaded))
        return encoded.visual.tokens

    task.model.view_mixer = None  # it would read the cameras of B as well
    expected = tokens(replace(A, geometry=B.geometry)), tokens(A)
    other, zero = tokens(OtherGeometry()(A, lambda: B)), tokens(ZeroGeometry()(A, lambda: B))
    assert torch.allclose(other, expected[0]) and not torch.allclose(other, expected[1])
    half = other.shape[-1] // 2
    assert zero[..., :half].equal(expected[1][..., :half]) and not zero.allclose(expected[1])
    assert (zero[..., half:] == zero[0, 0, half:]).all()  # the bias of the connector


def test_a_larger_scene_is_brought_to_the_grid_of_3d_tokens() -> None:
    large = tiny_scene("large", seed=3)
    frames, depth = torch.zeros(6, 3, 112, 112, dtype=torch.uint8), torch.rand(6, 112, 112)
    large = replace(large, frames=frames, geometry=SceneGeometry(**{**large.geometry.present(), "depth": depth}))
    task, perturbed = tiny_model("ConcatSplitFusion"), OtherGeometry()(A, lambda: large)
    (encoded,) = task.model.encode_scenes(tiny_batch(task, perturbed))
    assert encoded.visual.tokens.shape[0] == 4
    own = A.geometry.depth.shape[-2:]  # a shift by half a pixel would give a pixel the depth of its neighbor
    expected = torch.nn.functional.interpolate(depth[:, None], own, mode="nearest-exact")[: len(A.frame_indices), 0]
    assert torch.equal(perturbed.geometry_override.geometry.depth[:6], expected)


def test_a_model_without_3d_tokens_answers_as_if_they_were_its_own() -> None:
    task = tiny_model("plain")
    for perturbation in (OtherGeometry(), ZeroGeometry(), OtherCameras(), WrongFocalLength(0.5)):
        own, other = (
            task.model.encode_scenes(tiny_batch(task, each))[0].visual.tokens
            for each in (A, perturbation(A, lambda: B))
        )
        assert own.equal(other)


def scenes_of(rooms_root: Path) -> SceneDataset:
    scenes = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("train")
    bounds = PixelBounds(784, 65536, legacy_folder_resize=False)
    return SceneDataset(scenes, UniformSampler(), 8, bounds, spec=ModelSpec(requires_cameras=True))


def test_a_resumed_test_takes_the_same_other_scene(rooms_root: Path) -> None:
    every, rest = scenes_of(rooms_root), scenes_of(rooms_root)
    rest.scenes = every.scenes[-1:]
    expected = every[(len(every) - 1 + len(every) // 2) % len(every)].geometry.world_to_camera
    for found in (
        PerturbedScenes(rest, every, OtherCameras())[0],
        PerturbedScenes(every, every, OtherCameras())[-1 + len(every)],
    ):
        assert found.geometry.world_to_camera.equal(expected)


def test_another_scene_that_cannot_be_read_or_has_no_cameras_is_passed_over(rooms_root: Path) -> None:
    every = scenes_of(rooms_root)
    first, other = every.scenes[0], len(every) // 2
    every.scenes = [*every.scenes]
    every.scenes[other] = replace(every.scenes[other], video=Path("absent.mp4"))
    every.scenes[other + 1] = replace(every.scenes[other + 1], cameras=None)
    every.spec = ModelSpec()
    found = PerturbedScenes(every, every, OtherCameras())
    assert found[0].name == first.name and found[0].error is None
    assert found[0].geometry.world_to_camera.equal(every[(other + 2) % len(every)].geometry.world_to_camera)
    assert "absent.mp4" in found[other].error
    every.scenes = every.scenes[:1]
    assert PerturbedScenes(every, every, ReversedFrames())[0].error is None
    assert "no other scene" in PerturbedScenes(every, every, OtherCameras())[0].error
    every.scenes = [replace(first, cameras=None)]
    with pytest.raises(InputError, match="OtherCameras"):
        PerturbedScenes(every, every, OtherCameras())


@pytest.mark.parametrize("stage", [TrainerFn.FITTING, TrainerFn.VALIDATING])
def test_other_commands_refuse_a_perturbation(stage: TrainerFn) -> None:
    data = VideoQADataModule(perturbation=ReversedFrames())
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=stage))
    with pytest.raises(InputError, match=f"for test, not for {stage.value}"):
        data.prepare_data()


def test_validating_no_batches_is_refused() -> None:
    data = VideoQADataModule()
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.VALIDATING), limit_val_batches=0)
    with pytest.raises(InputError, match="--trainer.limit_val_batches 1.0"):
        data.prepare_data()


def stills(name: str, size: tuple[int, int] = (40, 28)) -> LoadedScene:
    """Still images of which the geometry encoder sees whole what the tower sees a window of."""
    loaded = tiny_scene(name, steps=4)
    row, column = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
    numbers = torch.arange(4).repeat_interleave(2)[:, None, None]
    pictures = torch.stack(torch.broadcast_tensors(3 * row, 3 * column, 20 * numbers), 1).to(torch.uint8)
    window = Window(*size, 7, 4, 28, 20)
    frames = pictures[(..., *window.place)]
    return replace(
        loaded, frames=frames, geometry_frames=pictures, vision_window=window, kind="image", is_one_medium=True
    )


@pytest.mark.parametrize("name", ["frames on other cameras", "shuffled", "reversed", "field of view"])
def test_what_the_geometry_encoder_sees_of_stills_changes_with_them(name: str) -> None:
    """The tower's frames are still the window of the encoder's: the number of each, and the place of each pixel."""
    before = stills("s")
    after = PERTURBATIONS[name][0](before, lambda: B)
    assert not after.geometry_frames.equal(before.geometry_frames)
    within = after.geometry_frames[(..., *after.vision_window.place)].int()
    difference = (within - after.frames.int()).abs()[..., 2:-2, 2:-2].amax((0, 2, 3))
    assert difference.max() <= 3  # a pixel, as both windows begin and end at whole ones
    assert (before.geometry_frames[(..., *before.vision_window.place)].int() - after.frames).abs().max() > 3


def test_3d_tokens_of_other_stills_are_those_of_what_the_encoder_sees_of_them() -> None:
    own, other = stills("s"), stills("t", (36, 32))
    override = OtherGeometry()(own, lambda: other).geometry_override
    assert override.geometry_frames.shape == own.geometry_frames.shape and override.frames.shape == own.frames.shape
    assert override.geometry_frames[0, 1, 0, -1] == pytest.approx(3 * 31, abs=2)  # the whole width of the other
    video = tiny_scene("v", steps=4)
    assert OtherGeometry()(video, lambda: other).geometry_override.geometry_frames is None


# ---- enlarged frames with corrected cameras: each pixel keeps its ray and its depth, and a draw gives one scene

HEIGHT, WIDTH = 56, 84


def made(K: tuple[float, float, float, float]) -> LoadedScene:
    """Frames that show the direction of each pixel's ray, times 40 plus 128, and depth that grows to the right."""
    fx, fy, cx, cy = K
    intrinsics = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]).repeat(2, 1, 1)
    rays = patch_directions(intrinsics, HEIGHT, WIDTH)
    frames = (128 + 40 * rays).permute(0, 3, 1, 2).round().to(torch.uint8)
    depth = 1 + torch.arange(WIDTH).expand(2, HEIGHT, WIDTH) / WIDTH
    geometry = SceneGeometry(world_to_camera=torch.eye(4).repeat(2, 1, 1), K_normalized=intrinsics, depth=depth)
    return replace(tiny_scene("made"), frames=frames, geometry=geometry)


def error(changed: LoadedScene, K: Tensor) -> float:
    """Of the rays that frames show, in units of the color, by intrinsics; without the outermost pixels."""
    assert changed.frames is not None
    expected = 128 + 40 * patch_directions(K, HEIGHT, WIDTH).permute(0, 3, 1, 2)
    return float((changed.frames - expected)[..., 2:-2, 2:-2].abs().max())


@pytest.mark.parametrize(
    ("factor", "place"), [(1.0, (0.5, 0.5)), (1.3, (0.0, 1.0)), (1.3, (0.8, 0.3)), (2.0, (0.5, 0.5))]
)
def test_each_pixel_keeps_its_ray_and_its_depth(factor: float, place: tuple[float, float]) -> None:
    given = made((0.9, 1.2, 0.04, -0.03))
    changed = enlarged(given, factor, place)
    assert given.geometry is not None and changed.geometry is not None and changed.frames is not None
    K, own = changed.geometry.K_normalized, given.geometry.K_normalized
    assert K is not None and own is not None and changed.geometry.depth is not None
    assert error(changed, K) < 1.1  # rounded twice
    assert K[0, 0, 0] / own[0, 0, 0] == pytest.approx(factor, rel=0.02)
    if factor > 1:
        assert error(changed, own) > 3  # the control: uncorrected intrinsics
        columns = round(WIDTH / factor)
        left = round(place[0] * (WIDTH - columns))
        shown = changed.geometry.depth[0, 0, [0, -1]]
        torch.testing.assert_close(shown, 1 + torch.tensor([left, left + columns - 1]) / WIDTH)
    else:
        assert torch.equal(changed.frames, given.frames) and torch.allclose(K, own)
    assert changed.geometry.world_to_camera is given.geometry.world_to_camera
    alone = enlarged(replace(given, geometry=None), factor, place)  # a dataset without cameras
    assert alone.frames is not None and torch.equal(alone.frames, changed.frames) and alone.geometry is None


def test_training_scenes_alone_change_by_their_draw(rooms_root: Path, tmp_path: Path) -> None:
    task = SimpleNamespace(model_spec=lambda training=False: ModelSpec(requires_cameras=True))
    position = dict(global_rank=0, world_size=1, ckpt_path=None, is_global_zero=True, global_step=0, callbacks=[])
    data = VideoQADataModule(Rooms(scenes=ROOMS, root=str(rooms_root)), augmentation=RandomFocalLength(1.5))
    data.trainer = cast(
        Any, SimpleNamespace(lightning_module=task, default_root_dir=tmp_path, limit_test_batches=1.0, **position)
    )
    train, *others = (
        loader.dataset for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    )
    plain = scenes_of(rooms_root)

    def focal(dataset: Any, epoch: int) -> Tensor:
        return dataset[TrainingItem(0, (0,), epoch)].geometry.K_normalized[0, 0, 0]

    own, first, again, other = focal(plain, 0), focal(train, 0), focal(train, 0), focal(train, 1)
    assert first == again != other and all(own < each < 1.52 * own for each in (first, other))
    assert all(focal(each, epoch) == focal(each, 5) for each in others for epoch in range(3))
    with pytest.raises(InputError, match="longest 1.0: a factor above 1"):
        RandomFocalLength(1.0)
