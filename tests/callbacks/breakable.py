"""A test of small scenes, in processes that can be killed at any moment: all but the model is the real thing."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image

from callbacks import MetricsCallback
from datamodules import PixelBounds, SceneSource, VideoQADataModule
from datamodules.scenes import Question, Scene
from datamodules.sources.base import Split
from run_folder.record import METRICS, TEST_FILE
from tests.datamodules.batches import spec_for
from tests.processes import free_port
from zoo.backbones import tiny_preprocessor
from zoo.benchmarks import VSIBench
from zoo.files.atomic_io import read_records
from zoo.model_spec import ModelSpec
from zoo.sequences.batch import Batch

QUESTIONS = (3, 9, 1, 4, 18, 2, 7, 5, 6, 2)  # of each scene
BROKEN = 3  # this scene has no video that can be read
RESULTS = (METRICS, "predictions.jsonl", TEST_FILE)
PIXELS = PixelBounds(784, 784, legacy_folder_resize=False)


class Tiny(SceneSource):
    """Scenes of two frames."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def prepare(self) -> None:
        for scene in range(len(QUESTIONS)):
            folder = self.root / f"scene{scene}"
            if folder.exists():
                return
            folder.mkdir(parents=True)
            for frame in range(2):
                Image.fromarray(np.full((28, 28, 3), 9 * scene, np.uint8)).save(folder / f"{frame}.png")
        for frame in (self.root / f"scene{BROKEN}").iterdir():
            frame.write_bytes(b"no picture")

    def scenes(self, split: Split) -> list[Scene]:
        made = []
        for scene, count in enumerate(QUESTIONS):
            kinds = [
                VSIBench().question_types[(scene + place) % len(VSIBench().question_types)] for place in range(count)
            ]
            asked = tuple(
                Question(f"{scene}-{place}", kind, f"{kind}\u2026", "4" if "object_c" in kind else "A")
                for place, kind in enumerate(kinds)
            )
            made.append(Scene(f"tiny/scene{scene}", self.root / f"scene{scene}", asked))
        return made


class Answers(LightningModule):
    """Answers by the ids alone, after a while; notes in a log when it starts with a scene."""

    def model_spec(self, *, training: bool = False) -> ModelSpec:
        return spec_for(tiny_preprocessor())

    def __init__(self, log: Path, seconds: float) -> None:
        super().__init__()
        self.log_file, self.seconds = log, seconds
        self.weight = torch.nn.Parameter(torch.ones(2))

    def test_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        asked = batch.records + batch.failed
        if asked:
            with self.log_file.open("a") as log:
                log.write(f"{self.global_rank} {asked[0]['scene']} {len(asked)}\n")
            time.sleep(self.seconds * random.random())
        answered = [{**each, "prediction": "4A"[int(each["id"][-1]) % 2] + "..."} for each in batch.records]
        return answered + batch.failed


def run(
    folder: Path,
    scenes: Path,
    *callbacks: Callback,
    processes: int = 1,
    seconds: float = 0.0,
    scorer: str | None = None,
    limit: int | float = 1.0,
    **data: Any,
) -> None:
    """The whole test, in this process (or as one of several, where the environment says which)."""
    torch.set_num_threads(1)
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[MetricsCallback(scorer), *callbacks],
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        limit_test_batches=limit,
    )
    data = {"num_frames": 2, "pixels": PIXELS, "num_workers": 0, **data}
    trainer.test(Answers(folder / "log", seconds), datamodule=VideoQADataModule(Tiny(scenes), **data))


def start(folder: Path, scenes: Path, *, processes: int = 1, launcher: str = "torchrun", **settings: Any) -> list[Any]:
    """The same in processes of its own, as torchrun or SLURM starts them."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environments = [LAUNCHERS[launcher](rank, processes, port) for rank in range(processes)]
    started = [
        multiprocessing.get_context("fork").Process(
            target=_one, args=(rank, processes, environment, folder, scenes), kwargs=settings, daemon=True
        )
        for rank, environment in enumerate(environments)
    ]
    for process in started:
        process.start()
    return started


def _one(rank: int, processes: int, environment: dict[str, Any], folder: Path, scenes: Path, **settings: Any) -> None:
    if processes > 1:
        os.environ.update({name: str(value) for name, value in environment.items()})
    sys.stdout = sys.stderr = (folder / f"output.{rank}").open("w")
    run(folder, scenes, processes=processes, **settings)


# what each launcher says to a process of it, all on one machine
LAUNCHERS = {
    "torchrun": lambda rank, processes, port: {
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0},
        **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes},
    },
    "SLURM": lambda rank, processes, port: {
        **{"SLURM_JOB_ID": 1, "SLURM_JOB_NAME": "test", "SLURM_NODELIST": "localhost", "SLURM_NODEID": 0},
        **{"SLURM_NTASKS": processes, "SLURM_NTASKS_PER_NODE": processes, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
        **{"SLURM_STEP_ID": 0, "MASTER_PORT": port},
    },
}


def finish(started: list[Any]) -> None:
    for process in started:
        process.join(60)
        assert process.exitcode == 0


# ---- what a test leaves


def results(folder: Path) -> dict[str, bytes]:
    assert not list(folder.glob("predictions.rank*"))
    assert not list(folder.glob("*.partial"))
    return {name: (folder / name).read_bytes() for name in RESULTS}


def log(folder: Path) -> list[tuple[str, str, int]]:
    """(process, scene, questions) of each scene that was begun."""
    path = folder / "log"
    words = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(rank, scene, int(questions)) for rank, scene, questions in words]


def on_disk(folder: Path) -> dict[str, dict[str, Any]]:
    found = read_records([folder / "predictions.jsonl", *folder.glob("predictions.rank*.jsonl")])
    return {record["id"]: record for record in found}
