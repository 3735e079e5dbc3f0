"""The menu of data: the DataModule, its sources, samplers and sizes."""

from datamodules.resize import PixelBounds
from datamodules.samplers import (
    Consecutive,
    Duplicate,
    FrameSampler,
    GivenDepth,
    MergeAware,
    Neighbour,
    Pairing,
    PointSource,
    PoseFarthestSampler,
    PosePlaneSampler,
    RandomSampler,
    SceneView,
    SelectedFrames,
    SpaceAwareSampler,
    UniformSampler,
    VGGTPoints,
)
from datamodules.sources import Rooms, SceneFolder, SceneSource, SingleVideo, VSIBench
from datamodules.video_qa import VideoQADataModule

__all__ = [
    "Consecutive",
    "Duplicate",
    "FrameSampler",
    "GivenDepth",
    "MergeAware",
    "Neighbour",
    "Pairing",
    "PixelBounds",
    "PointSource",
    "PoseFarthestSampler",
    "PosePlaneSampler",
    "RandomSampler",
    "Rooms",
    "SceneFolder",
    "SceneSource",
    "SceneView",
    "SelectedFrames",
    "SingleVideo",
    "SpaceAwareSampler",
    "UniformSampler",
    "VGGTPoints",
    "VSIBench",
    "VideoQADataModule",
]
