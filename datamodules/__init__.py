"""The menu of data: the DataModule, its sources, samplers and sizes."""

from datamodules.resize import PixelBounds
from datamodules.samplers import FrameSampler, RandomSampler, UniformSampler
from datamodules.sources import Rooms, SceneFolder, SceneSource, SingleVideo, VSIBench
from datamodules.video_qa import VideoQADataModule

__all__ = [
    "FrameSampler",
    "PixelBounds",
    "RandomSampler",
    "Rooms",
    "SceneFolder",
    "SceneSource",
    "SingleVideo",
    "UniformSampler",
    "VSIBench",
    "VideoQADataModule",
]
