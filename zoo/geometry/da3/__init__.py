"""Depth Anything 3 (Lin et al. 2025, arXiv 2511.10647): 3D tokens, cameras, depth and rays of views."""

from zoo.geometry.base import pose_scale
from zoo.geometry.da3.heads import cameras_to_pose_encoding, normalize_poses, pose_encoding_to_cameras, rays_to_cameras
from zoo.geometry.da3.model import DA3, DA3Output, to_meters
from zoo.geometry.da3.trunk import choose_reference, official_size
