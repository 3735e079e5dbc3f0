"""Official checkpoints in and out: Qwen2.5-VL and Spatial-MLLM, in memory or as a released folder."""

from zoo.checkpoints.export import export_model, official_tensors, unofficial_parts
from zoo.checkpoints.pretrained import PretrainedQwen25VL, PretrainedSpatialMLLM
from zoo.checkpoints.released import load_qwen25_vl, load_spatial_mllm
