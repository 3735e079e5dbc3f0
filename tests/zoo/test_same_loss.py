"""The gradient of an optimizer step does not depend on how its questions are split: processes, batches, sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.collate import KeepInStep, TrainingCollate
from datamodules.question_sampler import QuestionSampler, TrainingItem, TrainingLoader, TrainingPosition
from datamodules.scenes import RawQuestion, num_answers
from tests.tiny import QUESTIONS, tiny_model, tiny_scene
from zoo import (
    CameraPrediction,
    DatasetGeometry,
    DepthPrediction,
    Distillation,
    MaskedViews,
    MetricScale,
    PosePrediction,
    RayAttention,
    RayDepthPrediction,
    Teacher,
    TeacherDepth,
    TeacherPose,
)
from zoo.sequences.batch import Batch, OptimizerStep
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks import VideoQATask

# a conversation is as many questions as it has answers
TALK = RawQuestion("talk", "", "How many?", "12345", later_turns=(("And then?", "7"), ("Why so many of them?", "Ask.")))
KINDS = ("object_counting", "room_size_estimation")
ASKED = tuple(replace(question, question_type=KINDS[i % 2]) for i, question in enumerate(QUESTIONS))
SCENES = [
    tiny_scene("a", ASKED[1:4]),
    tiny_scene("b", ASKED[:1], steps=2, seed=1),
    tiny_scene("c", (*ASKED[:2], TALK), seed=2),
    tiny_scene("d", ASKED[:4], steps=2, seed=3),
]

for each in (1, 3):  # half of the scenes have no target of depth
    SCENES[each].geometry.depth = None  # type: ignore[union-attr]

SEQUENCES = 4  # of an optimizer step; an epoch has 7, so its last step is shorter


class Asked(Dataset):
    """Scenes, of which some may be damaged."""

    def __init__(self, damaged: str) -> None:
        self.damaged = damaged

    def __getitem__(self, item: TrainingItem) -> LoadedScene:
        loaded = SCENES[item.scene]
        return replace(
            loaded,
            questions=tuple(loaded.questions[i] for i in item.questions),
            question_types=tuple(loaded.questions[i].question_type for i in item.step_questions),
            is_supervised=not item.is_padding,
            draw=item.draw(loaded.name),
            error="damaged" if loaded.name in self.damaged else None,
            step=item.step,
        )


def batches(
    task: VideoQATask, batch_size: int, processes: int, rank: int, options: dict[str, Any], damaged: str = ""
) -> Iterator[Batch]:
    """An epoch of a process."""
    counts = [len(each.questions) for each in SCENES]
    answers = np.concatenate([num_answers(each.questions) for each in SCENES])
    accumulated = SEQUENCES // (batch_size * processes)
    sampler = QuestionSampler(
        counts, batch_size, 2, 5, rank, processes, num_answers=answers, skips_failed=bool(damaged)
    )
    sampler.position = lambda: TrainingPosition(0, 0, len(sampler), accumulated)
    spec = task.model_spec(training=True)
    if options.get("alone"):
        spec = replace(spec, packs_questions=False)
    packing = {name: value for name, value in options.items() if name != "alone"}
    collate = TrainingCollate(spec, **packing)
    data = Asked(damaged)
    yield from TrainingLoader(data, batch_sampler=sampler, collate_fn=KeepInStep(collate, data, len(SCENES)))


def steps(task: VideoQATask, batch_size: int, processes: int, damaged: str = "", **options: Any) -> list[Tensor]:
    """The gradient of each optimizer step of an epoch, as Lightning accumulates and DDP averages it."""
    accumulated = SEQUENCES // (batch_size * processes)
    found: dict[int, Tensor] = {}
    failed: dict[int, int] = {}
    planned: dict[int, OptimizerStep | None] = {}
    for rank in range(processes):
        for number, batch in enumerate(batches(task, batch_size, processes, rank, options, damaged)):
            task.zero_grad()
            task.check(batch)
            weight = batch.weight if task.model.average == "questions" else 1.0
            (weight * task.loss(batch) / accumulated / processes).backward()
            gradient = torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])
            step = number // accumulated
            found[step] = found[step] + gradient if step in found else gradient.clone()
            failed[step], planned[step] = failed.get(step, 0) + batch.failed_answers, batch.step
    return [updated_by(task, found[step], planned[step], failed[step]) for step in sorted(found)]


def updated_by(task: VideoQATask, gradient: Tensor, step: OptimizerStep | None, failed: int) -> Tensor:
    """The gradient that the optimizer gets, where the other of two processes has all failed answers."""
    strategy = SimpleNamespace(reduce=lambda own, reduce_op: own + failed)
    task._trainer = SimpleNamespace(world_size=2, strategy=strategy)  # type: ignore[assignment]
    task._step, task._failed_answers = step, 0
    parameters = [p for p in task.parameters() if p.grad is not None]
    for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()
    task.on_before_optimizer_step(torch.optim.SGD(parameters))
    task._trainer = None
    return torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]


def apart(found: list[Tensor], expected: list[Tensor]) -> float:
    assert len(found) == len(expected) == 2
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def model(name: str, average: str = "questions", **more: Any) -> VideoQATask:
    return tiny_model(name, average=average, **more).double().train()


OBJECTIVES = {
    "answers": lambda: None,
    "masks by type": lambda: [MaskedViews(0.1, {KINDS[0]: 0.9})],
    "all": lambda: [CameraPrediction(token=False), DepthPrediction(layer=0, weight=0.5), MaskedViews(mask_ratio=0.4)],
    "poses": lambda: [PosePrediction(dim=32, trunk_depth=1)],
    "ray depth": lambda: [RayDepthPrediction()],
    "teacher": lambda: [TeacherPose(), TeacherDepth(side=28, **SMALL), Distillation(10, [2]), MetricScale()],
}
MODELS: dict[str, dict[str, Any]] = {
    "all": {"name": "prope.yaml"},
    "ray depth": {"name": "RayRoPE", "view_mixer": RayAttention},
    "teacher": {"name": "plain", "teacher": Teacher(DatasetGeometry)},
}
SMALL: dict[str, Any] = {"features": 8, "channels": [8, 8, 8, 8]}
SPLITS: list[tuple[int, int, dict[str, Any]]] = [  # sequences in a batch, processes, and how sequences are made
    (2, 1, {}),
    (1, 1, {}),
    (2, 2, {}),
    (1, 2, {}),
    (1, 4, {}),
    (2, 2, {"alone": True}),
    (4, 1, {"pack_scenes": True}),
    (1, 2, {"tokens_per_sequence": 1}),
]
SLOW = OBJECTIVES.keys() - {"masks by type"}


@pytest.mark.parametrize(
    "objective", [pytest.param(each, marks=pytest.mark.slow) if each in SLOW else each for each in OBJECTIVES]
)
def test_a_step_has_one_gradient_however_its_questions_are_split(objective: str) -> None:
    heads, parts = OBJECTIVES[objective], MODELS.get(objective, {"name": "plain"})
    task = model(**parts, objectives=heads())
    reference = steps(task, SEQUENCES, 1)
    splits = {"answers": SPLITS, "all": SPLITS, "masks by type": SPLITS[4:6]}.get(objective, SPLITS[2:6])
    for batch_size, processes, options in splits:
        assert apart(steps(task, batch_size, processes, **options), reference) < 1e-6, (batch_size, processes, options)
    # the control: the published rule depends on the split
    task = model(**parts, average="micro_batch_tokens", objectives=heads())
    assert apart(steps(task, 1, 2), steps(task, SEQUENCES, 1)) > 1e-2


def test_the_mean_of_a_step_leaves_failed_scenes_out_in_all_processes() -> None:
    """Beside the loss of each step's other questions in one batch."""
    task = model("plain", objectives=[DepthPrediction()])
    (read, _), (whole, _) = (list(batches(task, SEQUENCES, 1, 0, {}, damaged)) for damaged in ("bc", ""))
    lost = {record["id"] for record in whole.records} - {record["id"] for record in read.records}
    assert 0 < len(lost) <= read.failed_answers < sum(whole.num_answers)
    task.zero_grad()
    task.model(read)["loss"].backward()  # a mean over the answers that are left
    expected = torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])
    for batch_size, processes in ((SEQUENCES, 1), (1, 1), (1, 4)):  # in the last, a process has failed scenes alone
        found = steps(task, batch_size, processes, damaged="bc")[0]
        assert float((found - expected).norm() / expected.norm()) < 1e-6
    kept_in_step = [sum(batch.num_answers) for rank in range(4) for batch in batches(task, 1, 4, rank, {}, "bc")]
    assert len(kept_in_step) == 8 and 0 in kept_in_step


def test_a_step_counts_its_answers_and_not_those_that_another_process_learns_from() -> None:
    task = model("plain")
    every = [list(batches(task, 1, 4, rank, {})) for rank in range(4)]
    learned = [[sum(batch.num_answers) for batch in own] for own in every]
    assert learned[3][-1] == 0 and every[3][-1].weight == 0  # a copy, as 7 sequences are no multiple of 4
    for step in range(2):
        total = sum(own[step] for own in learned)
        assert {own[step].step for own in every} == {OptimizerStep(total, 4)}
    assert sum(map(sum, learned)) == sum(int(num_answers(each.questions).sum()) for each in SCENES) == 13
