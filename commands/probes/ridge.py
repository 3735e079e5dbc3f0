"""Ridge regression, cross-validated over scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-6, 3))  # times the mean variance of a feature and the samples
INNER = 4  # a quarter of the training scenes chooses the penalty


def cross_validated_r2(
    states: Float[Tensor, "N D"], targets: Float[Tensor, "N k"], scenes: Int[Tensor, " N"], folds: int = 5
) -> float:
    """Return the share of the targets' variance that a linear map of the states explains on scenes that it never saw.

    0 is the mean of the training scenes everywhere; a negative number is worse. The variances of the k numbers are
    summed. The penalty is chosen within the training scenes.

    Args:
        states: Samples with all of their features.
        targets: Of each; samples with an unknown one (NaN) are left out.
        scenes: The scene of each.
        folds: Parts that the scenes are divided into.
    """
    from sklearn.model_selection import GroupKFold  # takes a moment, and few commands need it

    known = targets.isfinite().all(1)
    states, targets, groups = states[known].double(), targets[known].double(), scenes[known].numpy()
    if (count := len(np.unique(groups))) < 2:
        return float("nan")
    errors = variance = 0.0
    splits = GroupKFold(min(folds, count), shuffle=True, random_state=0).split(groups, groups=groups)
    for train, test in ((torch.from_numpy(part) for part in split) for split in splits):
        penalty = _choose_penalty(states[train], targets[train], groups[train.numpy()])
        (predicted,) = ridge(states[train], targets[train], states[test], [penalty])
        errors += float((predicted - targets[test]).square().sum())
        variance += float((targets[train].mean(0) - targets[test]).square().sum())
    return 1 - errors / variance if variance else float("nan")


def ridge(
    states: Float[Tensor, "N D"], targets: Float[Tensor, "N k"], new: Float[Tensor, "M D"], penalties: Sequence[float]
) -> list[Float[Tensor, "M k"]]:
    """Fit a linear map with an intercept, and return its predictions for new states by each penalty."""
    center, middle = states.mean(0), targets.mean(0)
    width = states.std(0).clamp(min=1e-12)
    X, Y, X_new = (states - center) / width, targets - middle, (new - center) / width
    dual = len(X) < X.shape[1]  # the smaller of the two systems
    values, vectors = torch.linalg.eigh(X @ X.T if dual else X.T @ X)
    projected = vectors.T @ (Y if dual else X.T @ Y)
    basis = (X_new @ X.T if dual else X_new) @ vectors
    return [basis @ (projected / (values.clamp(min=0) + len(X) * each)[:, None]) + middle for each in penalties]


def _choose_penalty(states: Tensor, targets: Tensor, groups: np.ndarray) -> float:
    """The penalty that predicts some of the scenes best from the others."""
    scenes = np.unique(groups)
    held_out = torch.from_numpy(np.isin(groups, scenes[:: min(INNER, len(scenes))]))
    if held_out.all():
        return PENALTIES[-1]
    found = ridge(states[~held_out], targets[~held_out], states[held_out], PENALTIES)
    errors = [float((each - targets[held_out]).square().sum()) for each in found]
    return PENALTIES[int(np.argmin(errors))]
