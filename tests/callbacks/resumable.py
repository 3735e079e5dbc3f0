"""A small training that can be broken off at any batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from callbacks.checkpoint import Checkpoint, CheckpointFiles
from datamodules.question_sampler import QuestionSampler, TrainingLoader, TrainingPosition

SCENES, EPOCHS = 7, 3


class Interrupted(Exception):
    pass


class Small(LightningModule):
    """Each loss depends on the weights, the batch and its place in the training; records what happens.

    Args:
        stop_at: batches and validations that are begun before it is interrupted; None is never.
        size: number of weights.
    """

    def __init__(self, stop_at: int | None = None, size: int = 4) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, size))
        self.left = stop_at
        self.losses: dict[tuple[int, int], float] = {}  # of (step, scene)
        self.scores: dict[int, float] = {}  # of the validation after a step

    def begin(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Interrupted

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.begin()
        ((scene, _),) = batch
        loss = (self.weight[:4] * (scene + 1)).sin().square().sum()
        self.losses[self.global_step, scene] = loss.item()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.begin()
        score = self.weight[:4].sum()
        self.scores[self.global_step] = score.item()
        self.log("val/score", score)

    def configure_optimizers(self) -> Any:
        self.expected_steps = self.trainer.estimated_stepping_batches  # as tasks do: it builds the loader early
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
                "interval": "step",
            },
        }

    def train_dataloader(self) -> TrainingLoader:
        dataset: Any = type("Scenes", (), {"__getitem__": lambda _, draw: (draw.scene, draw.epoch), "__len__": len})()
        position = partial(TrainingPosition.of, self.trainer)
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        sampler = QuestionSampler([1] * SCENES, 1, questions_per_scene=1, seed=0, **ranks, position=position)
        return TrainingLoader(dataset, batch_sampler=sampler, collate_fn=list)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([0], batch_size=1)  # type: ignore[arg-type]


def train(folder: Path, model: Small, others: Sequence[Callback] = (), every: int = 1, **settings: Any) -> Small:
    """Trains, from the newest checkpoint in the folder if there is one."""
    last = folder / "checkpoints/last.ckpt"
    defaults: dict[str, Any] = {"max_epochs": EPOCHS, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[*others, Checkpoint(every, "val/score" if "val_check_interval" in settings else None)],
        plugins=[CheckpointFiles()],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **(defaults | settings),
    )
    trainer.fit(model, ckpt_path=str(last) if last.exists() else None)
    return model
