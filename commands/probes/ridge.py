"""Ridge regression, cross-validated over scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-6, 3))  # times mean feature variance and number of samples
INNER = 4  # one in four training scenes is held out to choose the penalty


def cross_validated_r2(
    states: Float[Tensor, "N D"], targets: Sequence[Float[Tensor, "N _k"]], scenes: Int[Tensor, " N"], folds: int = 5
) -> list[float]:
    """Return the share of each target's variance that a linear map of the states explains on held-out scenes.

    0 is as good as the mean of the training scenes, and a negative number is worse. If a target has k numbers, their
    variances are summed. The penalty is chosen within the training scenes.

    Args:
        states: Samples with all of their features.
        targets: Targets of all samples. Samples with an unknown target (NaN) are left out for this target.
        scenes: The scene of each sample.
        folds: Number of parts into which the scenes are divided.

    Returns:
        R² of each target, NaN if it is known in fewer than two scenes.
    """
    found = [float("nan")] * len(targets)
    masks = [target.isfinite().all(1) for target in targets]
    for mask in {mask.numpy().tobytes(): mask for mask in masks}.values():  # targets with the same samples together
        numbers = [n for n, each in enumerate(masks) if torch.equal(each, mask)]
        for n, r2 in zip(numbers, _of_known(states, [targets[n] for n in numbers], scenes, mask, folds), strict=True):
            found[n] = r2
    return found


def _of_known(
    states: Tensor, targets: Sequence[Tensor], scenes: Tensor, known: Bool[Tensor, " N"], folds: int
) -> list[float]:
    from sklearn.model_selection import GroupKFold  # slow to import, and few commands need it

    X, Y, groups = states[known].double(), torch.cat([*targets], 1)[known].double(), scenes[known].numpy()
    widths = [target.shape[1] for target in targets]
    if (count := len(np.unique(groups))) < 2:
        return [float("nan")] * len(targets)
    errors, variances = (torch.zeros(len(targets), dtype=torch.float64) for _ in range(2))
    splits = GroupKFold(min(folds, count), shuffle=True, random_state=0).split(groups, groups=groups)
    for train, test in ((torch.from_numpy(part) for part in split) for split in splits):
        penalties = _choose_penalties(X[train], Y[train], groups[train.numpy()], widths)
        squares = Ridge(X[train]).squared_errors(Y[train], X[test], Y[test], widths)
        errors += squares.gather(0, penalties[None])[0]
        variances += _by_target((Y[train].mean(0) - Y[test]).square().sum(0), widths)
    return torch.where(variances > 0, 1 - errors / variances, torch.nan).tolist()


class Ridge:
    """Linear maps with an intercept from standardized features. One factorization serves all targets and penalties.

    Args:
        states: States of the training samples.
    """

    def __init__(self, states: Float[Tensor, "N D"]) -> None:
        self.center, self.width = states.mean(0), states.std(0, correction=0).clamp(min=1e-12)
        self.X = self._standardized(states)
        self.is_dual = len(self.X) < self.X.shape[1]  # solve the smaller of the two systems
        self.values, self.vectors = torch.linalg.eigh(self.X @ self.X.T if self.is_dual else self.X.T @ self.X)

    def squared_errors(
        self,
        targets: Float[Tensor, "N K"],
        new: Float[Tensor, "M D"],
        true: Float[Tensor, "M K"],
        widths: Sequence[int],
    ) -> Float[Tensor, "penalties targets"]:
        """Fit targets, and sum the squared errors of each on new samples, for all `PENALTIES`.

        Args:
            targets: Targets of the training samples, side by side.
            new: States of the new samples.
            true: Targets of the new samples.
            widths: Number of columns of each target.
        """
        middle = targets.mean(0)
        projected = self.vectors.T @ (targets - middle if self.is_dual else self.X.T @ (targets - middle))
        standard = self._standardized(new)
        basis = (standard @ self.X.T if self.is_dual else standard) @ self.vectors
        found = []
        for penalty in PENALTIES:
            predicted = basis @ (projected / (self.values.clamp(min=0) + len(self.X) * penalty)[:, None]) + middle
            found.append(_by_target((predicted - true).square().sum(0), widths))
        return torch.stack(found)

    def _standardized(self, states: Tensor) -> Tensor:
        return (states - self.center) / self.width


def _choose_penalties(
    states: Tensor, targets: Tensor, groups: np.ndarray, widths: Sequence[int]
) -> Int[Tensor, " targets"]:
    """Return for each target the index of the penalty that predicts held-out training scenes best."""
    scenes = np.unique(groups)
    held_out = torch.from_numpy(np.isin(groups, scenes[:: min(INNER, len(scenes))]))
    if held_out.all():
        return torch.full((len(widths),), len(PENALTIES) - 1)
    inner = Ridge(states[~held_out])
    return inner.squared_errors(targets[~held_out], states[held_out], targets[held_out], widths).argmin(0)


def _by_target(squares: Float[Tensor, " K"], widths: Sequence[int]) -> Float[Tensor, " targets"]:
    """Sum over the columns of each target."""
    return torch.stack([own.sum() for own in squares.split(list(widths))])
