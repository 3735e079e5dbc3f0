"""The seed of a run, which the parts share that have none of their own."""

from __future__ import annotations

import os


def resolve_seed(seed: int | None) -> int:
    """Return a part's own seed, or the run's if it is None: `--seed_everything`, and 0 outside of a run."""
    # Lightning's seed_everything sets the variable, and its other processes inherit it
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
