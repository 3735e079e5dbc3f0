"""Datasets of scenes: see `base.py`."""

from datamodules.sources.annotations import SceneFolder, SingleVideo
from datamodules.sources.base import SceneSource
from datamodules.sources.conversations import Conversations
from datamodules.sources.mixture import Mixture
from datamodules.sources.posed import PosedScenes
from datamodules.sources.rooms import RealRooms, Rooms
from datamodules.sources.rooms.panel_source import PanelRooms
from datamodules.sources.rooms.panel_tasks import (
    PanelAnywhere,
    PanelDirection,
    PanelDistance,
    PanelDwelling,
    PanelFreeTurn,
    PanelGlimpse,
    PanelIntrinsics,
    PanelKnownSize,
    PanelMotion,
    PanelOrder,
    PanelPairs,
    PanelParallax,
    PanelRotation,
    PanelTask,
    PanelTranslation,
    PanelTurn,
    PanelTwoViews,
)
from datamodules.sources.scannet_qa import SQA3D, ScanQA
from datamodules.sources.vsibench import ReVSI, VSIBench, VSTIBench
