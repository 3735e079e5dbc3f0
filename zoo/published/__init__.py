"""Published models, one file each: a method's LightningModule, and how its released folders are read and written.

The core does not import these files. They are imported by name, or when a folder that the zoo did not write is opened.
To add a model, write a file like `spatial_mllm.py` and list its public names here.
"""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "spatial_mllm": ["SpatialMLLM", "PretrainedSpatialMLLM", "load_spatial_mllm"],
        "vg_llm": ["VGLLM", "PretrainedVGLLM", "load_vg_llm", "official_fusion"],
        "spatial_stack": [
            *("SpatialStack", "PretrainedSpatialStack", "PretrainedSpatialStackQwen25", "load_spatial_stack"),
        ],
        "geothinker": [
            *("GeoThinker", "PretrainedGeoThinker", "PretrainedGeoThinkerQwen3", "load_geothinker"),
            "official_interaction",
        ],
        "geovr": ["PretrainedGeoVR"],
        "cambrian_p": ["PosePrediction"],
    },
)
