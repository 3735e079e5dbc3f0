"""Where cameras, depth and 3D tokens come from, and the geometry that ties them together."""

from zoo.geometry.projection import project_points, unproject_depth
from zoo.geometry.vggt import VGGT, VGGTOutput, cameras_to_pose_encoding, pose_encoding_to_cameras

__all__ = [
    "VGGT",
    "VGGTOutput",
    "cameras_to_pose_encoding",
    "pose_encoding_to_cameras",
    "project_points",
    "unproject_depth",
]
