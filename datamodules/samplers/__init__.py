"""Frame samplers choose the frames of a video that a model sees. Frame pairings choose which two share a token."""

from datamodules.samplers.base import (
    Consecutive,
    Duplicate,
    FramePairing,
    FrameSampler,
    Neighbor,
    OffsetNeighbor,
    PointMaps,
    PointSource,
    SceneView,
)
from datamodules.samplers.pose_farthest import PoseFarthestSampler, PosePlaneSampler
from datamodules.samplers.selected import SelectedFrames
from datamodules.samplers.space_aware import (
    DatasetDepth,
    PredictedPoints,
    SpaceAwareSampler,
    maximum_coverage,
    voxelize,
)
from datamodules.samplers.uniform import (
    FrameRateSampler,
    JitteredSampler,
    RandomSampler,
    RandomSteps,
    UniformSampler,
)
