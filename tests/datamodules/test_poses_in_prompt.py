"""Cameras as text in the prompt: their numbers, of which world, and for which model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Tokenizer

from datamodules import FramesOnOtherCameras, OtherCameras, SceneFolder, VideoQADataModule, WrongFocalLength
from datamodules.chat_format import poses_text
from datamodules.collate import QuestionCollate, TrainingCollate
from datamodules.inference import batch_of_questions
from tests.cli import Run, the_run
from tests.datamodules.batches import tiny_spec
from tests.test_cameras_of_runs import copied_without_cameras
from tests.tiny import tiny_model, tiny_scene
from zoo.cameras.poses import invert_se3, rigid_matrix
from zoo.cameras.scene_geometry import PatchCameras, SceneGeometry, merge_cameras
from zoo.errors import InputError
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks.training_cost import BatchSizes, sequence_sizes

A, B = tiny_scene("a", steps=4), tiny_scene("b", steps=4, seed=1)
HEAD = "Cameras relative to view {}: right, up, forward (meters); yaw right, pitch up, roll clockwise (degrees)"


def turn(axis: int, degrees: float) -> Tensor:
    """A right-handed rotation about x (right), y (down) or z (forward)."""
    vector = torch.zeros(3, dtype=torch.float64)
    vector[axis] = math.radians(degrees)
    return torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3, dtype=torch.float64), vector.expand(3, 3)))


def cameras(*poses: tuple[Tensor, list[float]], fov: float = 60.0) -> PatchCameras:
    """Cameras by their rotations and places in the world."""
    to_world = torch.stack([rigid_matrix(R, torch.tensor(place, dtype=torch.float64)) for R, place in poses])
    K = torch.diag(torch.tensor([0.5 / math.tan(math.radians(fov / 2)), 1.0, 1.0], dtype=torch.float64))
    return PatchCameras(invert_se3(to_world), K.repeat(len(poses), 1, 1), torch.ones(len(poses), dtype=torch.bool))


YAW, PITCH, ROLL = turn(1, 30), turn(0, 20), turn(2, -10)
SEEN = cameras((torch.eye(3).double(), [0.0, 0.0, 0.0]), (YAW @ PITCH @ ROLL, [1.0, -0.5, 2.0]))


def test_a_known_pair_of_cameras_has_this_text() -> None:
    lines = [f"{HEAD.format(1)}.", "Horizontal field of view: 60 degrees."]
    lines += ["View 1: 0.00, 0.00, 0.00; 0, 0, 0", "View 2: 1.00, 0.50, 2.00; 30, 20, -10"]
    assert poses_text(SEEN).split("\n") == lines
    looks = (YAW @ PITCH @ ROLL)[:, 2]  # to the right and up, where y points down
    assert looks[0] > 0 > looks[1]
    wider = SEEN.K_normalized.clone()
    wider[1, 0, 0] = 0.5
    lines = [f"{HEAD.format(1)}; horizontal field of view.", "View 1: 0.00, 0.00, 0.00; 0, 0, 0; 60"]
    assert poses_text(SEEN._replace(K_normalized=wider)).split("\n") == [
        *lines,
        "View 2: 1.00, 0.50, 2.00; 30, 20, -10; 90",
    ]


@pytest.mark.parametrize(("pitch", "yaw"), [(90, 25), (-90, -140), (60, 180)])
def test_angles_of_a_camera_that_looks_up_or_down(pitch: int, yaw: int) -> None:
    text = poses_text(cameras((torch.eye(3).double(), [0.0] * 3), (turn(1, yaw) @ turn(0, pitch), [0.0] * 3)))
    assert text.endswith(f"View 2: 0.00, 0.00, 0.00; {yaw}, {pitch}, 0")


def test_a_change_of_world_changes_nothing() -> None:
    given = merge_cameras(A.geometry)
    moved = rigid_matrix(turn(0, 40) @ turn(2, 70), torch.tensor([3.0, -1.0, 8.0], dtype=torch.float64))
    assert poses_text(given._replace(world_to_camera=given.world_to_camera @ moved)) == poses_text(given)
    # the control: a motion of one camera alone
    poses = given.world_to_camera.clone()
    poses[2] = poses[2] @ moved
    assert poses_text(given._replace(world_to_camera=poses)) != poses_text(given)


def test_plan_counts_their_tokens(realdata: Path) -> None:
    tokenizer = Qwen2Tokenizer.from_pretrained(realdata / "qwen2.5-vl")
    model = tiny_model().model
    for steps in (4, 16):
        text = poses_text(merge_cameras(tiny_scene("a", steps=steps).geometry))
        sizes = [BatchSizes(2 * steps, 56, 84, poses_in_prompt=is_written) for is_written in (True, False)]
        (*_, longer), (*_, shorter) = (sequence_sizes(model, each) for each in sizes)
        assert longer - shorter == pytest.approx(len(tokenizer(text)["input_ids"]), rel=0.1)


def test_a_view_without_a_camera_is_unknown() -> None:
    known = torch.tensor([False, True, False, True])
    text = poses_text(merge_cameras(A.geometry)._replace(has_camera=known)).split("\n")
    assert text[0] == f"{HEAD.format(2)}." and [line.endswith(": unknown") for line in text[2:]] == (~known).tolist()
    assert text[3] == "View 2: 0.00, 0.00, 0.00; 0, 0, 0"


# ---- In prompts -----------------------------------------------------------------------------------------------------


def prompt_of(loaded: LoadedScene, **parts: Any) -> str:
    spec = replace(tiny_spec(), **parts)
    return QuestionCollate(spec, poses_in_prompt=True)([loaded]).records[0]["prompt"]


def written(loaded: LoadedScene, **parts: Any) -> str:
    """The text between the last medium of a prompt and its question."""
    before, after = prompt_of(loaded, **parts).split(A.questions[0].question)
    assert "View" not in after
    return before.split("<|vision_end|>")[-1]


@pytest.mark.parametrize("merged", ["first", "last", "mean"])
def test_a_line_has_the_camera_of_the_token(merged: Any) -> None:
    text = written(A, merged_camera=merged)
    assert text == f"{poses_text(merge_cameras(A.geometry, merged))}\n" and text.count("View ") == 4
    others = {"first", "last", "mean"} - {merged}
    assert all(text != f"{poses_text(merge_cameras(A.geometry, other))}\n" for other in others)  # the control


@pytest.mark.parametrize("perturbation", [OtherCameras(), FramesOnOtherCameras(), WrongFocalLength(0.2)])
def test_perturbed_cameras_are_written(perturbation: Any) -> None:
    shown = replace(A, geometry=replace_cameras(A.geometry))
    other = replace(B, geometry=replace_cameras(B.geometry))
    perturbed = perturbation(shown, lambda: other)
    assert written(perturbed) == f"{poses_text(merge_cameras(perturbed.geometry))}\n"
    is_paired = isinstance(perturbation, FramesOnOtherCameras)  # which moves frames and leaves the cameras in place
    assert (written(perturbed) == written(shown)) == is_paired


def replace_cameras(geometry: SceneGeometry) -> SceneGeometry:
    return SceneGeometry(world_to_camera=geometry.world_to_camera, K_normalized=geometry.K_normalized)


def test_each_image_has_a_line_behind_the_last() -> None:
    images = replace(A, kind="image", is_one_medium=True, frame_times=None)
    assert written(images) == written(A) and prompt_of(images).count("<|vision_end|>") == 4


def test_a_baseline_learns_from_them_and_only_if_asked() -> None:
    task = tiny_model()
    assert not task.model_spec().uses_cameras
    losses = []
    for poses_in_prompt, scene in ((True, A), (True, replace(A, geometry=B.geometry)), (False, A), (False, B)):
        shown = replace(A, geometry=scene.geometry)
        batch = TrainingCollate(task.model_spec(training=True), poses_in_prompt=poses_in_prompt)([shown])
        losses.append(task.loss(batch))
    assert losses[0] != losses[1] and losses[2] == losses[3] and losses[0] != losses[2]
    losses[0].backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in task.parameters())


def test_a_scene_without_cameras_is_a_failure() -> None:
    bare = replace(A, geometry=None)
    batch = QuestionCollate(tiny_spec(), poses_in_prompt=True)([bare, B])
    assert {record["scene"] for record in batch.records} == {"b"}
    assert {record["scene"] for record in batch.failed} == {"a"}
    assert all(
        record["error"].startswith("a: no poses of the frames of a for --data.poses_in_prompt")
        for record in batch.failed
    )
    assert not QuestionCollate(tiny_spec())([bare]).failed


def test_answer_writes_them_as_the_training_did() -> None:
    model, frames = tiny_model().model, torch.rand(4, 3, 56, 84)
    geometry = replace_cameras(A.geometry)[:4]

    def prompt() -> str:
        return batch_of_questions(model, frames, ["Which?"], geometry, None, None).records[0]["prompt"]

    assert "View 1" not in prompt()
    model.data_config = {"init_args": {"poses_in_prompt": True}}
    assert poses_text(merge_cameras(geometry)) in prompt()
    with pytest.raises(InputError, match="poses_in_prompt"):
        batch_of_questions(model, frames, ["Which?"], None, None, None)


def test_a_split_without_cameras_names_the_option(rooms_root: Path, tmp_path: Path) -> None:
    source = SceneFolder(str(copied_without_cameras(rooms_root, tmp_path)))
    with pytest.raises(InputError, match="--data.poses_in_prompt: SceneFolder"):
        VideoQADataModule(source, poses_in_prompt=True).scenes("test")
    assert VideoQADataModule(source).scenes("test")


@pytest.mark.slow
def test_a_run_of_the_baseline_reads_poses(run: Run, tmp_path: Path) -> None:
    run("fit", "--config", "qwen25_vl.yaml", "--data.poses_in_prompt", "true", "--trainer.max_steps", "1")
    run("test")
    run("test", "--data.perturbation", "OtherCameras")
    run("test", "--data.poses_in_prompt", "false")
    folder = the_run(tmp_path)
    metrics = [json.loads(path.read_text()) for path in folder.rglob("metrics.json")]
    assert len({json.dumps(each["baselines"], sort_keys=True) for each in metrics}) == 1  # blind to the prompt
    texts = {path.parent.name: path.read_text() for path in folder.rglob("predictions.jsonl")}
    own = texts.pop(folder.name)
    assert len(texts) == 2
    views = {
        name: re.findall(r"View \d.*?degrees|View 2: [^\\]*", text) for name, text in {**texts, "own": own}.items()
    }
    (other,) = (found for name, found in views.items() if "OtherCameras" in name)
    (none,) = (found for name, found in views.items() if "poses_in_prompt" in name)
    assert not none and other and views["own"] and other != views["own"]
