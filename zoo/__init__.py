"""Spatial video-language models and their parts.

Each name is also a class path for the command line, such as `zoo.PRoPE`. A class is imported when it is first used, so
`import zoo` alone does not load PyTorch.
"""

from zoo.lazy import lazy_exports
from zoo.published import __all__ as PUBLISHED

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "backbones": [
            *("Backbone", "BackboneLoader", "PretrainedQwen25VL", "PretrainedQwen3VL", "PretrainedQwen35"),
            *("PretrainedSmolLM2", "TinyQwen25VL", "TinyQwen3VL", "TinyQwen35"),
        ],
        "cameras": ["Cameras"],
        "encodings": [
            *("GTA", "AlternateAxes", "CaPE", "CameraEncoding", "ChannelPlacement", "ChannelRange", "Compose"),
            *("DeltaNetLayers", "ExtraChannels", "FrequencyRange", "HeadSubset", "HighFrequencies", "LayerSubset"),
            *("LearnedStrength", "LowFrequencies"),
            *("PRoPE", "Placement", "PointRoPE", "PoseALiBi", "PoseAxis", "PoseEmbedding", "PoseIndex"),
            *("RayAttention", "RayEmbedding", "RayEncoding", "RayRoPE", "TemporalSection", "URoPE"),
            *("UnrotatedChannels", "ValueRoPE", "ViewAttention", "ViewMixer"),
        ],
        "errors": ["InputError"],
        "fusions": [
            *("AddFusion", "AttentionFusion", "CameraTokenFusion", "ConcatSplitFusion", "DeepFusion", "Fusion"),
            *("GeoThinkerFusion", "PatchMergerFusion", "StackFusion", "SubspaceFusion"),
        ],
        "objectives.teacher_model": ["Teacher"],
        "geometry": [
            *("DatasetGeometry", "DatasetPoses", "FittedMetricModel", "GeometryCache", "GeometryEncoder"),
            *("MetricModel", "PosedDA3", "PretrainedDA3", "PretrainedPi3X", "PretrainedVGGT"),
            *("TinyDA3", "TinyPi3X", "TinyVGGT"),
        ],
        "published": PUBLISHED,
        "metrics": ["VSIBenchScore", "score_answer"],
        "backbones.lora": ["LoRA"],
        "backbones.output_gate": ["OutputGate"],
        "model": ["SpatialVLM"],
        "weights.saved_models": ["latest_run"],
        "objectives": [
            *("CameraPrediction", "DepthPrediction", "Distillation", "HeldOutViews", "LanguageModeling", "MaskedViews"),
            "MetricScale",
            "NovelViews",
            *("Objective", "RayDepthPrediction", "TeacherDepth", "TeacherPose"),
        ],
        "tasks.base": ["LearningRates", "WarmupCosine"],
        "tasks": [
            *("Algorithm", "AnswerFormat", "AnswerScore", "BaselineVLM", "ConcatSplitMLLM", "GRPO"),
            *("GeometryPretraining", "PRoPEMLLM", "Qwen25VL", "Qwen3VL", "Qwen35", "Reward", "ShuffledAnswerScore"),
            *("SupervisedFineTuning", "Task", "VideoQATask"),
        ],
        "sequences.time_index": [
            *("ConstantIndex", "FrameNumberIndex", "PathLengthIndex", "PoseDistanceIndex", "StepIndex", "TimeIndex"),
            *("BackboneIndex", "SpanIndex", "TimestampIndex"),
        ],
    },
)
