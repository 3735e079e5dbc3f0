"""Official checkpoints in and out: Qwen-VL models and Spatial-MLLM, in memory or as a released folder."""

from zoo.backbones import PretrainedQwen3VL, PretrainedQwen25VL, PretrainedQwen35, PretrainedSpatialMLLM
from zoo.checkpoints.export import export_model, official_tensors, unofficial_parts
from zoo.checkpoints.from_tensors import load_qwen3_5, load_qwen3_vl, load_qwen25_vl, load_spatial_mllm
