"""A run that is broken off resumes exactly, and nothing is saved before there is a step of training in it."""

from __future__ import annotations

import multiprocessing
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping

from callbacks import Checkpoint
from tests.callbacks.breakable import LAUNCHERS
from tests.callbacks.resumable import EPOCHS, SCENES, Interrupted, Small, train
from tests.processes import free_port
from zoo.errors import InputError
from zoo.weights.checkpoint import read_checkpoint

SCHEDULES: dict[str, dict[str, Any]] = {
    "each step": {},
    "window of 2": {"accumulate_grad_batches": 2},
    "window of 3, every other step": {"accumulate_grad_batches": 3, "every": 2},
    "validated": {"val_check_interval": 2, "limit_val_batches": 1, "every": 2},
    "validated between steps": {
        **{"accumulate_grad_batches": 2, "val_check_interval": 3, "limit_val_batches": 1, "every": 1},
    },
    "validated at the end of an epoch": {
        **{"accumulate_grad_batches": 3, "val_check_interval": 1.0, "limit_val_batches": 1, "every": 50},
    },
    "3 batches of an epoch": {"limit_train_batches": 3},
    "4 batches in windows of 3": {"limit_train_batches": 4, "accumulate_grad_batches": 3},
    "a share in windows of 2": {"limit_train_batches": 0.8, "accumulate_grad_batches": 2, "every": 50},
    "reloaded every other epoch": {"reload_dataloaders_every_n_epochs": 2, "accumulate_grad_batches": 2},
}
ALIKE = ("window of 2", "validated", "4 batches in windows of 3")  # to others that are saved or cut in windows
BATCHES = {"3 batches of an epoch": 3, "4 batches in windows of 3": 4, "a share in windows of 2": 5}  # of 7


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
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in SCHEDULES]
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


def test_a_validation_that_is_broken_off_is_made_again(tmp_path: Path) -> None:
    schedule = {"val_check_interval": 2, "limit_val_batches": 1, "every": 1}
    model = train(tmp_path / "whole", Small(), **schedule)
    assert broken_off(tmp_path / "parts", schedule, [2, 1]) == result(tmp_path / "whole", [model])  # after step 2


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
        broken_off(tmp_path, SCHEDULES["window of 2"], [5, 2])


class StopAfter(Callback):
    """As a time limit does."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.batches -= 1
        trainer.should_stop |= self.batches <= 0


@pytest.mark.parametrize("name", ["window of 3, every other step", "validated between steps"])
def test_a_run_that_is_told_to_stop_ends_with_a_whole_step_and_resumes_exactly(name: str, tmp_path: Path) -> None:
    schedule = SCHEDULES[name] | {"every": 50}
    expected = result(tmp_path / "whole", [train(tmp_path / "whole", Small(), **schedule)])
    for batches in (1, 2, 5, 6, 7):  # an epoch has 7
        folder = tmp_path / str(batches)
        models = [train(folder, Small(), [StopAfter(batches)], **schedule)]
        seen = len(models[0].losses)
        assert batches <= seen <= batches + 3
        assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == models[0].global_step
        models.append(train(folder, Small(), **schedule))
        assert len(models[1].losses) == SCENES * EPOCHS - seen  # nothing was trained again
        found = result(folder, models)
        assert all(found[part] == expected[part] for part in ("losses", "weight", "optimizer")), batches


class StopAtEpochEnd(Callback):
    """As EarlyStopping with `check_on_train_epoch_end`."""

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize("length", [{"max_epochs": EPOCHS}, {"max_steps": 9}])
def test_a_run_that_is_told_to_stop_at_an_epochs_end_resumes_exactly(length: dict[str, int], tmp_path: Path) -> None:
    schedule = {"accumulate_grad_batches": 2, "every": 50, **length}
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


def in_two_processes(folder: Path, batches: int, **settings: Any) -> None:
    """Train until so many batches are seen; losses are appended to a file of each process."""
    folder.mkdir(exist_ok=True)
    port = free_port()

    def one(rank: int) -> None:
        os.environ.update({name: str(value) for name, value in LAUNCHERS["torchrun"](rank, 2, port).items()})
        two: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False, **settings}
        model = train(folder, Small(), [StopAfter(batches)], **two)
        with (folder / f"losses.{rank}").open("a") as file:
            file.writelines(f"{key} {loss!r}\n" for key, loss in model.losses.items())

    started = [multiprocessing.get_context("fork").Process(target=one, args=(rank,)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0


def test_in_two_processes_ten_steps_are_five_and_five(tmp_path: Path) -> None:
    """Of two batches each, four batches in an epoch, with validations between steps."""
    settings = SCHEDULES["validated between steps"] | {"max_epochs": 5}
    for name, stops in (("whole", [99]), ("parts", [10, 99])):
        for batches in stops:
            in_two_processes(tmp_path / name, batches, **settings)
    whole, parts = (
        [(tmp_path / name / f"losses.{rank}").read_text() for rank in range(2)] for name in ("whole", "parts")
    )
    assert whole == parts and len(whole[0].splitlines()) == 20
    (last, resumed) = (read_checkpoint(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "parts"))
    assert last["global_step"] == 10 and torch.equal(last["state_dict"]["weight"], resumed["state_dict"]["weight"])
    both = [line.split(")")[0] for text in whole for line in text.splitlines()]
    assert len(set(both)) >= 5 * SCENES  # each process has scenes of its own


def test_early_stopping_between_two_steps_waits_for_the_next(tmp_path: Path) -> None:
    schedule = SCHEDULES["validated between steps"]
    model = train(tmp_path, Small(), [EarlyStopping("val/score", patience=1, mode="max", min_delta=9)], **schedule)
    assert 0 < len(model.losses) < SCENES * EPOCHS and len(model.losses) % 2 == 0
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == model.global_step


def test_the_best_of_a_validation_between_two_steps_has_the_weights_that_were_scored(tmp_path: Path) -> None:
    model = train(tmp_path, Small(), **SCHEDULES["validated between steps"])
    best = read_checkpoint(tmp_path / "checkpoints/best.ckpt")["state_dict"]["weight"]
    assert best.sum().item() == max(model.scores.values())


def saved_steps(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[int]:
    steps = []
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self, *_, **__: steps.append(self.global_step))
    train(folder, Small(), max_epochs=1, **settings)
    return steps


@pytest.mark.parametrize(("accumulated", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (2, [1, 2, 3, 4]), (16, [1])])
def test_each_step_is_saved_once_however_many_batches_it_takes(
    accumulated: int, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saved_steps(tmp_path, monkeypatch, accumulate_grad_batches=accumulated) == steps


def test_without_a_step_there_is_nothing_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saved_steps(tmp_path, monkeypatch, limit_train_batches=0) == []


@pytest.mark.parametrize("name", ["window of 2", "validated at the end of an epoch"])
def test_a_run_that_is_trained_for_longer_goes_on_with_the_next_scenes(name: str, tmp_path: Path) -> None:
    schedule = SCHEDULES[name] | {"every": 50}
    whole = train(tmp_path / "whole", Small(), **schedule)
    for shorter, longer in (({"max_epochs": 1}, {"max_epochs": 3}), ({"max_steps": 5}, {})):
        (option,) = shorter
        models = [train(tmp_path / option, Small(), **(schedule | changes)) for changes in (shorter, longer)]
        assert models[0].losses | models[1].losses == whole.losses
        assert torch.equal(models[1].weight, whole.weight)
