"""Time indices: the position of a visual token on the temporal axis of mRoPE (the T section).

Position ids are integers, as in the stock model. Fractional positions are rounded (`TimestampIndex` takes the floor,
as Qwen2.5-VL does), so views less than one position apart may share a position.
"""

from zoo.sequences.time_index.base import Seconds, TemporalPatches, TimeIndex
from zoo.sequences.time_index.clocks import (
    BackboneIndex,
    ConstantIndex,
    FrameNumberIndex,
    SpanIndex,
    SpreadIndex,
    StepIndex,
    TimestampIndex,
)
from zoo.sequences.time_index.poses import PathLengthIndex, PoseDistanceIndex, PoseTimeIndex
