"""GeoVR (arXiv 2606.05833): a Qwen3-VL that is trained with a geometry encoder as the teacher, and used without it.

Published: folders of `WHB139426/GeoVR`. Its training is `configs/geovr_tiny.yaml` and `recipes/geovr.yaml`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from zoo.backbones.base import AttentionImplementation, DType
from zoo.backbones.pretrained import PretrainedQwen3VL

# heads, tokens and teachers, which only the training needs
TRAINING = (
    *("model.camera_token.", "model.scale_token.", "camera_head.", "scale_head.", "dpt_head.", "distill_head_list."),
    *("geometry_encoder.", "metric_encoder."),
)


class PretrainedGeoVR(PretrainedQwen3VL):
    """Released weights of GeoVR (arXiv 2606.05833): a Qwen3-VL that was trained with heads not used for answers.

    The files may contain the heads, their tokens and the frozen teachers. They are not read.

    Args:
        path: A folder of the hub repository (`WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B`, `-4B`; `GeoVR-Omega-...`) or a
            local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    title, released = "GeoVR", "WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B"
    skip = TRAINING
    known_configs = {
        f"GeoVR-{teacher}-Qwen3-VL-{size}B": (f"Qwen3-VL-{size}B-Instruct", {})
        for teacher in ("VGGT", "Omega")
        for size in (2, 4)
    }

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any], names: Collection[str] = ()) -> bool:
        """See `BackboneLoader`. The config.json is Qwen3-VL's."""
        return super().reads(config) and any(name.startswith(TRAINING) for name in names)
