"""GeoThinker (arXiv 2602.06037): visual tokens query the 3D tokens of their frame within the decoder's layers.

Its code began as VG-LLM's. Published: folders of `lihy285/GeoThinker`, on Qwen2.5-VL and on Qwen3-VL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.backbones.base import AttentionImplementation, DType, License
from zoo.backbones.pretrained import FUSION, QWEN3, QWEN25, VGGT_MODEL, PretrainedQwen3VL
from zoo.checkpoints.from_tensors import model_from_tensors
from zoo.fusions.base import HIDDEN, Fusion
from zoo.fusions.geothinker import GeoThinkerFusion, Interaction, group_size, interaction_layers
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.dataset_geometry import DatasetGeometry
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.model import SpatialVLM
from zoo.published.release import (
    Release,
    ReleasedGeometry,
    aggregator_arguments,
    flat_settings,
    refuse_others,
    warn_of_layers,
)
from zoo.published.vg_llm import KEYS, SUPPORTED, WITH_VGGT, PretrainedVGLLM
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.load import Layout, ReleasedWeights, Tensors, TensorsUnder, first_tensor, load_weights

__all__ = ["GeoThinker", "PretrainedGeoThinker", "PretrainedGeoThinkerQwen3", "load_geothinker", "official_interaction"]

DECODER_LAYERS = {QWEN25: "model.layers.", QWEN3: "model.language_model.layers."}  # in its files
INTERACTION = ".cross_attn."
UNREAD = ("bias_gate.",)  # tensors of an interaction that the published code never reads
SMI_VIEWS = 8  # views of a scene that keep all tokens; a constant in the published code
SMI_KEYS = ("depart_smi_token", "smi_image_num", "smi_downsample_rate")
DECODER_KEYS = ("geo_cross_attn", "geo_inject_version", "geo_importance_gate", "geo_spatial_bias")
OWN_SUPPORTED = {
    "geo_inject_version": ("v2_flash", "v2"),  # they differ in the distance term alone
    "geo_spatial_bias": (False,),  # the distance term, which no script switches on
    "smi_image_num": (SMI_VIEWS,),
    "smi_downsample_rate": (2,),
}
KNOWN = {
    **WITH_VGGT,
    "feature_fusion_method": "zero",
    "geo_cross_attn": True,  # on Qwen3-VL in its file within text_config
    "geo_inject_version": "v2_flash",
    "geo_importance_gate": True,
    "depart_smi_token": True,  # not verified for the vanilla ones
    "smi_image_num": SMI_VIEWS,
    "smi_downsample_rate": 2,
}


class GeoThinker(VideoQATask):
    """GeoThinker (arXiv 2602.06037): visual tokens query the 3D tokens of their frame within the decoder.

    geothinker.yaml shows each frame as an image, as published.

    Args:
        geometry: Encoder of the 3D tokens. The layer before VGGT's last one in the paper. The default uses the
            dataset's rays and points.
        fusion: `GeoThinkerFusion`, or another one.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = DatasetGeometry,
        fusion: Callable[[int, int], Fusion] = GeoThinkerFusion,
        **parts: Any,
    ) -> None:
        super().__init__(geometry=geometry, fusion=fusion, **parts)
        warn_of_layers(self.model.geometry, (-2,), "GeoThinker reads the layer before the last")


