"""The first losses of a fit are those of its optimizer steps, also where it is accumulated, resumed or stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from callbacks.checkpoint import Checkpoint
from callbacks.first_losses import FILE, FirstLosses, StopAfterFirstLosses
from tests.callbacks.toy import Toy, trainer
from zoo.weights.saved_models import LAST_CHECKPOINT

SCENES = [[]] * 40  # 20 batches
# weight 1, loss (weight - 2)^2 / 2, learning rate 0.1: the distance to 2 shrinks by 0.9 in each step
EXPECTED = [round(0.5 * 0.9 ** (2 * step), 6) for step in range(5)]


def losses(folder: Path) -> list[float]:
    return json.loads((folder / FILE).read_text())["losses"]


@pytest.mark.parametrize("batches", [1, 2])
def test_they_are_of_optimizer_steps(batches: int, tmp_path: Path) -> None:
    run = trainer(tmp_path, FirstLosses(), max_steps=7, accumulate_grad_batches=batches, limit_val_batches=0)
    run.fit(Toy(SCENES))
    assert losses(tmp_path) == pytest.approx(EXPECTED, abs=1e-6)


@pytest.mark.parametrize("first", [FirstLosses(), None])
def test_a_resumed_fit_adds_those_that_are_missing(first: FirstLosses | None, tmp_path: Path) -> None:
    before, settings = [first] if first else [], {"limit_val_batches": 0, "enable_checkpointing": True}
    trainer(tmp_path, *before, Checkpoint(), max_steps=3, **settings).fit(Toy(SCENES))
    run = trainer(tmp_path, FirstLosses(), Checkpoint(), max_steps=7, **settings)
    run.fit(Toy(SCENES), ckpt_path=str(tmp_path / LAST_CHECKPOINT))
    if first:
        assert losses(tmp_path) == pytest.approx(EXPECTED, abs=1e-6)
    else:  # the losses of the first steps are unknown
        assert not (tmp_path / FILE).exists()


def test_a_fit_can_stop_after_them(tmp_path: Path) -> None:
    run = trainer(tmp_path, FirstLosses(), StopAfterFirstLosses(), max_steps=7, limit_val_batches=0)
    run.fit(Toy(SCENES))
    assert run.global_step == 5 and run.estimated_stepping_batches == 7 and len(losses(tmp_path)) == 5
