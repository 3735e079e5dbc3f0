"""Least squares and gradient boosting, of numbers and of classes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float, Int

PENALTIES = 10.0 ** np.arange(-2, 7)  # of the squared coefficients of standardized features
Predict = Callable[[Float[np.ndarray, "M F"]], np.ndarray]


def least_squares(features: Float[np.ndarray, "N F"], targets: Float[np.ndarray, "N K"]) -> Predict:
    """Fit by least squares; the ridge penalty is the one with the least error of leaving out one row each."""
    mean, spread = features.mean(0), np.maximum(features.std(0), 1e-9)
    standardized, offset = (features - mean) / spread, targets.mean(0)
    values, axes = np.linalg.eigh(standardized.T @ standardized)
    rotated = standardized @ axes
    projected = rotated.T @ (targets - offset)

    def error(penalty: float) -> float:
        weights = 1 / (np.maximum(values, 0) + penalty)
        residuals = targets - offset - rotated @ (weights[:, None] * projected)
        own = 1 / len(features) + (rotated**2) @ weights  # what a row has in its own prediction
        return float(np.square(residuals / np.maximum(1 - own, 1e-9)[:, None]).sum())

    penalty = min(PENALTIES.tolist(), key=error)
    coefficients = axes @ (projected / (np.maximum(values, 0) + penalty)[:, None])
    return lambda rows: (rows - mean) / spread @ coefficients + offset


def has_boosting() -> bool:
    """Return whether gradient boosting is installed; an environment made before the zoo required it may lack it."""
    return find_spec("sklearn") is not None


def boosted_numbers(features: Float[np.ndarray, "N F"], targets: Float[np.ndarray, " N"]) -> Predict:
    """Fit numbers by gradient boosting."""
    from sklearn.ensemble import HistGradientBoostingRegressor  # takes a moment, and few commands need it

    return HistGradientBoostingRegressor(random_state=0).fit(features, targets).predict


def boosted_classes(features: Float[np.ndarray, "N F"], classes: Int[np.ndarray, " N"]) -> Predict:
    """Fit the probability of each class, of at least two that all occur, by gradient boosting."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(random_state=0).fit(features, classes).predict_proba
