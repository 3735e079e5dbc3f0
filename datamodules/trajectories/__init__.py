"""Camera trajectories: one file per dataset format beside `base.py`; all formats return a `Trajectory`."""

from datamodules.trajectories.arkitscenes import ARKitScenes
from datamodules.trajectories.base import PoseFormat, Trajectory
from datamodules.trajectories.nerfstudio import Nerfstudio, ScanNetPlusPlus
from datamodules.trajectories.scannet import ScanNet
from datamodules.trajectories.seven_scenes import SevenScenes
from datamodules.trajectories.tum import TUM
