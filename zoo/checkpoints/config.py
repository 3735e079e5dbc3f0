"""config.json of Qwen2.5-VL and Spatial-MLLM: what it says of the parts."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLConfig

from zoo.errors import InputError

SPATIAL = ("spatial_config", "connector_config", "vggt_aggregator")  # what Spatial-MLLM adds
CONNECTOR_TYPE = "mlp_add"


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
        ours = {*SPATIAL, "model_type", "architectures", "auto_map"}
        flat = {name: value for name, value in config.items() if name not in ours}
        self.qwen = Qwen2_5_VLConfig(**config.get("qwen", flat))
        spatial, connector = config.get("spatial_config") or {}, config.get("connector_config") or {}
        sizes = {name: spatial[name] for name in ("img_size", "patch_size", "embed_dim") if name in spatial}
        self.aggregator: dict[str, Any] = sizes | (config.get("vggt_aggregator") or {})
        self.layer = int(connector.get("spatial_embeds_layer_idx", -1))
        kind = connector.get("connector_type", CONNECTOR_TYPE)
        if kind != CONNECTOR_TYPE:
            raise InputError(
                f"a checkpoint with a connector of type {kind}: only the published {CONNECTOR_TYPE} is known"
            )
