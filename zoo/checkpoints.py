"""Official checkpoints: names of transformers 4.51, in which they are published, and of transformers 5."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from zoo.backbone import Backbone
from zoo.errors import InputError
from zoo.optim import LearningRates
from zoo.qwen25_vl import Qwen25VL

# 4.51 had the vision tower beside the decoder; 5 has both inside `model`
RENAMED = (
    (r"^visual\.", "model.visual."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
)


def current_name(name: str) -> str:
    """The name in transformers 5 of a Qwen2.5-VL tensor named as in 4.51 or 5."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


class StateDictBackbone(Backbone):
    """A Qwen2.5-VL from its config and its tensors, as they are in memory; it has no processor.

    Args:
        config: as in the config.json of a released model.
        state_dict: named as in transformers 4.51 or 5; a tied lm_head may be absent.
    """

    pretrained = True

    def __init__(self, config: dict[str, Any], state_dict: Mapping[str, Tensor]):
        super().__init__()
        self.config = Qwen2_5_VLConfig(**config)
        self.state_dict = {current_name(name): tensor for name, tensor in state_dict.items()}

    def load(self) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor | None]:
        model = Qwen2_5_VLForConditionalGeneration(self.config)
        result = model.load_state_dict(self.state_dict, strict=False)
        tied = {"lm_head.weight"} if self.config.tie_word_embeddings else set()
        missing = sorted(set(result.missing_keys) - tied)
        if missing or result.unexpected_keys:
            raise InputError(f"not this Qwen2.5-VL: missing {missing}, unexpected {result.unexpected_keys}")
        return model.train(), None


def load_qwen25_vl(config: dict[str, Any], state_dict: Mapping[str, Tensor]) -> Qwen25VL:
    """The baseline with these weights, all of it trainable but the vision tower.

    Args:
        config: {"qwen": the model's config.json, ...}.
        state_dict: named as in transformers 4.51 or 5; a tied lm_head may be absent or present.

    Raises:
        InputError: listing tensors that are missing or unexpected.
    """
    rates = LearningRates(vision=LearningRates().connector)
    return Qwen25VL(backbone=StateDictBackbone(config["qwen"], state_dict), learning_rates=rates)
