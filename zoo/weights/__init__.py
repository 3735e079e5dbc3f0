"""Weights: released ones into a model, checkpoints of trained ones, and saved models.

The formats of released models are in `zoo.backbones`, `zoo.geometry` and `zoo.checkpoints`, which are built on this.
"""

from zoo.weights.load import open_weights