class _GeoThinkerRelease(Release):
    """What the releases on both backbones share."""

    title = "GeoThinker"
    licensed = License(
        "`lihy285/GeoThinker`",
        "unknown (the code is MIT). Made of Qwen2.5-VL-3B or 7B or Qwen3-VL-8B, and VGGT-1B",
    )
    released_fusions: ClassVar[tuple[type[nn.Module], ...]] = (GeoThinkerFusion,)
    unread = UNREAD
    layer: ClassVar[int | None] = -2
    config_keys = (*Release.config_keys, *KEYS, *DECODER_KEYS, *SMI_KEYS)

    @classmethod
    def describes(cls, config: Mapping[str, Any]) -> bool:
        settings = all_settings(config)
        has_interactions = settings.get("use_geometry_encoder") and settings.get("geo_cross_attn")
        return config.get("model_type") == cls.family and bool(has_interactions)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return geometry_of(self.settings, self.family)

    @classmethod
    def fusion_layout(cls, model: SpatialVLM) -> Layout:
        assert isinstance(model.fusion, GeoThinkerFusion)
        return interaction_layout(cls.family, model.fusion.interactions)

    @classmethod
    def fixed_options(cls, model: SpatialVLM) -> dict[str, Any]:
        assert isinstance(model.fusion, GeoThinkerFusion)
        compresses = model.fusion.compress_beyond is not None
        fixed = {"groups": "published", "detached": cls.family == QWEN3}
        return fixed | ({"compress_beyond": SMI_VIEWS} if compresses else {})

    @classmethod
    def fusion_settings(cls, model: SpatialVLM, source: Mapping[str, Any]) -> dict[str, Any]:
        fusion, geometry = model.fusion, model.geometry
        assert isinstance(fusion, GeoThinkerFusion) and isinstance(geometry, VGGTEncoder)
        return {
            **KNOWN,
            "reference_frame": geometry.reference,
            "geometry_merger_hidden_dim": fusion.hidden,
            "geo_importance_gate": fusion.importance,
            "depart_smi_token": fusion.compress_beyond is not None,
        }

    @classmethod
    def to_official(cls, name: str, tensor: Tensor) -> Tensor:
        return tensor[0] if name.endswith(f"{INTERACTION}gate") else tensor  # a number in its files


