"""LightningModules that train and evaluate models. Each file is imported when one of its names is first used."""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "base": ["Task"],
        "geometry_pretraining": ["GeometryPretraining"],
        "grpo": ["GRPO"],
        "models": ["BaselineVLM", "ConcatSplitMLLM", "PRoPEMLLM", "Qwen25VL", "Qwen35", "Qwen3VL"],
        "rewards": ["AnswerFormat", "AnswerScore", "Reward", "ShuffledAnswerScore"],
        "video_qa": ["Algorithm", "SupervisedFineTuning", "VideoQATask"],
    },
)
