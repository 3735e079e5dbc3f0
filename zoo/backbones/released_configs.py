"""config.json of released Qwen-VL models and Spatial-MLLM, as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from transformers import Qwen2_5_VLConfig, Qwen3_5Config, Qwen3VLConfig

from zoo.backbones.released_geometry import GEOMETRY_KEYS, VGGT_SIZES
from zoo.errors import InputError

GEOMETRY_PARTS = {"spatial_config", "connector_config", "vggt_aggregator", *GEOMETRY_KEYS}
OTHERS = {"model_type", "architectures", "auto_map", *GEOMETRY_PARTS}
CONNECTOR_TYPE = "mlp_add"
KNOWN = Path(__file__).parent / "released_configs.yaml"


class ReleasedConfig:
    """The parts described by the config of a Qwen2.5-VL or a Spatial-MLLM.

    Args:
        config: A released config.json, or {"qwen": Qwen2.5-VL's config.json, "spatial_config": ..., ...}.

    Attributes:
        qwen: Transformers' config of Qwen2.5-VL.
        aggregator: Arguments of VGGT's `Aggregator`.
        layer: Layer of the aggregator that the connector reads.

    Raises:
        InputError: The connector is not the published one.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        settings = config.get("qwen", config)
        self.qwen = Qwen2_5_VLConfig(**{name: value for name, value in settings.items() if name not in OTHERS})
        spatial, connector = config.get("spatial_config") or {}, config.get("connector_config") or {}
        sizes = {name: spatial.get(name, default) for name, default in VGGT_SIZES.items()}
        self.aggregator: dict[str, Any] = sizes | (config.get("vggt_aggregator") or {})
        self.layer = int(connector.get("spatial_embeds_layer_idx", -1))
        kind = connector.get("connector_type", CONNECTOR_TYPE)
        if kind != CONNECTOR_TYPE:
            raise InputError(f"a connector of type {kind}: only the published {CONNECTOR_TYPE} is known")


def qwen3_config(config: dict[str, Any], source: str = "the config") -> Qwen3VLConfig:
    """Return transformers' config of a Qwen3-VL.

    Args:
        config: Its config.json.
        source: Where it was read from, for errors.

    Raises:
        InputError: MRoPE's sections do not share out the frequencies of a head.
    """
    found = Qwen3VLConfig.from_dict(config)
    _check_sections(found.text_config, source)
    return found


def qwen3_5_config(config: dict[str, Any], source: str = "the config") -> Qwen3_5Config:
    """Return transformers' config of a Qwen3.5, see `qwen3_config`."""
    found = Qwen3_5Config.from_dict({name: value for name, value in config.items() if name not in GEOMETRY_PARTS})
    _check_sections(found.text_config, source)
    return found


def _check_sections(text: Any, source: str) -> None:
    sections, channels = list(text.rope_parameters["mrope_section"]), text.head_dim
    pairs = int(channels * text.rope_parameters.get("partial_rotary_factor", 1.0)) // 2
    taken = [len(range(axis, min(3 * count, pairs), 3)) for axis, count in enumerate(sections)]  # h and w take turns
    if len(sections) != 3 or sum(sections) != pairs or taken[1:] != sections[1:]:
        raise InputError(
            f"{source}: mrope_section {sections} does not share out the {pairs} frequencies of a head of "
            f"{channels} channels in turns: download it again"
        )


def known_config(path: str) -> dict[str, Any] | None:
    """Return the sizes in the config.json of a released model, by the last part of its hub id or folder; else None."""
    known: dict[str, dict[str, Any]] = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
    return known.get(Path(path).name)
