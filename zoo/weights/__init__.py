"""Weights: loading released weights, checkpoints of trained weights, and saved models.

The formats of released models are in `zoo.backbones`, `zoo.geometry` and `zoo.checkpoints`, which build on this
package.
"""

from zoo.weights.load import open_weights
