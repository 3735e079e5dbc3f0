"""The zoo as a model of lmms-eval: `python -m lmms_eval --model spatial_vlm_zoo`.

An entry point makes lmms-eval read this manifest at each start. The zoo is imported only if it is the chosen model.
"""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("spatial_vlm_zoo", chat_class_path="commands.lmms_eval.model.SpatialVLMZoo")
