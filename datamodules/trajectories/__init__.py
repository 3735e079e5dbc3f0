"""Camera trajectories: one file per kind of dataset format beside `base.py`; all formats return a `Trajectory`."""

from datamodules.trajectories.base import PoseFormat, Trajectory
from datamodules.trajectories.colmap import COLMAP
from datamodules.trajectories.nerfstudio import Nerfstudio, ScanNetPlusPlus
from datamodules.trajectories.pose_files import ScanNet, SevenScenes
from datamodules.trajectories.record3d import Record3D
from datamodules.trajectories.timestamped import TUM, ARKitScenes

FORMATS: tuple[type[PoseFormat], ...] = (
    *(COLMAP, Nerfstudio, Record3D, ScanNet, ScanNetPlusPlus),
    *(ARKitScenes, SevenScenes, TUM),
)
