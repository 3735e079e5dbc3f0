"""A small model that learns from a teacher, and its batch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from datamodules.collate import TrainingCollate
from datamodules.loaded_scene import Wording
from tests.zoo import asking
from tests.zoo.asking import QUESTIONS, RATES, scene
from zoo import (
    Distillation,
    MetricScale,
    Teacher,
    TeacherDepth,
    TeacherPose,
    VideoQATask,
)
from zoo.sequences.batch import Batch

FAMILY = "Qwen3-VL"
SMALL: dict[str, Any] = {"features": 8, "channels": [8, 8, 8, 8]}


def task(
    teacher: Teacher | None, token: Any = "training", width: int = 10, side: int = 32, **options: Any
) -> VideoQATask:
    """Return the task with all four objectives."""
    torch.manual_seed(0)
    objectives = [
        TeacherPose(token),
        TeacherDepth(side=side, **SMALL),
        Distillation(width, indices=[2] if width == 10 else [1, 3]),
        MetricScale(token),
    ]
    backbone = asking.tiny_backbone(FAMILY, layers=3, key_value_heads=2)
    return VideoQATask(backbone=backbone, learning_rates=RATES, teacher=teacher, objectives=objectives, **options)


def training_batch(made: VideoQATask) -> Batch:
    """Return a batch of two scenes, with the targets of the task's teacher."""
    parts = Wording(made.preprocessor), made.training_sequence_builder, replace(made.requirements, frames=True)
    shown = scene("a", QUESTIONS[:2], family=FAMILY), scene("b", QUESTIONS[1:2], seed=1, family=FAMILY)
    found = TrainingCollate(*parts)(list(shown))
    if made.teacher is not None:
        for each, targets in zip(found.scenes, made.teacher(found.scenes, 16), strict=True):
            each.teacher = targets
    return found


def begin(made: VideoQATask, **data: Any) -> None:
    """Begin a training on a data module with these settings."""
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"), datamodule=SimpleNamespace(**data))
    made._trainer = trainer
    made.configure_model()


def losses(made: VideoQATask) -> dict[str, Tensor]:
    """Return the losses of a training batch."""
    return made.train().model(training_batch(made))
