"""Weights: read from safetensors files into a model, deferred, sharded, in checkpoints, and as saved models.

The formats of released models are in `zoo.backbones`, `zoo.geometry` and `zoo.checkpoints`, which are built on this.
"""

from zoo.weights.lazy_tensors import INDEX, WEIGHTS, LazyTensors, open_weights
