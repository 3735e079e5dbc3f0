"""Loading and exporting official checkpoints: Qwen-VL models, also with VGGT, in memory or as a released folder."""

from zoo.backbones import (
    PretrainedGeoThinker,
    PretrainedGeoThinkerQwen3,
    PretrainedGeoVR,
    PretrainedQwen3VL,
    PretrainedQwen25VL,
    PretrainedQwen35,
    PretrainedSpatialMLLM,
    PretrainedSpatialStack,
    PretrainedSpatialStackQwen25,
    PretrainedVGLLM,
)
from zoo.checkpoints.export import export_model, official_parameters, official_tensors, unofficial_parts
from zoo.checkpoints.from_tensors import (
    load_geothinker,
    load_qwen3_5,
    load_qwen3_vl,
    load_qwen25_vl,
    load_spatial_mllm,
    load_spatial_stack,
    load_vg_llm,
)
from zoo.checkpoints.official_parts import official_3d_tokens, official_fusion, official_interaction, official_pictures
