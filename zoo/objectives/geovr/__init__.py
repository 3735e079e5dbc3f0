"""GeoVR (arXiv 2606.05833): a decoder that learns in training what a frozen 3D teacher sees in the same frames.

Written from the paper and from golden values; the released code has no license, and nothing here is taken from it.
"""

from zoo.objectives.geovr.heads import DepthHead, GeoVRHeads, PoseMLP, ScaleMLP, TokenMLP
from zoo.objectives.geovr.losses import (
    camera_loss,
    depth_loss,
    distill_loss,
    pool_teacher,
    scale_loss,
    scale_target,
    without_outliers,
)
from zoo.objectives.geovr.official import run_official
from zoo.objectives.geovr.teachers import geovr_layers, teacher_size
from zoo.objectives.geovr.tokens import expand_tokens, position_ids
