"""Datasets of scenes: see `base.py`."""

from datamodules.sources.base import SceneSource
from datamodules.sources.conversations import SQA3D, Conversations, ScanQA
from datamodules.sources.local import SceneFolder, SingleVideo, VSIBench
from datamodules.sources.mixture import Mixture
from datamodules.sources.posed import PosedScenes
from datamodules.sources.rooms import RealRooms, Rooms
