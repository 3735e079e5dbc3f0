"""Objectives that learn from a teacher: in training only, and by which tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.zoo import asking
from tests.zoo.asking import QUESTIONS, scene
from tests.zoo.objectives.taught import FAMILY, SMALL, begin, losses, task, training_batch
from zoo import (
    GRPO,
    DatasetGeometry,
    DatasetPoses,
    Distillation,
    InputError,
    MaskedViews,
    Teacher,
    TeacherDepth,
    TeacherPose,
    TinyDA3,
    TinyVGGT,
    VideoQATask,
)
from zoo.checkpoints import unofficial_parts
from zoo.objectives.base import check_teacher, end_token
from zoo.objectives.teacher import PoseMLP, geovr_layers
from zoo.tasks.training_cost import BatchSizes, sequence_sizes


def heads(made: VideoQATask) -> dict[str, nn.Parameter]:
    """Return the parameters of the objectives."""
    return {
        name.removeprefix("objectives."): value
        for name, value in made.model.named_parameters()
        if name.startswith("objectives.")
    }


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
    for parameter, value in heads(made).items():
        if not (name == "VGGT" and "MetricScale" in parameter):
            assert value.grad is not None and value.grad.any(), parameter
    assert not any("teacher" in each for each in made.state_dict())


def test_the_layers_of_the_decoder_are_those_published_for_the_kind_of_teacher() -> None:
    da3 = partial(TinyDA3, [0, 1, 2, 3], embed_dim=32, depth=4, num_heads=2, features=8, heads=["camera", "depth"])
    objectives = [TeacherPose(), TeacherDepth(side=28, **SMALL), Distillation(32)]
    backbone = asking.tiny_backbone(FAMILY, layers=4, key_value_heads=2)
    made: Any = VideoQATask(backbone=backbone, teacher=Teacher(da3, token_channels=-0.5), objectives=objectives)
    assert made.model.objectives["Distillation"].indices == (1, 2, 3, 4)  # of VGGT
    begin(made)
    assert made.model.objectives["Distillation"].indices == (2, 3, 3, 4)
    assert {layer for each in made.model.active_objectives for layer in each.layers} == {1, 2}
    losses(made)["loss"].backward()
    for parameter, value in heads(made).items():
        assert value.grad is not None and value.grad.any(), parameter
    for objective, part in ((Distillation(8), "distill"), (TeacherDepth(**SMALL), "depth")):
        objective.bind(8, 28)
        objective.match_teacher("da3")
        assert objective.indices == geovr_layers("da3", 28)[part] != geovr_layers("vggt", 28)[part]
    chosen = Distillation(8, indices=[1, 3])
    chosen.bind(8, 28)
    chosen.match_teacher("da3")
    assert chosen.indices == (1, 3)  # the control


@pytest.mark.parametrize("seed", range(6))
def test_fields_of_view_start_where_they_learn(seed: int) -> None:
    """Camera tokens hardly differ at first: where one output is below 0, so are all."""
    torch.manual_seed(seed)
    head, tokens = PoseMLP(64), torch.randn(64) + 0.01 * torch.randn(8, 64)
    found = head(tokens)[:, 7:]
    assert (found > 0).all()
    found.sum().backward()
    last: Any = head.fc_fov[0]
    assert last.weight.grad.any(1).all()


def test_the_tokens_are_in_the_prompts_of_a_training_alone() -> None:
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
    more = steps + 1  # one per view, and one at the end of the video
    assert [long - short for long, short in zip(lengths["training"], lengths["none"], strict=True)] == [more, more]
    assert lengths["always"] == lengths["training"]
    assert lengths["training, asked"] == lengths["none, asked"]
    assert lengths["always, asked"][0] == lengths["none, asked"][0] + more
    # at inference it is the stock model
    assert not unofficial_parts(task(teacher, "training").model) and unofficial_parts(task(teacher, "always").model)


def test_the_first_view_has_a_token_of_its_own() -> None:
    made = task(Teacher(DatasetGeometry))
    losses(made)["TeacherPose"].backward()
    token = made.model.objectives["TeacherPose"].token
    assert token is not None and token.shape == (2, 64) and token.grad is not None
    assert token.grad.any(1).all() and not torch.equal(*token.grad)


def test_the_scale_is_read_behind_the_last_view() -> None:
    made = task(Teacher(DatasetGeometry)).train()
    batch = training_batch(made)
    assert batch.sequences is not None
    scenes = made.model.encode_scenes(batch)
    inputs = made.model.decoder_inputs(scenes, batch.sequences)
    decoded = made.model.decode(scenes, batch.sequences)
    steps, per_view = scenes[0].visual.tokens.shape[:2]
    (_, states), *_ = decoded.visual_states(inputs["inputs_embeds"])
    token = made.model.objectives["MetricScale"].token
    assert token is not None and states.shape[1] == steps * per_view + 1 and torch.equal(states[0, -1], token)
    (_, views), *_ = decoded.views_of(inputs["inputs_embeds"])
    assert torch.equal(views[0].flatten(0, 1), states[0, :-1])
    stills = replace(batch.scenes[0], kind="image")
    objectives = made.model.objectives.values()
    assert end_token(objectives, batch.scenes[0], training=True) is token
    assert end_token(objectives, stills, training=True) is None


@pytest.mark.parametrize("kind", ["l1", "silog"])
def test_unknown_depth_has_no_error_and_no_gradient(kind: str) -> None:
    made: Any = task(Teacher(DatasetGeometry))
    batch = training_batch(made)
    made.model.objectives["TeacherDepth"].kind = kind
    targets = []
    for given in made.compute_teacher_targets(batch):
        depth = torch.zeros_like(given.depth)
        depth[:, :16] = 2.0
        targets.append(given._replace(depth=depth))
    found = made.train().model(batch, targets)["TeacherDepth"]
    found.backward()
    assert found > 0.1
    gradients = {n: p.grad for n, p in heads(made).items() if n.startswith("TeacherDepth")}
    assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())
    for given in targets:
        given.depth[:] = 0.0
    assert made.model(batch, targets)["TeacherDepth"] < 0.01


def test_what_does_not_fit_is_refused() -> None:
    teacher = Teacher(DatasetGeometry)
    made: Any = task(teacher)
    made.model.objectives["Distillation"].teacher_width = 32
    with pytest.raises(InputError, match="teacher_width 32, and the teacher's tokens 10 channels"):
        losses(made)
    with pytest.raises(InputError, match=r"reads hidden states \[4\] of a decoder with 3"):
        made.model.objectives["Distillation"]._bind_indices([4], 3)
    with pytest.raises(InputError, match="TeacherPose and MetricScale show a training other tokens than a test"):
        task(teacher, algorithm=GRPO())
    with pytest.raises(InputError, match="MaskedViews show a training other tokens"):
        VideoQATask(objectives=[MaskedViews()], algorithm=GRPO())
    # what no teacher gives
    objectives, vggt = made.model.active_objectives, partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"])
    check_teacher(objectives, teacher.given)
    check_teacher(objectives, Teacher(vggt, scale=DatasetPoses).given)
    for given, message in (
        (None, "TeacherPose learns the pose_enc of a teacher: name one"),
        (Teacher(vggt).given, "MetricScale learns the meters_per_unit .* another --model.teacher.scale"),
        (Teacher(partial(DatasetGeometry, depth=False)).given, "TeacherDepth learns the depth .*teacher.encoder"),
    ):
        with pytest.raises(InputError, match=message):
            check_teacher(objectives, given)


def test_the_plan_of_a_training_counts_its_tokens() -> None:
    assert sequence_sizes(task(None).model, BatchSizes(6, height=64, width=96))[0] == 3 * (6 + 1) + 1
