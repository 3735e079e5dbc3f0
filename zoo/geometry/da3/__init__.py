"""Depth Anything 3 (Lin et al. 2025, arXiv 2511.10647): 3D tokens, cameras, depth and rays of views."""

from zoo.geometry.da3.camera_coding import cameras_to_pose_encoding, normalize_poses, pose_encoding_to_cameras
from zoo.geometry.da3.metric import to_meters
from zoo.geometry.da3.model import DA3
from zoo.geometry.da3.output import DA3Output
from zoo.geometry.da3.ray_cameras import rays_to_cameras
from zoo.geometry.da3.reference import choose_reference
from zoo.geometry.da3.sizes import official_size
from zoo.geometry.scale import pose_scale
