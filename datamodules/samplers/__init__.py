"""Frame samplers: which frames of a video a model sees."""

from datamodules.samplers.base import FrameSampler
from datamodules.samplers.random import RandomSampler
from datamodules.samplers.uniform import UniformSampler

__all__ = ["FrameSampler", "RandomSampler", "UniformSampler"]
