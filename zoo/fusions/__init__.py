"""Fusions of 2D and 3D tokens: one file each beside `base.py`."""

from zoo.fusions.add import AddFusion, AttentionFusion, CameraTokenFusion
from zoo.fusions.base import Fusion, merge_spatial
from zoo.fusions.concat_split import ConcatSplitFusion
from zoo.fusions.deep import DeepFusion, PatchMergerFusion, StackFusion
