"""GeoVR's training step on tensors with official names, for comparisons with other code."""

from __future__ import annotations

from typing import Any


def run_official(*arguments: Any, **options: Any) -> dict[str, Any]:
    """Compute losses and gradients of a whole GeoVR on a micro-batch of videos, by the zoo's own training step.

    Args:
        arguments: Of `zoo.checkpoints.geovr.run_geovr`, as far as they are not named: the stock model's configuration,
            a state dict, inputs, and targets.
        options: The rest of them: `teacher`, `camera`, `depth`, `scale`, `distill`.

    Returns:
        The losses by name, their weighted sum `total`, and `gradient_norms` by official name.
    """
    from zoo.checkpoints.geovr import run_geovr

    return run_geovr(*arguments, **options)
