"""Spatial video-language models and their parts.

Each name is also a class path of the command line, such as `zoo.PRoPE`. A class is imported when it is first used:
`import zoo` alone loads no PyTorch.
"""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "backbone": ["Backbone", "LoRA"],
        "cameras": ["Cameras"],
        "checkpoints": ["PretrainedQwen25VL", "PretrainedSpatialMLLM"],
        "concat_split": ["ConcatSplitMLLM"],
        "encodings": [
            *("GTA", "AlternateAxes", "CaPE", "CameraEncoding", "ChannelPlacement", "ChannelRange", "Compose"),
            *("ExtraChannels", "HeadSubset", "HighFrequencies", "LayerSubset", "LowFrequencies", "PRoPE", "Placement"),
            *("PointRoPE", "PoseALiBi", "PoseIndex", "RayEmbedding", "RayEncoding", "TemporalSection", "ValueRoPE"),
            *("ViewAttention", "ViewMixer"),
        ],
        "errors": ["InputError"],
        "fusions": ["AddFusion", "CameraTokenFusion", "ConcatSplitFusion", "Fusion"],
        "geometry": ["DatasetGeometry", "GeometryCache", "GeometryEncoder", "PretrainedVGGT", "TinyVGGT"],
        "geometry_pretraining": ["VGGTPretraining"],
        "metrics": ["VSIBenchScore", "score_answer"],
        "optim": ["LearningRates", "WarmupCosine"],
        "prope_mllm": ["PRoPEMLLM"],
        "qwen25_vl": ["Qwen25VL"],
        "spatial_mllm": ["SpatialMLLM"],
        "time_index": [
            *("ConstantIndex", "FrameNumberIndex", "PathLengthIndex", "PoseDistanceIndex", "StepIndex", "TimeIndex"),
            "TimestampIndex",
        ],
        "tiny": ["TinyQwen25VL"],
        "vlm": ["SpatialVLM"],
    },
)
