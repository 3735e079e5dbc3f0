"""Where Qwen2.5-VL comes from: released weights (`zoo.checkpoints`), or tiny random ones (`zoo.tiny`)."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers import Qwen2_5_VLProcessor as Processor

from zoo.errors import InputError
from zoo.geometry.base import GeometryEncoder

AttentionImplementation = Literal["sdpa", "eager", "flex_attention", "flash_attention_2"]
DType = Literal["float32", "bfloat16"]


class Backbone(ABC):
    """A recipe for a Qwen2.5-VL and its processor; nothing is loaded before `load` is called.

    Args:
        attn_implementation: the attention backend of transformers. `flex_attention`, of the decoder alone, needs a GPU
            to train; several questions of a scene in one sequence cost it only the blocks that they see.
        dtype: the type in which the weights are kept.

    Attributes:
        pretrained: whether the weights mean anything before training. A model with random weights refuses
            to answer questions unless it is told to.
    """

    pretrained: bool = False

    def __init__(self, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "float32"):
        if attn_implementation == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            raise InputError(
                "attn_implementation=flash_attention_2 needs flash-attn, which is not installed: "
                "pip install flash-attn --no-build-isolation on a CUDA machine, or choose sdpa"
            )
        self.attention: AttentionImplementation = attn_implementation
        # transformers refuses FlexAttention for Qwen2.5-VL as a whole; its decoder takes it, see `attend`
        self.attn_implementation = "sdpa" if attn_implementation == "flex_attention" else attn_implementation
        self.dtype = getattr(torch, dtype)

    def geometry(self) -> GeometryEncoder | None:
        """The geometry encoder that came with these weights, if there is one; nothing else is loaded for it."""
        return None

    def load_fusion(self, fusion: nn.Module) -> bool:
        """Fills in the fusion that came with these weights; whether there was one."""
        return False

    def attend(self, qwen: Qwen2_5_VLForConditionalGeneration) -> None:
        """Makes the decoder of the loaded model attend as asked."""
        if self.attention == "flex_attention":
            qwen.model.language_model.config._attn_implementation = self.attention

    @abstractmethod
    def load(self) -> tuple[Qwen2_5_VLForConditionalGeneration, Processor]:
        """The model in training mode on the current device, and its processor."""


@dataclass
class LoRA:
    """Low-rank adapters on the decoder (Hu et al. 2021, arXiv 2106.09685); the decoder itself is then frozen.

    Args:
        r: rank.
        alpha: scale; the update is alpha / r · BA.
        dropout: on the adapter's input.
        targets: names of the decoder's linear layers that get one.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InputError(
                f"--model.lora.r {self.r}: a rank is at least 1; leave lora out to train the decoder whole"
            )

        if not 0 <= self.dropout < 1:
            raise InputError(f"--model.lora.dropout {self.dropout}: a share of the inputs, at least 0 and less than 1")

    def apply(self, decoder: nn.Module) -> None:
        """Puts the adapters into the decoder in place; only they stay trainable."""
        from peft import LoraConfig, inject_adapter_in_model  # slow to import

        config = LoraConfig(
            r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=list(self.targets)
        )
        try:
            inject_adapter_in_model(config, decoder)
        except ValueError as error:  # it has no layers of these names
            layers = {name.rpartition(".")[2] for name, part in decoder.named_modules() if isinstance(part, nn.Linear)}
            raise InputError(
                f"--model.lora.targets {self.targets}: take some of {', '.join(sorted(layers))}"
            ) from error
