"""VGGT (Wang et al., CVPR 2025, arXiv 2503.11651): 3D tokens, cameras, depth and points of frames."""

from zoo.geometry.vggt.heads import CameraHead, DPTHead, cameras_to_pose_encoding, pose_encoding_to_cameras
from zoo.geometry.vggt.model import (
    HEADS,
    NAMES,
    VGGT,
    VGGT_1B,
    VGGTOutput,
    current_names,
    find_weights,
    official_name,
    official_tensors,
    official_tensors_of,
)
from zoo.geometry.vggt.trunk import DINOV2, Aggregator, ConvPatchEmbed, DINOv2, build_patch_embed
