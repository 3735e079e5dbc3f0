"""VGGT (Wang et al., CVPR 2025, arXiv 2503.11651): 3D tokens, cameras, depth and points of frames."""

from zoo.geometry.vggt.model import VGGT, VGGTOutput, cameras_to_pose_encoding, pose_encoding_to_cameras
