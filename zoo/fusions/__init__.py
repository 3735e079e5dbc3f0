"""Fusions of 2D and 3D tokens: one file each beside `base.py`."""

from zoo.fusions.add import AddFusion
from zoo.fusions.attention import AttentionFusion
from zoo.fusions.base import Fusion, merge_spatial
from zoo.fusions.camera_token import CameraTokenFusion
from zoo.fusions.concat_split import ConcatSplitFusion
from zoo.fusions.deep import DeepFusion, StackFusion
from zoo.fusions.patch_merger import PatchMergerFusion
