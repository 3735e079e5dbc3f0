"""The seed of a run: of the parts that have none of their own, and of what a training step draws."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from zoo.files.fingerprint import fingerprint


def resolve_seed(seed: int | None) -> int:
    """Return a part's own seed, or the run's if it is None: `--seed_everything`, and 0 outside of a run."""
    # Lightning's seed_everything sets the variable, and its other processes inherit it
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


def seed_draws(*position: int) -> None:
    """Seed what Python, numpy and torch draw next from the run's seed and a position in the training.

    Checkpoints hold no state of random generators. What is drawn in a training step is therefore a function of the step
    alone, and a resumed run draws as one that was never interrupted.

    Args:
        position: Numbers that no other call of the run has.
    """
    drawn = np.random.SeedSequence((resolve_seed(None), *position)).generate_state(1, np.uint64)
    seed = int(drawn[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_of(name: str) -> int:
    """Return a seed by the run's seed and a name, such as a question's id: the same in any order, in any process."""
    return int(fingerprint(f"{resolve_seed(None)} {name}")[:15], 16)
