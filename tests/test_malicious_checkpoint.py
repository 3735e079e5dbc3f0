"""Every way to a checkpoint refuses one that would run code, in one line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli import Run, Trained
from zoo import SpatialVLM, VideoQATask
from zoo.errors import InputError


class Malicious:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


@pytest.mark.parametrize(
    "commands",
    [
        (
            ["test", "--weights_only", "false"],
            ["predict", "--data.video", "VIDEO", "--data.question", "How big?"],
            ["export", "--out", "exported"],
            ["fit", "--config", "qwen25_vl.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3"],
        ),
        pytest.param((["test"], ["test", "--ckpt_path", "FILE"], ["validate"]), marks=pytest.mark.slow),
    ],
    ids=["each way", "other tests"],
)
def test_no_command_runs_the_code_of_a_checkpoint(
    commands: Sequence[list[str]], run: Run, trained: Trained, rooms_root: Path
) -> None:
    folder = trained()
    checkpoint = folder / "checkpoints/last.ckpt"
    torch.save(torch.load(checkpoint, weights_only=True) | {"hyper_parameters": Malicious()}, checkpoint)
    says = r"last\.ckpt holds posix\.system, not only tensors and plain values; .* is not read: take a checkpoint"
    paths = {"VIDEO": str(next(rooms_root.glob("*/rooms/test_*.mp4"))), "FILE": str(checkpoint)}
    for words in commands:
        with pytest.raises(SystemExit, match=f"^error: .*{says}") as error:
            run(*(paths.get(word, word) for word in words))
        assert "\n" not in str(error.value) and not Path("owned").exists()
    for load in (VideoQATask.load_from_checkpoint, lambda _: SpatialVLM.from_pretrained(folder)):
        with pytest.raises(InputError, match=says):
            load(checkpoint)
    assert not Path("owned").exists()
    torch.load(checkpoint, weights_only=False)  # the control
    assert Path("owned").exists()