class PretrainedGeoThinker(_GeoThinkerRelease, PretrainedVGLLM):
    """A released GeoThinker on Qwen2.5-VL, with its VGGT, merger and interactions for a model that combines them.

    Args:
        path: A folder of the hub repository (`lihy285/GeoThinker/GeoThinker-VGGT-Scaled-Qwen25VL-7B`) or a local folder
            with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    released = "lihy285/GeoThinker/GeoThinker-VGGT-Scaled-Qwen25VL-7B"
    prefixes = (f"{DECODER_LAYERS[QWEN25]}0{INTERACTION}",)
    known_configs = {
        "GeoThinker-VGGT-Vanilla-Qwen25VL-3B": ("Qwen2.5-VL-3B-Instruct", KNOWN),
        "GeoThinker-VGGT-Vanilla-Qwen25VL-7B": ("Qwen2.5-VL-7B-Instruct", KNOWN),
        "GeoThinker-VGGT-Scaled-Qwen25VL-7B": ("Qwen2.5-VL-7B-Instruct", KNOWN),
    }
    shown_as = {"frames_as": "image", "still_resize": {"class_path": "datamodules.WholeStills"}}

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)


class PretrainedGeoThinkerQwen3(_GeoThinkerRelease, PretrainedQwen3VL):
    """A released GeoThinker on Qwen3-VL, see `PretrainedGeoThinker`.

    Args:
        path: A folder of the hub repository (`lihy285/GeoThinker/GeoThinker-VGGT-Scaled-Qwen3VL-8B`) or a local folder
            with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    released = "lihy285/GeoThinker/GeoThinker-VGGT-Scaled-Qwen3VL-8B"
    architecture = "Qwen3VLForConditionalGenerationWithVGGT"
    prefixes = (f"{DECODER_LAYERS[QWEN3]}0{INTERACTION}",)
    known_configs = {"GeoThinker-VGGT-Scaled-Qwen3VL-8B": ("Qwen3-VL-8B-Instruct", KNOWN)}
    shown_as = {
        "frames_as": "image",
        "still_resize": {"class_path": "datamodules.WholeStills", "init_args": {"fit": "resize"}},
    }

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def whole_config(cls, model: SpatialVLM, stock: dict[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
        """See `Release`. The published file has settings of the interactions in the decoder's part."""
        found = super().whole_config(model, stock, all_settings(source))
        own = {name: found[name] for name in (*DECODER_KEYS, *SMI_KEYS) if name in found}
        found = {name: value for name, value in found.items() if name not in DECODER_KEYS}
        return found | {"text_config": found["text_config"] | own}


def all_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config.json. On Qwen3-VL some are in the decoder's part."""
    return {**config.get("text_config", {}), **config}


def geometry_of(config: Mapping[str, Any], family: str) -> ReleasedGeometry | None:
    """Return the parts of a GeoThinker beside its backbone. None if it was saved without geometry.

    Args:
        config: Its config.json, with the arguments of an unusual `Aggregator` under `vggt_aggregator`.
        family: Family of its backbone.

    Raises:
        InputError: The encoder, merger or fusion differs from the released models'.
    """
    settings = all_settings(config)
    if not (settings.get("use_geometry_encoder") and settings.get("geo_cross_attn")):
        return None
    refuse_others(settings, {"feature_fusion_method": ("zero",), **SUPPORTED, **OWN_SUPPORTED})
    fusion = partial(
        GeoThinkerFusion,
        hidden=settings.get("geometry_merger_hidden_dim", HIDDEN),
        compress_beyond=SMI_VIEWS if settings.get("depart_smi_token") else None,
        importance=settings.get("geo_importance_gate", True),
        detached=family == QWEN3,
    )
    layout = interaction_layout(family, interaction_layers(range(settings["num_hidden_layers"])))
    reference = settings.get("reference_frame", "first")
    return ReleasedGeometry(layout, aggregator_arguments(config), (-2,), fusion, reference, UNREAD)


def interaction_layout(family: str, layers: Iterable[int]) -> Layout:
    """Return the names of VGGT, merger and the interactions in these decoder layers."""
    start = "" if family == QWEN25 else "model."
    return {
        f"{start}geometry_encoder.vggt.": VGGT_MODEL,
        f"{start}geometry_merger.": f"{FUSION}merger.",
        **{f"{DECODER_LAYERS[family]}{layer}{INTERACTION}": f"{FUSION}layers.{layer}." for layer in layers},
    }


def load_geothinker(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a GeoThinker with these weights, in their dtype. All parameters are trainable.

    Args:
        config: Its config.json, or {"qwen": its config.json, "vggt_aggregator": arguments of the aggregator}. With a
            "text_config" it is on Qwen3-VL. Without "vggt_aggregator" the arguments are VGGT-1B's.
        state_dict: Tensors by official names. `cross_attn.bias_gate.…`, which the published code never reads, may be
            absent or present.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape, or the fusion is of another kind.
    """
    settings = flat_settings(config)
    kind = PretrainedGeoThinkerQwen3 if "text_config" in settings else PretrainedGeoThinker
    return model_from_tensors(kind, settings, geometry_of(settings, kind.family), state_dict)


def official_interaction(
    config: dict[str, Any], state_dict: Tensors
) -> Callable[[Float[Tensor, "1 N D"], Float[Tensor, "1 N D"], Int[Tensor, "S 3"] | None], Float[Tensor, "1 N D"]]:
    """Return one of GeoThinker's interactions without the rest of the model.

    Args:
        config: `hidden_size`, `num_attention_heads`, `norm_eps`, `importance_gate` and `stride`, the patches per side
            that determine the size of a group.
        state_dict: Tensors by official names, after `cross_attn.`.

    Returns:
        A function that maps the states of visual tokens, their 3D tokens and the grids of the images to what is added
        to the states. Without grids all tokens are one group.

    Raises:
        NotImplementedError: The config has the distance term, which no released model has.
    """
    if config.get("spatial_bias"):
        raise NotImplementedError("geo_spatial_bias: no released model has the distance term")
    part = Interaction(
        config["hidden_size"], config["num_attention_heads"], config["norm_eps"], config["importance_gate"]
    ).to(first_tensor(state_dict).dtype)
    weights = TensorsUnder(state_dict, INTERACTION.removeprefix("."))
    load_weights(part, ReleasedWeights(weights, "interaction", is_skipped=lambda name: name.startswith(UNREAD)))

    def add(
        hidden: Float[Tensor, "1 N D"], geometry: Float[Tensor, "1 N D"], image_grid_thw: Int[Tensor, "S 3"] | None
    ) -> Float[Tensor, "1 N D"]:
        size = 0
        if image_grid_thw is not None:
            rows, columns = (int(side) // config["stride"] for side in image_grid_thw[0, 1:])
            size = rows * columns
        count = hidden.shape[1]
        size = group_size(size, count)
        return part(hidden[0], geometry[0], [(count // size, size)])[None]

    return add
