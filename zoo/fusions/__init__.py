"""Fusions of 2D and 3D tokens: at the decoder's input, after its layers (`deep.py`), or in them (`geothinker.py`)."""

from zoo.fusions.base import Fusion, merge_spatial
from zoo.fusions.deep import DeepFusion, StackFusion
from zoo.fusions.entrance import (
    AddFusion,
    AttentionFusion,
    CameraTokenFusion,
    ConcatSplitFusion,
    PatchMergerFusion,
    SubspaceFusion,
)
from zoo.fusions.geothinker import GeoThinkerFusion
