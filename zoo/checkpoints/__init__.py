"""Official checkpoints in and out: Qwen2.5-VL and Spatial-MLLM, in memory or as a released folder."""

from zoo.checkpoints.export import OfficialTensors, export_model
from zoo.checkpoints.released import PretrainedSpatialMLLM, load_qwen25_vl, load_spatial_mllm

__all__ = ["OfficialTensors", "PretrainedSpatialMLLM", "export_model", "load_qwen25_vl", "load_spatial_mllm"]
