"""Records which files run between an annotation file and the loss, in order."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from datamodules import Conversations, VideoQADataModule
from datamodules.cameras_file import write_cameras
from zoo import ConcatSplitFusion, PRoPE, PRoPEMLLM, TinyQwen25VL, ViewAttention

ROOT = Path(__file__).parents[1]
PACKAGES = ("zoo", "datamodules")
FRAMES, SIDE = 4, 56


def recorded_files() -> list[str]:
    """Returns the files of the model and its data that run, by their first call: one training step of prope.yaml."""
    task = PRoPEMLLM(
        backbone=TinyQwen25VL(),
        fusion=ConcatSplitFusion,
        view_mixer=lambda width: ViewAttention(width, 32, PRoPE()),
        camera_encoding=PRoPE(),
        allow_untrained=True,
    )
    with TemporaryDirectory() as folder:
        write_data(Path(folder))
        with recording() as files:
            data = VideoQADataModule(Conversations(f"{folder}/train.jsonl"), num_frames=FRAMES, num_workers=0)
            data.trainer = Trainer(accelerator="cpu", limit_val_batches=0, logger=False, enable_checkpointing=False)
            data.trainer.state.fn = TrainerFn.FITTING
            data.trainer.strategy.connect(task)
            data.prepare_data()
            batch = next(iter(data.train_dataloader()))
            task.train().loss(batch)
    return files


def write_data(folder: Path) -> None:
    """Writes an annotation file with two questions about one video, a folder of frames, and its cameras."""
    turns = [{"from": "human", "value": "<video>\nHow many chairs?"}, {"from": "gpt", "value": "4"}]
    rows = [{"video": "room", "conversations": turns}, {"video": "room", "conversations": turns}]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "room").mkdir()
    for number in range(FRAMES):
        Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(folder / "room" / f"{number}.png")
    poses = torch.eye(4, dtype=torch.float64).repeat(FRAMES, 1, 1)
    poses[:, 0, 3] = torch.arange(FRAMES)
    K_px = torch.tensor([[50.0, 0, 28], [0, 50, 28], [0, 0, 1]], dtype=torch.float64)
    write_cameras(folder / "room.cameras.json", poses, K_px, width=SIDE, height=SIDE)


@contextmanager
def recording() -> Iterator[list[str]]:
    """Lists the files of `PACKAGES` whose functions run within, by their first call."""
    found: dict[str, None] = {}
    files: list[str] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            found.setdefault(frame.f_code.co_filename)

    sys.setprofile(profile)
    try:
        yield files
    finally:
        sys.setprofile(None)
    paths = (Path(file) for file in found)
    names = (
        path.relative_to(ROOT).as_posix() for path in paths if path.is_relative_to(ROOT) and ".venv" not in path.parts
    )
    files += [name for name in names if name.split("/")[0] in PACKAGES]
