"""The run's seed, for parts without their own seed and for random draws in training steps."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from zoo.files.fingerprint import fingerprint


def resolve_seed(seed: int | None) -> int:
    """Return a part's own seed, or if it is None the run's: `--seed_everything`, or 0 outside of a run."""
    # Lightning's seed_everything sets the variable, and other processes inherit it
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


def seed_draws(*position: int) -> None:
    """Seed Python, numpy and torch from the run's seed and a position in the training.

    Checkpoints hold no random state. The draws of a training step therefore depend only on the step, and a resumed run
    draws the same numbers as an uninterrupted one.

    Args:
        position: Numbers that no other call in the run uses.
    """
    drawn = np.random.SeedSequence((resolve_seed(None), *position)).generate_state(1, np.uint64)
    seed = int(drawn[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_of(name: str) -> int:
    """Return a seed from the run's seed and a name, such as a question's id. Order and process do not matter."""
    return int(fingerprint(f"{resolve_seed(None)} {name}")[:15], 16)
