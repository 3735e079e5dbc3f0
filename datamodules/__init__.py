"""The menu of data: the DataModule, its sources, samplers and sizes."""

from datamodules.resize import PixelBounds
from datamodules.samplers import FrameSampler, UniformSampler
from datamodules.sources import Rooms, SceneSource, SingleVideo, VSIBench
from datamodules.video_qa import VideoQADataModule

__all__ = [
    "FrameSampler",
    "PixelBounds",
    "Rooms",
    "SceneSource",
    "SingleVideo",
    "UniformSampler",
    "VSIBench",
    "VideoQADataModule",
]
