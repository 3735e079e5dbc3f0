"""How long a planned training takes: its floating-point operations over those that a GPU makes per second."""

from __future__ import annotations

from typing import NamedTuple

USABLE = 0.9  # of a GPU's memory: the rest is for CUDA itself, for NCCL, and lost to fragmentation
UTILIZATION = 0.35  # of the peak: an assumption; trainings of such models are reported between 0.3 and 0.5
QUESTIONS = 10_000  # that hours are given for where the length of a training is unknown


class GPU(NamedTuple):
    """A GPU by its data sheet.

    Attributes:
        name: As it is sold.
        memory_gb: In 10^9 bytes.
        peak_tflops: Dense bfloat16 products with float32 sums, in 10^12 operations per second.
    """

    name: str
    memory_gb: float
    peak_tflops: float

    @property
    def usable(self) -> float:
        """Bytes for a training."""
        return USABLE * self.memory_gb * 1e9

    def hours(self, operations: float, utilization: float) -> float:
        """Hours for so many operations, at a share of the peak."""
        return operations / (utilization * self.peak_tflops * 1e12) / 3600


GPUS = (
    GPU("A100", 80, 312),
    GPU("H100", 80, 989),
    GPU("H200", 141, 989),
    GPU("L40S", 48, 362),
    GPU("4090", 24, 165),
)


class Length(NamedTuple):
    """What hours are given for: a number of steps, and its name."""

    steps: float
    name: str


def length_of(questions: int | None, questions_per_step: int, max_steps: int) -> Length:
    """Return the length of a training.

    Args:
        questions: Of an epoch; None if unknown.
        questions_per_step: On all GPUs.
        max_steps: Of the Trainer; -1 if epochs end the training.
    """
    if questions is not None:
        return Length(questions / questions_per_step, f"an epoch of {questions:,} questions")
    if max_steps > 0:
        return Length(max_steps, f"{max_steps:,} steps")
    return Length(QUESTIONS / questions_per_step, f"{QUESTIONS:,} questions (--questions: those of an epoch)")
