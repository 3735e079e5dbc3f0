"""A run that is broken off resumes exactly, and nothing is saved before there is a step of training in it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping

from callbacks.checkpoint import Checkpoint
from tests.callbacks.resumable import EPOCHS, SCENES, Interrupted, Small, train
from zoo.errors import InputError
from zoo.weights.checkpoint import read_checkpoint
from zoo.weights.saved_models import LAST_CHECKPOINT

SCHEDULES: dict[str, dict[str, Any]] = {
    "each step": {},
    "window of 3, every other step": {"accumulate_grad_batches": 3, "every": 2},
    "validated": {"val_check_interval": 2, "limit_val_batches": 1, "every": 1},
    "validated between steps": {
        **{"accumulate_grad_batches": 2, "val_check_interval": 3, "limit_val_batches": 1, "every": 1},
    },
    "validated at the end of an epoch": {
        **{"accumulate_grad_batches": 3, "val_check_interval": 1.0, "limit_val_batches": 1, "every": 50},
    },
    "4 batches in windows of 3": {"limit_train_batches": 4, "accumulate_grad_batches": 3},
    "a share in windows of 2": {"limit_train_batches": 0.8, "accumulate_grad_batches": 2, "every": 50},
    "reloaded every other epoch": {"reload_dataloaders_every_n_epochs": 2, "accumulate_grad_batches": 2},
}
FAST = ("window of 3, every other step", "validated between steps", "a share in windows of 2")
BATCHES = {"4 batches in windows of 3": 4, "a share in windows of 2": 5}  # of 7


def result(folder: Path, models: list[Small]) -> dict[str, Any]:
    """Losses and scores, by step, of the parts of a run, and the states that it leaves."""
    last = read_checkpoint(folder / "checkpoints/last.ckpt")
    file = folder / "checkpoints" / last["files"]["optimizer_states"][0]
    (optimizer,) = read_checkpoint(file, required="optimizer_states")["optimizer_states"]
    best = folder / "checkpoints/best.ckpt"
    merged: dict[str, dict[Any, float]] = {"losses": {}, "scores": {}}
    for model in models:
        for name, values in merged.items():
            found = getattr(model, name)
            assert all(values[key] == value for key, value in found.items() if key in values), "other numbers"
            values |= found
    return merged | {
        "step": last["global_step"],
        "weight": last["state_dict"]["weight"].tolist(),
        "best": read_checkpoint(best)["state_dict"]["weight"].tolist() if best.exists() else None,
        "optimizer": {name: value.tolist() for name, value in optimizer["state"][0].items()},
        "schedule": last["lr_schedulers"],
    }


def broken_off(folder: Path, schedule: dict[str, Any], stops: list[int]) -> dict[str, Any]:
    models = []
    for stop in stops:
        models.append(Small(stop))
        with pytest.raises(Interrupted):
            train(folder, models[-1], **schedule)
    models.append(train(folder, Small(), **schedule))
    return result(folder, models)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SCHEDULES]
)
def test_a_run_that_is_resumed_twice_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Wherever it is broken off, validations included."""
    schedule, chance = SCHEDULES[name], random.Random(0)
    model, batches = train(tmp_path / "whole", Small(), **schedule), BATCHES.get(name, SCENES)
    whole = result(tmp_path / "whole", [model])
    assert len(set(whole["losses"].values())) == len(whole["losses"]) == batches * EPOCHS
    per_epoch = -(-batches // schedule.get("accumulate_grad_batches", 1))
    assert whole["step"] == model.expected_steps == per_epoch * EPOCHS
    orders = {tuple(scene for step, scene in whole["losses"] if step // per_epoch == epoch) for epoch in range(EPOCHS)}
    assert len(orders) == EPOCHS and all(len(set(order)) == batches for order in orders)
    assert (whole["best"] is not None) == bool(whole["scores"]) == ("validated" in name)
    ends = [batches + len([step for step in whole["scores"] if step < whole["step"] / EPOCHS]), 2]  # an epoch's
    for number in range(2):
        stops = [chance.randrange(2, 20), chance.randrange(1, 6)] if number else ends
        try:
            found = broken_off(tmp_path / str(number), schedule, stops)
        except pytest.fail.Exception:
            continue  # it was done before it was stopped
        assert found == whole, stops


@pytest.mark.parametrize("accumulated", [1, 3])
def test_overfitting_trains_on_the_same_batches_in_each_epoch(accumulated: int, tmp_path: Path) -> None:
    model = train(tmp_path, Small(), overfit_batches=2, accumulate_grad_batches=accumulated, every=50)
    scenes = [scene for _, scene in model.losses]
    assert scenes == scenes[:2] * EPOCHS and scenes[0] != scenes[1]
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == model.expected_steps


def test_a_state_between_two_steps_would_not_be_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: accumulated gradients are in no checkpoint, and what is saved between two steps is refused."""
    monkeypatch.setattr(Checkpoint, "on_train_batch_end", lambda self, trainer, *_: self._save_last(trainer))
    with pytest.raises(InputError, match="and a checkpoint a complete step"):
        broken_off(tmp_path, {"accumulate_grad_batches": 2}, [5, 2])


class StopAfter(Callback):
    """As a time limit does."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.batches -= 1
        trainer.should_stop |= self.batches <= 0


def test_a_run_that_is_told_to_stop_ends_with_a_whole_step_and_resumes_exactly(tmp_path: Path) -> None:
    schedule = SCHEDULES["validated between steps"] | {"every": 50}
    expected = result(tmp_path / "whole", [train(tmp_path / "whole", Small(), **schedule)])
    for batches in (1, 6, 7):  # an epoch has 7
        folder = tmp_path / str(batches)
        models = [train(folder, Small(), [StopAfter(batches)], **schedule)]
        seen = len(models[0].losses)
        assert batches <= seen <= batches + 3
        assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == models[0].global_step
        models.append(train(folder, Small(), **schedule))
        assert len(models[1].losses) == SCENES * EPOCHS - seen  # nothing was trained again
        found = result(folder, models)
        assert all(found[part] == expected[part] for part in ("losses", "weight", "optimizer")), batches


class Diverge(Callback):
    """A weight becomes infinite in the third step."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 3:
            next(pl_module.parameters()).data.fill_(float("inf"))


def test_a_training_that_diverges_ends_and_keeps_its_last_finite_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not finite after step 4. .* after step 3"):
        train(tmp_path, Small(), [Diverge()], max_steps=6)
    saved = torch.load(tmp_path / LAST_CHECKPOINT, weights_only=True)
    assert saved["global_step"] == 3 and all(each.isfinite().all() for each in saved["state_dict"].values())


class Asked(list):
    """A batch of one scene, about which a question is asked."""

    @property
    def records(self) -> list[dict[str, Any]]:
        return [{"id": f"question-{scene}"} for scene, _ in self]


class Asking(Small):
    """The gradient of one scene is NaN."""

    def __init__(self, broken: int | None = None) -> None:
        super().__init__()
        self.broken = broken

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.collate_fn = Asked
        return loader

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if batch[0][0] == self.broken else loss


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_gradient_that_is_not_finite_stops_before_its_step_and_names_the_questions(
    accumulated: int, tmp_path: Path
) -> None:
    settings = {"accumulate_grad_batches": accumulated, "max_epochs": 1, "every": 50}
    whole = train(tmp_path / "whole", Asking(), **settings)  # the control, in which nothing is broken
    order = [scene for _, scene in whole.losses]
    place = 4
    window = order[place - place % accumulated :][:accumulated]
    named, model = ", ".join(f"question-{scene}" for scene in window), Asking(order[place])
    step = place // accumulated + 1
    with pytest.raises(InputError, match=rf"not finite in step {step} \(questions {named}\).*after step 0; try lower"):
        train(tmp_path / "broken", model, **settings)
    assert model.weight.isfinite().all()


class StopAtEpochEnd(Callback):
    """As EarlyStopping with `check_on_train_epoch_end`."""

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = True


def test_a_run_that_is_told_to_stop_at_an_epochs_end_resumes_exactly(tmp_path: Path) -> None:
    schedule = {"accumulate_grad_batches": 2, "every": 50, "max_steps": 9}
    expected = result(tmp_path / "whole", [train(tmp_path / "whole", Small(), **schedule)])
    models = [train(tmp_path / "parts", Small(), [StopAtEpochEnd()], **schedule)]
    assert models[0].global_step == 5  # the epoch's four and the next, where it is saved
    models.append(train(tmp_path / "parts", Small(), **schedule))
    assert result(tmp_path / "parts", models) == expected


def test_without_validation_data_the_steps_are_saved_all_the_same(tmp_path: Path) -> None:
    class Unvalidated(Small):
        def val_dataloader(self) -> Any:
            return torch.utils.data.DataLoader([], batch_size=1)  # type: ignore[arg-type]

    model = train(tmp_path, Unvalidated(), max_epochs=1, limit_val_batches=1.0, every=50)
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == model.global_step == SCENES


def test_early_stopping_between_two_steps_waits_for_the_next(tmp_path: Path) -> None:
    schedule = SCHEDULES["validated between steps"]
    model = train(tmp_path, Small(), [EarlyStopping("val/score", patience=1, mode="max", min_delta=9)], **schedule)
    assert 0 < len(model.losses) < SCENES * EPOCHS and len(model.losses) % 2 == 0
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == model.global_step
    best = read_checkpoint(tmp_path / "checkpoints/best.ckpt")["state_dict"]["weight"]
    assert best.sum().item() == max(model.scores.values())  # the weights that were scored


class Saved(Callback):
    """The steps of the checkpoints that are saved, and the batches of the epoch so far."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.batches: list[int] = []

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        self.steps.append(trainer.global_step)
        self.batches.append(trainer.fit_loop.batch_idx + 1)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"accumulate_grad_batches": 2}, [1, 2, 3, 4]),
        ({"accumulate_grad_batches": 16}, [1]),
        ({"limit_train_batches": 0}, []),
    ],
)
def test_each_step_is_saved_once_however_many_batches_it_takes(
    settings: dict[str, int], steps: list[int], tmp_path: Path
) -> None:
    saved = Saved()
    train(tmp_path, Small(), [saved], max_epochs=1, **settings)
    assert saved.steps == steps


def test_a_validation_between_two_steps_saves_the_next(tmp_path: Path) -> None:
    saved = Saved()
    train(tmp_path, Small(), [saved], **SCHEDULES["validated between steps"] | {"every": 50, "max_epochs": 1})
    assert 4 in saved.batches and set(saved.batches) <= {4, 6, 7}  # it is after batch 3, and a step has two


def test_a_run_that_is_trained_for_longer_goes_on_with_the_next_scenes(tmp_path: Path) -> None:
    schedule = {"accumulate_grad_batches": 2, "every": 50}
    whole = train(tmp_path / "whole", Small(), **schedule)
    for shorter, longer in (({"max_epochs": 1}, {"max_epochs": 3}), ({"max_steps": 5}, {})):
        (option,) = shorter
        models = [train(tmp_path / option, Small(), **(schedule | changes)) for changes in (shorter, longer)]
        assert models[0].losses | models[1].losses == whole.losses
        assert torch.equal(models[1].weight, whole.weight)
