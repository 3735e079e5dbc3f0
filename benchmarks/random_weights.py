"""Random weights with which activations keep their size, whatever the depth of a model."""

from __future__ import annotations

from torch import Tensor, nn


def draw(weight: Tensor, name: str) -> Tensor:
    """Fills a parameter in place: matrices by their fan-in, vectors with ones, biases with zeros.

    Args:
        weight: of any dtype and device.
        name: of the parameter; one that ends in "bias" is a bias.
    """
    if weight.ndim > 1:
        return nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return nn.init.constant_(weight, float(not name.endswith("bias")))
