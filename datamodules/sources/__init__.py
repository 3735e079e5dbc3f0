"""Datasets: one file each beside `base.py`."""

from datamodules.sources.base import SceneSource
from datamodules.sources.folder import SceneFolder
from datamodules.sources.posed import PosedScenes
from datamodules.sources.rooms import Rooms
from datamodules.sources.single import SingleVideo
from datamodules.sources.vsibench import VSIBench

__all__ = ["PosedScenes", "Rooms", "SceneFolder", "SceneSource", "SingleVideo", "VSIBench"]
