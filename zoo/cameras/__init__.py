"""Cameras, poses and rays, in one convention; see `zoo.cameras.cameras`."""

from zoo.cameras.cameras import Cameras
from zoo.cameras.intrinsics import intrinsics_in_pixels, normalize_intrinsics
from zoo.cameras.poses import invert_se3, pose_distance
from zoo.cameras.reference import ReferenceView, Scale
from zoo.cameras.scene_geometry import SceneGeometry
