"""A training on a DataModule's scenes: it resumes on the same questions only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from callbacks import Checkpoint
from callbacks.checkpoint_io import CheckpointFiles
from datamodules import VideoQADataModule
from datamodules.scenes import Scene
from datamodules.sources.base import Split
from tests.callbacks.breakable import BROKEN, PIXELS, Tiny
from tests.datamodules.batches import builder_for
from zoo.backbones import tiny_preprocessor
from zoo.errors import InputError
from zoo.requirements import DataRequirements
from zoo.sequences.batch import Batch
from zoo.tasks import Task
from zoo.tasks.optim import LearningRates, WarmupCosine


class Readable(Tiny):
    """The scenes that can be read, whose first answer may be another."""

    answer = "A"

    def scenes(self, split: Split) -> list[Scene]:
        first, *others = (scene for place, scene in enumerate(super().scenes(split)) if place != BROKEN)
        asked = tuple(replace(question, ground_truth=self.answer) for question in first.questions)
        return [replace(first, questions=asked), *others]


class Learner(Task):
    """Learns a weight, and notes the ids of what it learns from."""

    preprocessor, requirements = tiny_preprocessor(), DataRequirements()  # type: ignore[assignment]
    sequence_builder = builder_for(preprocessor)

    def __init__(self) -> None:
        super().__init__(LearningRates(), torch.optim.AdamW, WarmupCosine)
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.asked: list[list[str]] = []

    def part_of(self, name: str) -> str:
        return "decoder"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check(batch)
        self.asked.append([record["id"] for record in batch.records])
        return self.weight.square().sum()


def fit(folder: Path, source: Tiny, learner: Learner | None = None, **settings: Any) -> Learner:
    """Trains, from the newest checkpoint in the folder if there is one."""
    last = folder / "checkpoints/last.ckpt"
    learner = learner or Learner()
    data = {name: settings.pop(name) for name in list(settings) if name not in ("max_steps", "max_epochs")}
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[Checkpoint(1)],
        plugins=[CheckpointFiles()],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **settings,
    )
    data = VideoQADataModule(source, num_frames=2, pixels=PIXELS, **({"num_workers": 0} | data))
    trainer.fit(learner, data, ckpt_path=str(last) if last.exists() else None)
    return learner


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    Tiny(folder).prepare()
    return folder


def test_resuming_with_other_answers_is_an_error(root: Path, tmp_path: Path) -> None:
    """Their number is the same."""
    whole = fit(tmp_path / "whole", Readable(root), max_steps=6).asked
    begun = fit(tmp_path / "run", Readable(root), max_steps=3).asked
    changed = Readable(root)
    changed.answer = "B"
    with pytest.raises(InputError, match="^the checkpoint was trained with other questions or answers"):
        fit(tmp_path / "run", changed, max_steps=6)
    assert begun + fit(tmp_path / "run", Readable(root), max_steps=6).asked == whole
