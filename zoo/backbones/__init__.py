"""Video-language models: their interface (`base.py`), the shared code of the Qwen-VL family, and a file per model."""

from zoo.backbones.base import Backbone, BackboneLoader, Preprocessor, released_parts
from zoo.backbones.pretrained import PretrainedQwen3VL, PretrainedQwen25VL, PretrainedQwen35
from zoo.backbones.qwen3_5 import Qwen35Backbone, TinyQwen35
from zoo.backbones.qwen3_vl import Qwen3VLBackbone, TinyQwen3VL
from zoo.backbones.qwen25_vl import Qwen25VLBackbone, TinyQwen25VL, tiny_preprocessor
from zoo.backbones.smollm2 import PretrainedSmolLM2


def default_loader() -> BackboneLoader:
    """Return the loader of a tiny random model, the default backbone of `SpatialVLM`."""
    return TinyQwen25VL()
