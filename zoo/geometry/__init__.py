"""Geometry encoders (3D tokens, cameras, depth, points), their cache, and unprojection."""

from zoo.cameras.rays import unproject_depth
from zoo.geometry.base import DatasetPoses, GeometryEncoder, ScaleSource, SceneGeometry
from zoo.geometry.cache import CachedGeometry, GeometryCache
from zoo.geometry.da3_encoder import DA3Encoder, PosedDA3, PretrainedDA3, TinyDA3
from zoo.geometry.dataset_geometry import DatasetGeometry
from zoo.geometry.metric_model import FittedMetricModel, MetricModel
from zoo.geometry.pi3x import Pi3X, Pi3XOutput
from zoo.geometry.pi3x_encoder import Pi3XEncoder, PretrainedPi3X, TinyPi3X
from zoo.geometry.vggt import VGGT, VGGTOutput, cameras_to_pose_encoding, pose_encoding_to_cameras
from zoo.geometry.vggt_encoder import PretrainedVGGT, TinyVGGT, VGGTEncoder
