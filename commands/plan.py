"""python main.py plan: what a training needs, before a GPU is rented; `commands.planning` describes it."""

from __future__ import annotations

from rich.console import Console

from commands.planning.changes import choose, launch, verdict
from commands.planning.tables import alternatives_table, described, memory_table, parameters_table
from commands.planning.training import parsed

WIDTH = 120  # of a table, so that a narrow terminal breaks lines instead of cells


def plan(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `plan`, with config names resolved.
    """
    training = parsed(tuple(arguments))
    console = Console(highlight=False, width=WIDTH)
    print(training.title)
    console.print(parameters_table(training.cost))
    console.print(memory_table(training))
    if training.is_pretrained:
        share = f"{training.utilization:.0%} of a GPU's peak in bfloat16"
        print(f"hours of {training.length.name}, at {share}; - does not fit")
        console.print(alternatives_table(training, arguments))
    if (choice := choose(training, arguments)).fits:
        print(f"to start it: {launch(arguments, choice)}")
    print(described(training))
    print(verdict(training, choice))
