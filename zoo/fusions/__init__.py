"""Fusions of 2D and 3D tokens: at the decoder's input (`entrance.py`), or after its layers (`deep.py`)."""

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
