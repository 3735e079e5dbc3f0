"""Cameras and depth as objectives predict them: targets, errors, and that they are learned where they can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.zoo.asking import QUESTIONS, VGGT, batch, build, scene
from zoo import CameraPrediction, DatasetPoses, DepthPrediction, TinyVGGT
from zoo.cameras.poses import invert_se3, pose_distance, rigid_matrix, rotation_from_6d
from zoo.cameras.scene_geometry import PatchCameras, merge_cameras
from zoo.geometry.base import SceneGeometry, encoder_frames
from zoo.objectives import Decoded
from zoo.scene_encoding import token_depth
from zoo.sequences.batch import Batch
from zoo.tasks.video_qa import predicted_cameras

SCENES = scene("a", QUESTIONS[:2]), scene("b", QUESTIONS[:1], steps=2, seed=1)
UP_TO_ROUNDING = partial(torch.allclose, atol=1e-5)


def geometry_of(steps: int, number: int = 0) -> SceneGeometry:
    geometry = scene("a", steps=steps, seed=number).geometry
    assert geometry is not None
    return geometry


# ---- targets ---------------------------------------------------------------------------------------------------


def test_six_numbers_make_every_rotation() -> None:
    rotation = merge_cameras(geometry_of(20)).world_to_camera[:, :3, :3]
    numbers = torch.cat((3 * rotation[..., 0], 0.5 * rotation[..., 1] + 2 * rotation[..., 0]), -1)
    assert torch.allclose(rotation_from_6d(numbers), rotation, atol=1e-12)


def test_true_poses_are_relative_to_a_camera_that_is_known() -> None:
    cameras = merge_cameras(geometry_of(5))._replace(has_camera=torch.tensor([False, True, True, False, True]))
    poses, center = cameras.world_to_camera, invert_se3(cameras.world_to_camera)[:, :3, 3]
    first, step = (CameraPrediction().true_poses(cameras, anchor) for anchor in ("reference", "neighbor"))
    middle = CameraPrediction(reference="middle").true_poses(cameras, "reference")
    assert middle.known.tolist() == [False, False, False, False, True]  # a causal decoder sees none ahead
    assert first.known.tolist() == [False, False, True, False, True]
    assert step.known.tolist() == [False, False, True, False, False]
    # slow and obvious: the center of camera 4 in the frame of camera 1, and the turn between both
    found = first.poses.double()
    assert UP_TO_ROUNDING(invert_se3(found)[4, :3, 3], poses[1, :3, :3] @ (center[4] - center[1]))
    assert UP_TO_ROUNDING(found[4, :3, :3], poses[4, :3, :3] @ poses[1, :3, :3].mT)
    found = step.poses.double()
    assert UP_TO_ROUNDING(invert_se3(found)[2, :3, 3], poses[1, :3, :3] @ (center[2] - center[1]))


def test_true_poses_know_neither_the_world_nor_with_a_scale_its_size() -> None:
    cameras = merge_cameras(geometry_of(5))
    poses = cameras.world_to_camera
    moved = cameras._replace(world_to_camera=poses @ rigid_matrix(poses[0, :3, :3], poses[1, :3, 3]))
    larger = cameras._replace(world_to_camera=rigid_matrix(poses[:, :3, :3], 7 * poses[:, :3, 3]))
    for anchor in ("reference", "neighbor"):
        metric, scaled = (CameraPrediction(scale=scale).true_poses for scale in ("none", "mean"))
        assert UP_TO_ROUNDING(metric(moved, anchor).poses, metric(cameras, anchor).poses)
        assert UP_TO_ROUNDING(scaled(larger, anchor).poses, scaled(cameras, anchor).poses)
        assert not torch.allclose(metric(larger, anchor).poses, metric(cameras, anchor).poses, atol=0.1)


def test_depth_is_the_median_over_the_merged_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(4, 56, 84, generator=generator)
    depth = depth * (depth > 0.3)
    depth[2:, :28, 28:56] = 0
    found = token_depth(SceneGeometry(depth=depth), 2)
    assert found is not None and token_depth(SceneGeometry(), 2) is None
    for step, row, column in ((0, 1, 2), (1, 1, 0), (1, 0, 1)):
        pixels = depth[2 * step : 2 * step + 2, 28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
        expected = pixels[pixels > 0].median() if (pixels > 0).any() else 0
        assert found[step, 3 * row + column] == expected


def with_depth() -> TinyVGGT:
    return TinyVGGT(embed_dim=32, depth=2, heads=("camera", "depth"))


def test_pseudo_labels_are_the_encoders_in_training_alone() -> None:
    objectives = [CameraPrediction(), DepthPrediction()]
    task = build("plain", geometry=with_depth, camera_source="predicted", objectives=objectives)
    encoder, (_, shown), needs = task.model.geometry, SCENES, task.model_spec()
    assert (
        needs.requires_frames
        and needs.targets == ("cameras", "depth")
        and not needs.required_targets
        and encoder is not None
    )
    truth = shown.geometry
    assert truth is not None and shown.frames is not None
    frames = encoder_frames(shown.frames, task.model.backbone.patch_size, encoder.patch_size)
    (geometry,) = encoder([frames], [truth], tokens=False)
    for training, expected in ((True, geometry), (False, truth)):
        (encoded,) = task.train(training).model.encode_scenes(batch(task, shown))
        cameras, depth = encoded.target_cameras, encoded.target_depth
        assert cameras is not None and depth is not None
        assert torch.equal(cameras.world_to_camera, merge_cameras(expected).world_to_camera)
        assert torch.equal(depth, token_depth(expected, 2))  # type: ignore[arg-type]
    errors = task.eval().predict_batch(batch(task, shown))[0]["objectives"]  # against the dataset's
    assert {"CameraPrediction/center", "DepthPrediction/depth_relative"} <= errors.keys()


@pytest.mark.parametrize("encoding", [{}, {"camera_encoding": "PRoPE, ChannelRange"}], ids=["objective", "PRoPE"])
def test_auto_learns_the_datasets_cameras_and_predicted_ones_of_scenes_without(encoding: dict[str, Any]) -> None:
    task = build("plain", **VGGT, **encoding, camera_source="auto", objectives=[CameraPrediction(), DepthPrediction()])
    assert task.model_spec().required_targets == ("depth",) and task.model_spec().requires_frames
    shown, encoder = SCENES[1], task.model.geometry
    assert shown.geometry is not None and shown.frames is not None and encoder is not None
    frames = encoder_frames(shown.frames, task.model.backbone.patch_size, encoder.patch_size)
    (geometry,) = encoder([frames], [None], tokens=False)
    only_depth = SceneGeometry(depth=shown.geometry.depth)
    for given, expected in ((shown.geometry, shown.geometry), (only_depth, geometry)):
        (encoded,) = task.train().model.encode_scenes(batch(task, replace(shown, geometry=given)))
        cameras, depth = encoded.target_cameras, encoded.target_depth
        assert cameras is not None and depth is not None
        assert torch.equal(cameras.world_to_camera, merge_cameras(expected).world_to_camera)
        assert torch.equal(depth, token_depth(given, 2))  # type: ignore[arg-type]
    depth_alone = build("plain", **VGGT, camera_source="auto", objectives=[DepthPrediction()])
    assert depth_alone.model.geometry is None and depth_alone.model_spec().arbitrary_unit is None


def test_errors_are_against_the_dataset_whatever_cameras_the_tokens_have() -> None:
    parts = {"geometry": with_depth, "camera_source": "predicted", "objectives": [CameraPrediction()]}
    unlearned = []
    for encoding in ({}, {"camera_encoding": "PRoPE, ChannelRange"}):
        task = build("plain", **parts, **encoding)
        (errors,) = (record["objectives"] for record in task.predict_batch(batch(task, SCENES[1])))
        unlearned.append(errors["CameraPrediction/unlearned/center"])
    assert unlearned[0] == unlearned[1]


@pytest.mark.parametrize(
    ("objectives", "unit"),
    [
        ([CameraPrediction()], "TinyVGGT"),
        ([DepthPrediction()], "TinyVGGT"),
        ([CameraPrediction(scale="mean")], None),
    ],
)
def test_lengths_in_a_unit_of_each_scenes_own_are_said_to_be(objectives: list[Any], unit: str | None) -> None:
    task = build("plain", geometry=with_depth, camera_source="predicted", objectives=objectives)
    assert task.model_spec().arbitrary_unit == unit


def test_pseudo_labels_that_are_aligned_need_the_datasets_cameras() -> None:
    aligned = partial(TinyVGGT, embed_dim=32, depth=2, scale_from=DatasetPoses())
    needs = build("plain", geometry=aligned, camera_source="predicted", objectives=[CameraPrediction()]).model_spec()
    assert needs.required_targets == ("cameras",) and needs.arbitrary_unit is None


def test_still_images_have_a_camera_each() -> None:
    task = build("plain", objectives=[CameraPrediction(), DepthPrediction()])
    images = replace(SCENES[1], kind="image", is_one_medium=True)
    losses = task.train().losses(batch(task, images, training=True))
    assert losses["CameraPrediction"] > 0 < losses["DepthPrediction"]
    errors = task.eval().predict_batch(batch(task, images))[0]["objectives"]
    geometry = SCENES[1].geometry
    assert geometry is not None
    poses = CameraPrediction().true_poses(merge_cameras(geometry), "reference").poses
    distance = invert_se3(poses)[:, :3, 3].norm(dim=-1)  # of a camera that never moves
    assert errors["CameraPrediction/unlearned/center"] == pytest.approx(float(distance[1]), rel=1e-4)


# ---- errors ----------------------------------------------------------------------------------------------------


def test_predicted_cameras_are_those_whose_errors_are_reported() -> None:
    task = build("plain", objectives=[CameraPrediction()])
    asked = batch(task, *SCENES)
    found = predicted_cameras(task.model, asked)
    assert found.keys() == {"a", "b"} and not predicted_cameras(build("plain").model, asked)
    cameras, predicted = found["a"]
    angle, distance = (each[1:].mean() for each in pose_distance(predicted, cameras.world_to_camera))
    errors = task.predict_batch(asked)[0]["objectives"]
    assert errors["CameraPrediction/rotation_deg"] == pytest.approx(float(angle.rad2deg()), rel=1e-4)
    assert errors["CameraPrediction/center"] == pytest.approx(float(distance), rel=1e-4)
    still = float(invert_se3(cameras.world_to_camera)[1:, :3, 3].norm(dim=-1).mean())
    assert errors["CameraPrediction/unlearned/center"] == pytest.approx(still, rel=1e-4)


# ---- learning --------------------------------------------------------------------------------------------------


class Shown(Decoded):
    """A scene with hidden states that are given."""

    def __init__(self, cameras: PatchCameras, states: Tensor) -> None:
        self.scenes: Any = [SimpleNamespace(target_cameras=cameras)]
        self.states, self.last_hidden_state = states, states[0]
        self.sequences: Any = SimpleNamespace(scene_index=[[0] for _ in states], num_answers=[1 for _ in states])

    def views(self, layer: int) -> Iterator[tuple[Any, Tensor]]:
        yield self.scenes[0], self.states


@pytest.mark.parametrize("shuffled", [False, True])
def test_cameras_are_learned_from_states_that_hold_them_and_shuffled_ones_are_not(shuffled: bool) -> None:
    """New cameras in each step, so that none is learned by heart."""
    torch.manual_seed(0)
    objective, mixing = CameraPrediction(anchors=["reference"]), torch.randn(12, 32)
    objective.bind(32, 2)

    def draw(count: int) -> Shown:
        skew = 0.5 * torch.randn(count, 3, 3)
        poses = rigid_matrix(torch.linalg.matrix_exp(skew - skew.mT), torch.randn(count, 3))
        poses[0] = torch.eye(4)
        states = invert_se3(poses)[:, :3].flatten(1) @ mixing
        states = states[torch.randperm(count)] if shuffled else states
        cameras = PatchCameras(poses, torch.eye(3).repeat(count, 1, 1), torch.ones(count, dtype=torch.bool))
        return Shown(cameras, states[None, :, None])

    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.stack(list(objective(draw(64)).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        errors = {name: float(value) for name, value in objective.errors(draw(512)).items()}
    for name in ("rotation_deg", "center"):
        ratio = errors[name] / errors[f"unlearned/{name}"]
        assert ratio > 0.9 if shuffled else ratio < 0.4, errors


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_small_model_learns_cameras_that_its_frames_show(shuffled: bool) -> None:
    """The brightness of a frame is its place along an axis; new frames in each step."""
    torch.manual_seed(0)
    task = build("plain", objectives=[CameraPrediction(anchors=["reference"])]).train()
    example = scene("a", QUESTIONS[:1], steps=4)

    def draw() -> Batch:
        place = torch.rand(4)
        frames = (255 * place).to(torch.uint8).repeat_interleave(2)[:, None, None, None].repeat(1, 3, 56, 84)
        poses = torch.eye(4).repeat(4, 1, 1)
        poses[:, 0, 3] = -3 * (place[torch.randperm(4)] if shuffled else place)
        geometry = SceneGeometry(
            world_to_camera=poses.repeat_interleave(2, 0), K_normalized=torch.eye(3).repeat(8, 1, 1)
        )
        return batch(task, replace(example, frames=frames, geometry=geometry), training=task.training)

    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(500):
        optimizer.zero_grad()
        task.loss(draw()).backward()
        optimizer.step()
    task.eval()
    found = [task.predict_batch(draw())[0]["objectives"] for _ in range(10)]
    learned, unlearned = (sum(each[f"CameraPrediction/{null}center"] for each in found) for null in ("", "unlearned/"))
    assert learned > 0.8 * unlearned if shuffled else learned < 0.65 * unlearned, (learned, unlearned)
