"""Training objectives. Each file beside `base.py` holds one kind, and is imported when it is first used."""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "base": ["Decoded", "LanguageModeling", "LayerObjective", "Objective"],
        "camera_prediction": ["CameraPrediction"],
        "depth_prediction": ["DepthPrediction", "RayDepthPrediction"],
        "held_out_views": ["HeldOutViews"],
        "masked_views": ["MaskedViews"],
        "novel_view": ["NovelViews"],
        "teacher": ["Distillation", "MetricScale", "TeacherDepth", "TeacherPose"],
    },
)
