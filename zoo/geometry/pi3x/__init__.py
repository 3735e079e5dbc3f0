"""Pi3X (the successor of Pi3, arXiv 2507.13347): 3D tokens, cameras, depth and points of views, with conditions.

Read `conditions.py` first, then `model.py` and `heads.py`.
"""

from zoo.geometry.pi3x.conditions import (
    CONDITIONS,
    Condition,
    Conditions,
    PoseInjection,
    check_scene,
    normalize_conditions,
    pose_attention,
    ray_map,
)
from zoo.geometry.pi3x.heads import recover_intrinsics, rotation_from_nine
from zoo.geometry.pi3x.model import RELEASED, Pi3X, Pi3XOutput, official_size, tiny_config
