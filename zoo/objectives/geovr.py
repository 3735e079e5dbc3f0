"""GeoVR's functions under the names that outside checks import.

Training uses `zoo.objectives.teacher`. Functions that only comparisons with the released code need are in
`zoo.published.geovr`.
"""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    "zoo",
    {
        "objectives.teacher": ["depth_loss", "geovr_layers", "pool_teacher", "without_outliers"],
        "published.geovr": [
            *("GeoVRHeads", "camera_loss", "distill_loss", "expand_tokens", "position_ids", "run_official"),
            *("scale_loss", "scale_target", "teacher_size"),
        ],
    },
)
