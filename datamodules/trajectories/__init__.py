"""Camera trajectories: one file per kind of dataset format beside `base.py`; all formats return a `Trajectory`."""

from datamodules.trajectories.base import PoseFormat, Trajectory
from datamodules.trajectories.colmap import COLMAP
from datamodules.trajectories.nerfstudio import Nerfstudio, Record3D, ScanNetPlusPlus
from datamodules.trajectories.pose_files import TUM, ARKitScenes, ScanNet, SevenScenes

FORMATS: tuple[type[PoseFormat], ...] = (
    *(COLMAP, Nerfstudio, Record3D, ScanNet, ScanNetPlusPlus),
    *(ARKitScenes, SevenScenes, TUM),
)
