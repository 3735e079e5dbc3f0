"""What a plan computes from a counted step: shards, hours, and the first change that fits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import main
from commands.planning.changes import Choice, alternatives, choose, launch, verdict
from commands.planning.hours import GPUS
from commands.planning.training import Setup, Training
from tests.commands.planning.made_cost import COST, GB
from zoo.tasks.training_cost import BatchSizes, StepCost


@pytest.mark.parametrize(
    ("gb", "setup", "expected"),
    [
        (95, Setup("ddp", False), "fits: 94.0 of 95.0 GB"),
        (75, Setup("ddp", False), "take --model.gradient_checkpointing true: 74.0 GB"),
        (70, Setup("ddp", True), "take --config strategy_fsdp2.yaml: 46.0 GB"),
        (50, Setup("fsdp2", False), "take --model.gradient_checkpointing true: 46.0 GB"),
        (40, Setup("fsdp2", True), "take on 4 GPUs: 30.0 GB"),
    ],
)
def test_the_last_line_names_the_first_change_that_fits(gb: int, setup: Setup, expected: str) -> None:
    training = Training("", setup, 2, float(gb * GB), COST, BatchSizes(16, 56, 56), 1)
    assert expected in verdict(training, choose(training, []))


@pytest.mark.parametrize(
    ("accumulated", "weights", "needed"),
    [
        (1, 8, 16 / 4 + 16 / 4 + 32 / 4 + 4 + 10),
        (2, 8, 16 / 4 + 16 / 4 + 32 / 4 + 18 + 10),  # the gradients of the whole model until the step's last batch
        (1, 40, 16 / 4 + 32 / 4 + 40),  # the whole weights in a validation are more than a step
    ],
)
def test_shards_are_beside_what_is_gathered(accumulated: int, weights: int, needed: float) -> None:
    cost = replace(COST, gathered_weights=weights * GB)
    training = Training("", Setup("fsdp2", True), 4, 80.0 * GB, cost, BatchSizes(16, 56, 56), accumulated)
    assert training.needed(training.setup) == needed * GB
    assert training.needed(Setup("ddp", True)) == 74 * GB


def test_hours_are_operations_over_a_share_of_the_peak() -> None:
    cost = replace(COST, steps={False: StepCost(0, 3 * 10**15), True: StepCost(0, 4 * 10**15)})
    training = Training("", Setup("ddp", False), 2, 80.0 * GB, cost, BatchSizes(16, 56, 56), 3, utilization=0.5)
    h100 = next(gpu for gpu in GPUS if gpu.name == "H100")

    def hours(checkpointing: bool, **changes: Any) -> float:
        changed = training._replace(**changes)
        return h100.hours(changed.operations(Setup("ddp", checkpointing)), changed.utilization)

    step = 3 * 3 * 10**15 / (0.5 * h100.peak_tflops * 10**12) / 3600
    assert hours(False, max_steps=100) == pytest.approx(100 * step)
    assert hours(True, max_steps=100) == pytest.approx(100 * step * 4 / 3)
    assert hours(False, max_steps=100, epoch=600) == pytest.approx(100 * step)  # of 2 x 3 questions in a step
    assert hours(False) == pytest.approx(10_000 / 6 * step) and "10,000 questions" in training.length.name


def test_alternatives_come_one_by_one_and_then_together() -> None:
    cost = replace(COST, trained=Counter(decoder=5))
    training = Training("", Setup("ddp", False), 2, 80.0 * GB, cost, BatchSizes(16, 56, 56), 1)
    lora, frames = ("--model.lora.r", "16"), ("--data.num_frames", "8")
    assert [each[1:] for each in alternatives(training)] == [
        ((), Setup("ddp", False)),
        ((), Setup("ddp", True)),
        (lora, Setup("ddp", False)),
        (frames, Setup("ddp", False)),
        ((), Setup("fsdp2", False)),
        ((*lora, *frames), Setup("fsdp2", True)),
    ]
    alone = training._replace(gpus=1, setup=Setup("ddp", True), cost=replace(cost, frozen=Counter(decoder=9)))
    assert [each[1] for each in alternatives(alone)] == [(), frames]


def test_the_chosen_line_is_a_command_that_starts_it() -> None:
    config = str(Path(main.__file__).parent / "configs" / "prope.yaml")
    given = ["--config", config, "--gpus", "16", "--questions=9", "--trainer.devices", "4", "--data.num_frames", "8"]
    several = Choice(("--model.lora.r", "16", "--config", "strategy_fsdp2.yaml"), 16, 1.0, True)
    assert launch(given, several) == (
        "srun python main.py fit --config prope.yaml --config strategy_fsdp2.yaml --data.num_frames 8 "
        "--model.lora.r 16 --trainer.devices 8 --trainer.num_nodes 2"
    )
    assert launch(given[:2], Choice((), 1, 1.0, True)) == "python main.py fit --config prope.yaml"
