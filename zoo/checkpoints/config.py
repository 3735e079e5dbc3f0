"""config.json of Qwen2.5-VL and Spatial-MLLM, in and out."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from transformers import Qwen2_5_VLConfig

from zoo.errors import InputError
from zoo.geometry.vggt.aggregator import DINOV2, Aggregator, ConvPatchEmbed
from zoo.geometry.vggt_encoder import VGGTEncoder

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

OWN = {"model_type", "architectures", "auto_map", "spatial_config", "connector_config", "vggt_aggregator"}
CONNECTOR_TYPE = "mlp_add"
SIZES = {"img_size": 518, "patch_size": 14, "embed_dim": 1024}  # of VGGT, in `spatial_config`
TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "attention_dropout"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")
VISION = (
    *("depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "patch_size"),
    *("spatial_merge_size", "temporal_patch_size", "tokens_per_second", "window_size", "out_hidden_size"),
    *("fullatt_block_indexes", "initializer_range"),
)


class ReleasedConfig:
    """What the config of a Qwen2.5-VL or a Spatial-MLLM says of its parts.

    Args:
        config: a released config.json, or {"qwen": that of Qwen2.5-VL, "spatial_config": ..., ...} side by side.

    Attributes:
        qwen: of transformers' Qwen2.5-VL.
        aggregator: arguments of VGGT's `Aggregator`.
        layer: of the aggregator, which the connector reads.

    Raises:
        InputError: a connector that isn't the published one.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        flat = {name: value for name, value in config.items() if name not in OWN}
        self.qwen = Qwen2_5_VLConfig(**config.get("qwen", flat))
        spatial, connector = config.get("spatial_config") or {}, config.get("connector_config") or {}
        sizes = {name: spatial.get(name, default) for name, default in SIZES.items()}
        self.aggregator: dict[str, Any] = sizes | (config.get("vggt_aggregator") or {})
        self.layer = int(connector.get("spatial_embeds_layer_idx", -1))
        kind = connector.get("connector_type", CONNECTOR_TYPE)
        if kind != CONNECTOR_TYPE:
            raise InputError(
                f"a checkpoint with a connector of type {kind}: only the published {CONNECTOR_TYPE} is known"
            )


def released_config(model: SpatialVLM, source: dict[str, Any] | None) -> dict[str, Any]:
    """config.json as transformers 4.51 writes it, of a Qwen2.5-VL or a Spatial-MLLM.

    Args:
        model: what is exported.
        source: the config.json of the folder that the weights came from, whose settings are kept.
    """
    qwen = _flat(model.backbone.vlm.config) if source is None else {k: v for k, v in source.items() if k not in OWN}
    if model.geometry is None:
        return {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], **qwen}
    source, geometry = source or {}, model.geometry
    assert isinstance(geometry, VGGTEncoder)
    aggregator = _aggregator(geometry.vggt.aggregator)
    spatial = source.get("spatial_config", {}) | {name: aggregator.pop(name) for name in SIZES}
    connector = {"connector_type": CONNECTOR_TYPE, "spatial_embeds_layer_idx": geometry.layer}
    config = {
        "model_type": "spatial-mllm",
        "architectures": ["SpatialMLLMForConditionalGeneration"],
        **qwen,
        "spatial_config": spatial,
        "connector_config": source.get("connector_config", {}) | connector,
    }
    defaults = {name: each.default for name, each in inspect.signature(Aggregator).parameters.items()}
    unusual = {name: value for name, value in aggregator.items() if value != defaults[name]}
    return config | ({"vggt_aggregator": unusual} if unusual else {})  # the published code has no such settings


def _flat(config: Qwen2_5_VLConfig) -> dict[str, Any]:
    """The decoder's settings beside the others, and RoPE's by their old names."""
    text, vision = config.text_config, config.vision_config
    flat = {name: getattr(text, name) for name in TEXT}
    flat |= {name: getattr(config, name) for name in TOKENS if hasattr(config, name)}
    flat["tie_word_embeddings"] = config.tie_word_embeddings
    flat["rope_theta"] = text.rope_parameters["rope_theta"]
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": list(text.rope_parameters["mrope_section"])}
    return flat | {"vision_config": {name: getattr(vision, name) for name in VISION}}


def _aggregator(aggregator: Aggregator) -> dict[str, Any]:
    """The arguments that it was built with."""
    width = aggregator.embed_dim
    first: Any = aggregator.frame_blocks[0]
    patches: Any = aggregator.patch_embed
    img_size, name = 518, "conv"  # a convolution has no use for a size
    if not isinstance(patches, ConvPatchEmbed):
        img_size, dino = (
            patches.config.image_size,
            (width, len(patches.encoder.layer), patches.config.num_attention_heads),
        )
        name = next(name for name, sizes in DINOV2.items() if sizes == dino)
    return {
        "img_size": img_size,
        "patch_size": aggregator.patch_size,
        "embed_dim": width,
        "depth": aggregator.depth,
        "num_heads": width // aggregator.head_dim,
        "mlp_ratio": first.mlp.fc1.out_features / width,
        "num_register_tokens": aggregator.patch_start - 1,
        "patch_embed": name,
        "rope_freq": aggregator.rope_freq,
    }
