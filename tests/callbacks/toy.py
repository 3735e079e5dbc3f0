"""A LightningModule that has its answers ready, and scenes of golden questions: all that the callbacks need."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from zoo.benchmarks import VSIBench
from zoo.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "vsibench_metric" / "cases.json"


def record(
    id: str, kind: str, prediction: str, ground_truth: str, scene: str = "toy/scene", error: str | None = None
) -> dict[str, Any]:
    return {
        "id": id,
        "scene": scene,
        "question_type": kind,
        "question": f"question {id}?",
        "prompt": f"<video>question {id}?\u2028",  # a line separator, which must not split the JSON line
        "prediction": "" if error else prediction,
        "ground_truth": ground_truth,
        "frames": [0, 7],
        "error": error,
    }


def can_match(row: dict[str, Any]) -> bool:
    with suppress(InputError):
        VSIBench().check_ground_truth(row["ground_truth"], row["question_type"])
        return True
    return False


def golden_scenes() -> list[list[dict[str, Any]]]:
    """The golden rows that have a truth which an answer can match, 18 a scene; the second scene failed."""
    rows = [row for row in json.loads(GOLDEN.read_text())["rows"] if can_match(row)]
    scenes = []
    for start in range(0, len(rows), 18):
        name = f"toy/{len(scenes)}"
        error = f"{name}.mp4: truncated video, fetch it again" if len(scenes) == 1 else None
        scenes.append(
            [
                record(str(row["id"]), row["question_type"], row["prediction"], row["ground_truth"], name, error)
                for row in rows[start : start + 18]
            ]
        )
    return scenes


class Toy(LightningModule):
    def __init__(self, scenes: list[list[dict[str, Any]]] | None = None) -> None:
        super().__init__()
        self.scenes = golden_scenes() if scenes is None else scenes
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = (self.weight - 2).square().sum()
        self.log("train/loss", loss)
        return 0.5 * loss  # weighted, as a task does

    def validation_step(self, batch: list[list[dict[str, Any]]], batch_idx: int) -> list[dict[str, Any]]:
        return [each for scene in batch for each in scene]

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(self.scenes, batch_size=2, collate_fn=list)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **(defaults | settings))
