"""The zoo as a model of lmms-eval: `python -m lmms_eval --model spatial_vlm_zoo`.

lmms-eval reads the manifest at each start, by an entry point; the zoo is imported if it is the model.
"""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("spatial_vlm_zoo", chat_class_path="commands.lmms_eval.model.SpatialVLMZoo")
