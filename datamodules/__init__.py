"""The menu of data: the DataModule, its sources, samplers and sizes."""

from datamodules.resize import PixelBounds
from datamodules.samplers import (
    Consecutive,
    Duplicate,
    FrameSampler,
    MergeAware,
    Neighbour,
    Pairing,
    RandomSampler,
    SceneView,
    UniformSampler,
)
from datamodules.sources import Rooms, SceneFolder, SceneSource, SingleVideo, VSIBench
from datamodules.video_qa import VideoQADataModule

__all__ = [
    "Consecutive",
    "Duplicate",
    "FrameSampler",
    "MergeAware",
    "Neighbour",
    "Pairing",
    "PixelBounds",
    "RandomSampler",
    "Rooms",
    "SceneFolder",
    "SceneSource",
    "SceneView",
    "SingleVideo",
    "UniformSampler",
    "VSIBench",
    "VideoQADataModule",
]
