"""Fusions of 2D and 3D tokens: at the decoder's input, after its layers (`deep.py`), or in them (`geothinker.py`).

Each file is imported when one of its names is first used.
"""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "base": ["Fusion", "merge_spatial"],
        "deep": ["DeepFusion", "StackFusion"],
        "entrance": [
            "AddFusion",
            "AttentionFusion",
            "CameraTokenFusion",
            "ConcatSplitFusion",
            "PatchMergerFusion",
            "SubspaceFusion",
        ],
        "geothinker": ["GeoThinkerFusion"],
    },
)
