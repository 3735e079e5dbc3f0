"""Frame samplers: which frames of a video a model sees, and which two of them share a token."""

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.samplers.pairing import Consecutive, Duplicate, MergeAware, Neighbour, Pairing
from datamodules.samplers.random import RandomSampler
from datamodules.samplers.uniform import UniformSampler

__all__ = [
    "Consecutive",
    "Duplicate",
    "FrameSampler",
    "MergeAware",
    "Neighbour",
    "Pairing",
    "RandomSampler",
    "SceneView",
    "UniformSampler",
]
