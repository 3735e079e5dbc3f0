"""Nothing is saved before there is a step of training in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from callbacks import Checkpoint
from tests.callbacks.toy import Toy

SCENES: list[list[dict[str, Any]]] = [[] for _ in range(8)]


def saved_steps(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[int]:
    steps = []
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self, *_: steps.append(self.global_step))
    settings |= {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = Trainer(default_root_dir=folder, callbacks=[Checkpoint(every_n_train_steps=1)], **settings)
    trainer.fit(Toy(SCENES))
    return steps


@pytest.mark.parametrize(("accumulated", "steps"), [(1, [1, 2, 3, 4]), (2, [1, 2]), (16, [1])])
def test_each_step_is_saved_once_however_many_batches_it_takes(
    accumulated: int, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saved_steps(tmp_path, monkeypatch, accumulate_grad_batches=accumulated) == steps


def test_without_a_step_there_is_nothing_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saved_steps(tmp_path, monkeypatch, limit_train_batches=0) == []
