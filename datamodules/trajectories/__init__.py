"""Camera trajectories: one file per kind of dataset format beside `base.py`; all formats return a `Trajectory`."""

from datamodules.trajectories.base import PoseFormat, Trajectory
from datamodules.trajectories.nerfstudio import Nerfstudio, ScanNetPlusPlus
from datamodules.trajectories.pose_files import ScanNet, SevenScenes
from datamodules.trajectories.timestamped import TUM, ARKitScenes
