"""Camera trajectories: `formats.py` reads poses of datasets and apps, `scene_files.py` writes them as scenes."""

from datamodules.trajectories.base import PoseFormat, Trajectory
from datamodules.trajectories.formats import (
    COLMAP,
    TUM,
    ARKitScenes,
    Nerfstudio,
    Record3D,
    ScanNet,
    ScanNetPlusPlus,
    SevenScenes,
    ViPE,
)

FORMATS: tuple[type[PoseFormat], ...] = (
    *(COLMAP, Nerfstudio, Record3D, ScanNet, ScanNetPlusPlus),
    *(ARKitScenes, SevenScenes, TUM, ViPE),
)
