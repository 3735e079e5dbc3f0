"""What a model takes that nobody has, in round numbers."""

from __future__ import annotations

from collections import Counter

from zoo.tasks.training_cost import StepCost, TrainingCost

GB = 10**9
COST = TrainingCost(
    trained=Counter(decoder=1),
    frozen=Counter(decoder=9),
    weights=16 * GB,
    gradients=16 * GB,
    optimizer=32 * GB,
    gathered={False: 4 * GB, True: 18 * GB},
    gathered_weights=8 * GB,
    steps={False: StepCost(30 * GB, 1, 1), True: StepCost(10 * GB, 1, 1)},
)
