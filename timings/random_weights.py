"""Random weights that keep the scale of activations at any depth of a model."""

from __future__ import annotations

from torch import Tensor, nn


def draw(weight: Tensor, name: str) -> Tensor:
    """Fill a parameter in place: matrices by their fan-in, vectors with ones, biases with zeros.

    Args:
        weight: Parameter of any dtype and device.
        name: Name of the parameter. Names of biases end in "bias".
    """
    if weight.ndim > 1:
        return nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return nn.init.constant_(weight, float(not name.endswith("bias")))
