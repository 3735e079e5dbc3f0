"""The tables of a plan."""

from __future__ import annotations

from dataclasses import fields

from rich.table import Table

from commands.planning.changes import alternatives, gigabytes
from commands.planning.hours import GPUS
from commands.planning.training import Setup, Training, parsed
from zoo.tasks.base import LearningRates
from zoo.tasks.training_cost import TrainingCost

STRATEGIES = ("ddp", "fsdp2")
PARTS = (*(each.name for each in fields(LearningRates)), "teacher")


def parameters_table(cost: TrainingCost) -> Table:
    """The parameters of each part."""
    table = Table("parameters, million", "trained", "frozen", box=None, pad_edge=False)
    counts = [(part, cost.trained[part], cost.frozen[part]) for part in PARTS if cost.trained[part] + cost.frozen[part]]
    for part, *both in [*counts, ("total", cost.trained.total(), cost.frozen.total())]:
        table.add_row(part, *(f"{count / 1e6:,.1f}" if count else "-" for count in both))
    return table


def memory_table(training: Training) -> Table:
    """Bytes on each GPU, for each strategy without and with checkpointing."""
    setups = [Setup(strategy, checkpointing) for strategy in STRATEGIES for checkpointing in (False, True)]
    table = Table(f"GB on each of {training.gpus} GPUs", *map(str, setups), box=None, pad_edge=False)
    columns = [training.rows(setup) for setup in setups]
    for name in columns[0]:
        table.add_row(name, *(gigabytes(column[name]) for column in columns))
    table.add_row("total", *(gigabytes(sum(column.values())) for column in columns))
    table.add_row("in validations", *(gigabytes(training.evaluation(setup)) for setup in setups))
    return table


def alternatives_table(training: Training, arguments: list[str]) -> Table:
    """What else a training may be: bytes, and the hours on each kind of GPU that has room for it."""
    hours = [f"{gpu.name}, {gpu.memory_gb:g} GB" for gpu in GPUS]
    table = Table(f"on {training.gpus} GPUs", "GB on each", *hours, box=None, pad_edge=False)
    for name, words, setup in alternatives(training):
        other = parsed((*arguments, *words)) if words else training
        need, operations = other.needed(setup), other.operations(setup)
        took = [f"{gpu.hours(operations, training.utilization):,.1f}" if need <= gpu.usable else "-" for gpu in GPUS]
        table.add_row(name, gigabytes(need), *took)
    return table


def described(training: Training) -> str:
    """The sizes of a batch and of a step."""
    cost, batch = training.cost, training.batch
    operations = cost.steps[training.setup.checkpointing].flops * training.accumulated
    tera = operations / 1e12
    flops = f"{tera:,.1f}" if tera >= 10 else f"{tera:.3g}"
    raw = " x ".join(map(str, training.video))
    only = f"; without what {training.uncounted} samples and compares, which takes more" if training.uncounted else ""
    return (
        f"{batch.num_frames} frames of {batch.height} x {batch.width} pixels after resizing, of {raw} before: "
        f"{cost.visual_tokens:,} visual tokens a scene, sequences of up to {cost.sequence_tokens:,} tokens\n"
        f"a step: {training.gpus} GPUs x {training.accumulated} batches x {batch.scenes} scenes with "
        f"{batch.questions} questions; {flops} TFLOP on each GPU{only}"
    )
