"""A task that asks no questions gets scenes with frames, cameras and depth, and nothing is tokenized for it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from lightning import Callback, Trainer

from datamodules import PixelBounds, Rooms, VideoQADataModule
from datamodules.chat_format import ChatFormat
from tests.conftest import ROOMS
from zoo import Qwen25VL, TinyVGGT, VGGTPretraining
from zoo.sequences.batch import Batch


class Kept(Callback):
    """The batches of all stages."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, *_: Any) -> None:
        self.batches.append(batch)

    on_validation_batch_start = on_test_batch_start = on_train_batch_start


def trainer(folder: Path, kept: Kept) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits: dict[str, Any] = {"max_steps": 1, "limit_val_batches": 1, "limit_test_batches": 1}
    return Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=[kept], enable_checkpointing=False, **limits, **quiet
    )


def test_fit_and_test_of_vggt_tokenize_nothing(rooms_root: Path, tmp_path: Path) -> None:
    bounds = PixelBounds(784, 65536, legacy_folder_resize=False)
    source = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1)
    data = VideoQADataModule(source, num_frames=4, pixels=bounds, num_workers=0, batch_size=2)
    task, kept = VGGTPretraining(TinyVGGT(embed_dim=32, depth=2, heads=("camera", "depth", "point"))), Kept()
    with patch.object(ChatFormat, "chat", side_effect=AssertionError("a question was worded")):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="You have overridden")  # a hook, once in the model and once here
            trainer(tmp_path, kept).fit(task, data)
        trainer(tmp_path, kept).test(task, data, verbose=False)
        with pytest.raises(AssertionError, match="a question was worded"):  # the control: a task that asks questions
            trainer(tmp_path, Kept()).test(Qwen25VL(allow_untrained=True), data, verbose=False)
    assert len(kept.batches) == 3  # a sanity check, a training step and a test
    for batch in kept.batches:
        assert batch.sequences is None and not batch.prompts and not batch.failed
        assert all(len(scene.frames) == len(scene.geometry.depth) == 4 for scene in batch.scenes)
        assert all(scene.geometry.has_cameras for scene in batch.scenes)
