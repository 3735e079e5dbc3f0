"""Cameras, poses and rays in one convention, see `zoo.cameras.cameras`."""

from zoo.cameras.cameras import Cameras, ReferenceView, Scale
from zoo.cameras.poses import intrinsics_in_pixels, invert_se3, normalize_intrinsics, pose_distance
from zoo.cameras.scene_geometry import SceneGeometry
