"""Loading and exporting official checkpoints, in memory or as a released folder.

The names of published models, such as `load_vg_llm`, are those of `zoo.published`.
"""

from zoo.backbones import PretrainedQwen3VL, PretrainedQwen25VL, PretrainedQwen35
from zoo.checkpoints.export import export_model, official_parameters, official_tensors, unofficial_parts
from zoo.checkpoints.from_tensors import load_qwen3_5, load_qwen3_vl, load_qwen25_vl
from zoo.checkpoints.official_parts import official_3d_tokens, official_pictures
from zoo.published import __getattr__
