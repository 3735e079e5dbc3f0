"""Official checkpoints in: Qwen2.5-VL and Spatial-MLLM, from memory or from a released folder."""

from zoo.checkpoints.released import PretrainedSpatialMLLM, load_qwen25_vl, load_spatial_mllm

__all__ = ["PretrainedSpatialMLLM", "load_qwen25_vl", "load_spatial_mllm"]
