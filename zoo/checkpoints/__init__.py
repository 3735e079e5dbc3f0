"""Loading and exporting official checkpoints, in memory or as a released folder.

The names of published models, such as `load_vg_llm`, are those of `zoo.published`. Each file is imported when one of
its names is first used.
"""

from zoo.lazy import lazy_exports
from zoo.published import __all__ as PUBLISHED

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        ".backbones": ["PretrainedQwen25VL", "PretrainedQwen35", "PretrainedQwen3VL"],
        "export": ["export_model", "official_parameters", "official_tensors", "unofficial_parts"],
        "from_tensors": ["load_qwen25_vl", "load_qwen3_5", "load_qwen3_vl"],
        "official_parts": ["official_3d_tokens", "official_pictures"],
        ".published": PUBLISHED,
    },
)
