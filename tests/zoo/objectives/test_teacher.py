"""Objectives that learn from a teacher: in training only, and what their targets are."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.collate import TrainingCollate
from datamodules.wording import Wording
from tests.zoo import asking
from tests.zoo.asking import QUESTIONS, RATES, scene
from zoo import (
    DatasetGeometry,
    DatasetPoses,
    Distillation,
    InputError,
    MetricScale,
    Teacher,
    TeacherDepth,
    TeacherPose,
    TinyQwen3VL,
    TinyVGGT,
    VideoQATask,
)
from zoo.checkpoints import unofficial_parts
from zoo.sequences.batch import Batch

FAMILY = "Qwen3-VL"
SMALL: dict[str, Any] = {"features": 8, "channels": [8, 8, 8, 8]}


def task(
    teacher: Teacher | None, token: Any = "training", width: int = 10, side: int = 32, **options: Any
) -> VideoQATask:
    torch.manual_seed(0)
    backbone = TinyQwen3VL(layers=3, hidden_size=64, heads=2, key_value_heads=2, vision_hidden_size=32)
    objectives = [
        TeacherPose(token),
        TeacherDepth(side=side, **SMALL),
        Distillation(width, indices=[2] if width == 10 else [1, 3]),
        MetricScale(),
    ]
    return VideoQATask(backbone=backbone, learning_rates=RATES, teacher=teacher, objectives=objectives, **options)


def training_batch(made: VideoQATask) -> Batch:
    parts = Wording(made.preprocessor), made.training_sequence_builder, replace(made.requirements, frames=True)
    shown = scene("a", QUESTIONS[:2], family=FAMILY), scene("b", QUESTIONS[1:2], seed=1, family=FAMILY)
    found = TrainingCollate(*parts)(list(shown))
    if made.teacher is not None:
        for each, targets in zip(found.scenes, made.teacher(found.scenes, 16), strict=True):
            each.teacher = targets
    return found


def losses(made: VideoQATask) -> dict[str, Tensor]:
    return made.train().model(training_batch(made))


@pytest.mark.parametrize("name", ["dataset", "VGGT"])
def test_what_is_learned(name: str) -> None:
    """All parts get a gradient from each kind of teacher; a scene's targets are its own."""
    if name == "dataset":
        made = task(Teacher(DatasetGeometry))
    else:
        vggt = partial(TinyVGGT, embed_dim=32, depth=4, layers=[1, 3], heads=["camera", "depth"])
        made = task(Teacher(vggt, token_channels=0.5), width=32, side=28)
    found = losses(made)
    assert {"TeacherPose/rotation", "TeacherDepth", "Distillation", "MetricScale"} <= found.keys()
    assert not found["MetricScale"] if name == "VGGT" else found["MetricScale"] > 0  # VGGT knows no meters
    found["loss"].backward()
    for parameter, value in made.model.objectives.named_parameters():
        if not (name == "VGGT" and "MetricScale" in parameter):
            assert value.grad is not None and value.grad.any(), parameter
    assert not any("teacher" in each for each in made.state_dict())


def test_targets_are_of_the_first_frame_of_each_patch() -> None:
    teacher = Teacher(DatasetGeometry)
    made = task(teacher)
    (first, second) = training_batch(made).scenes
    assert first.teacher is not None and first.geometry is not None and second.teacher is not None
    torch.testing.assert_close(first.teacher.depth, first.geometry.depth[::2])
    torch.testing.assert_close(
        first.teacher.pose_enc[0], torch.tensor([0, 0, 0, 0, 0, 0, 1.0, *first.teacher.pose_enc[0, 7:]])
    )
    assert first.teacher.meters_per_unit == 1 and len(first.teacher.tokens) == 1
    # the control: those of another scene
    shuffled = training_batch(task(Teacher(DatasetGeometry, shuffled=True))).scenes
    assert shuffled[0].teacher is not None
    torch.testing.assert_close(shuffled[0].teacher.depth, second.teacher.depth)


def test_the_scale_is_that_of_the_datasets_cameras() -> None:
    """In another unit of the dataset, VGGT's lengths are as many meters more."""
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"], seed=0)
    made = task(None)
    scenes = training_batch(made).scenes[:1]
    teacher = Teacher(vggt, scale=DatasetPoses)
    (found,) = teacher(scenes, 16)
    assert scenes[0].geometry is not None
    scenes[0].geometry = scenes[0].geometry.scaled(3.0)
    (larger,) = teacher(scenes, 16)
    assert found.meters_per_unit is not None and larger.meters_per_unit is not None
    torch.testing.assert_close(larger.meters_per_unit, 3 * found.meters_per_unit, rtol=1e-4, atol=0)


def test_the_token_is_in_the_prompts_of_a_training_alone() -> None:
    teacher = Teacher(DatasetGeometry)
    lengths = {}
    for token in ("training", "always", "none"):
        made = task(teacher, token)
        batch = training_batch(made)
        assert batch.sequences is not None
        lengths[token] = batch.sequences.lengths
        asked = asking.batch(made, scene("a", QUESTIONS[:1], family=FAMILY))
        lengths[f"{token}, asked"] = asked.prompts[0].prefix.lengths
        made.eval().model.encode_scenes(asked)
        losses(made)["loss"].backward()
    steps = 3
    assert [long - short for long, short in zip(lengths["training"], lengths["none"], strict=True)] == [steps, steps]
    assert lengths["always"] == lengths["training"]
    assert lengths["training, asked"] == lengths["none, asked"]
    assert lengths["always, asked"][0] == lengths["none, asked"][0] + steps
    # at inference it is the stock model
    assert not unofficial_parts(task(teacher, "training").model) and unofficial_parts(task(teacher, "always").model)


def test_the_first_view_has_a_token_of_its_own() -> None:
    made = task(Teacher(DatasetGeometry))
    losses(made)["TeacherPose"].backward()
    token = made.model.objectives.all_objectives["TeacherPose"].token
    assert token is not None and token.shape == (2, 64) and token.grad is not None
    assert token.grad.any(1).all() and not torch.equal(*token.grad)


def test_a_teacher_is_neither_built_nor_asked_without_a_training() -> None:
    def refuse() -> Any:
        raise AssertionError("built")

    made = task(Teacher(refuse, scale=refuse)).eval()
    asked = asking.batch(made, scene("a", QUESTIONS[:1], family=FAMILY))
    made.can_answer = True
    assert made.predict_batch(asked)[0]["error"] is None
    with pytest.raises(AssertionError, match="built"):  # the control
        training_batch(made)


def test_what_does_not_fit_is_refused() -> None:
    teacher = Teacher(DatasetGeometry)
    with pytest.raises(InputError, match="teacher_width 32, and the teacher's tokens 10 channels"):
        made = task(teacher)
        made.model.objectives["Distillation"].teacher_width = 32
        losses(made)
    with pytest.raises(InputError, match=r"reads hidden states \[4\] of a decoder with 3"):
        task(teacher).model.objectives["Distillation"]._bind_indices([4], 3)
    from zoo import GRPO

    with pytest.raises(InputError, match="TeacherPose has a token in training alone"):
        task(teacher, algorithm=GRPO())
