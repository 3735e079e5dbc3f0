"""Frame samplers: which frames of a video a model sees, and which two of them share a token."""

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.samplers.coverage import maximum_coverage, voxelize
from datamodules.samplers.frame_pairing import Consecutive, Duplicate, FramePairing, Neighbor, OffsetNeighbor
from datamodules.samplers.points import DatasetDepth, PointSource, PredictedPoints
from datamodules.samplers.pose_farthest import PoseFarthestSampler, PosePlaneSampler
from datamodules.samplers.random import RandomSampler
from datamodules.samplers.selected import SelectedFrames
from datamodules.samplers.space_aware import SpaceAwareSampler
from datamodules.samplers.uniform import UniformSampler
