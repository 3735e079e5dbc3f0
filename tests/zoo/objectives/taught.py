"""A small model that learns from a teacher, and its batch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from datamodules.collate import TrainingCollate
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
    """Return a batch of two scenes."""
    shown = scene("a", QUESTIONS[:2], family=FAMILY), scene("b", QUESTIONS[1:2], seed=1, family=FAMILY)
    return TrainingCollate(replace(made.model_spec(training=True), requires_frames=True, geometry_reader=None))(
        list(shown)
    )


def begin(made: VideoQATask) -> None:
    """Begin a training."""
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    made._trainer = trainer
    made.configure_model()


def losses(made: VideoQATask) -> dict[str, Tensor]:
    """Return the losses of a training batch."""
    return made.train().losses(training_batch(made))
