"""How far the tested weights are trained, and by which code: recorded in metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from callbacks.checkpoint import BEST
from zoo.tasks.base import TRAINED
from zoo.weights.checkpoint import read_checkpoint
from zoo.weights.saved_models import LAST


def trained_weights(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any] | None:
    """Return how far the weights are trained.

    Returns:
        "step" of the weights; "run_step", how far their run has come, which of the best checkpoint is more; "max_steps"
        that the run makes, and "versions" of its code, None of a checkpoint without; None of weights without a fit.
    """
    weights: dict[str, Any] | None = getattr(pl_module, "trained", None)
    if weights is None:
        return None
    checkpoint, run = Path(trainer.ckpt_path or ""), weights
    if checkpoint.name == BEST and checkpoint.with_name(LAST).exists():
        run = read_checkpoint(checkpoint.with_name(LAST)).get(TRAINED) or weights
    found = {"step": weights["step"], "run_step": run["step"], "max_steps": run.get("max_steps")}
    return {**found, "versions": run.get("versions")}


def describe_unfinished(trained: Mapping[str, Any] | None) -> str | None:
    """Return that a training has steps to go, in a few words; None if it is finished or not known."""
    if not trained or trained.get("max_steps") is None or trained["run_step"] >= trained["max_steps"]:
        return None
    return f"unfinished weights: their training has made {trained['run_step']} of {trained['max_steps']} steps"
