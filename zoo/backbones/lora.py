"""Low-rank adapters on the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.errors import InputError


@dataclass
class LoRA:
    """Low-rank adapters on the decoder (Hu et al. 2021, arXiv 2106.09685). The decoder itself is then frozen.

    Args:
        r: Rank of the adapters.
        alpha: Scale. The update is alpha / r · BA.
        dropout: Dropout on the adapter's input.
        targets: Names of the decoder's linear layers that get an adapter. null uses the backbone's list.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InputError(
                f"--model.lora.r {self.r}: a rank is at least 1; leave lora out to train the decoder whole"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"--model.lora.dropout {self.dropout}: a fraction of the inputs, at least 0 and below 1")

    def apply(self, decoder: nn.Module, default_targets: Sequence[str]) -> None:
        """Insert the adapters into the decoder in place. Only the adapters remain trainable.

        Raises:
            InputError: The decoder has no layers of these names.
        """
        from peft import LoraConfig, inject_adapter_in_model  # slow to import
        from peft.tuners.lora import LoraLayer

        targets = list(self.targets or default_targets)
        config = LoraConfig(r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets)
        state = torch.get_rng_state()
        try:
            inject_adapter_in_model(config, decoder)
        except ValueError as error:
            layers = {name.rpartition(".")[2] for name, part in decoder.named_modules() if isinstance(part, nn.Linear)}
            raise InputError(f"--model.lora.targets {targets}: choose from {', '.join(sorted(layers))}") from error
        # peft moves the adapters to the device of the base layers, which is the meta device if these are read later.
        # The same numbers are then drawn again: for both linear layers as they are made, and for A once more.
        later: list[Any] = [
            each for each in decoder.modules() if isinstance(each, LoraLayer) and each.get_base_layer().weight.is_meta
        ]
        if later:
            torch.set_rng_state(state)
        for layer in later:
            for part in (layer.lora_A, layer.lora_B):
                part.to_empty(device=torch.get_default_device()).float()
            for name in layer.lora_A:
                layer.lora_A[name].reset_parameters()
                layer.lora_B[name].reset_parameters()
                layer.reset_lora_parameters(name, init_lora_weights=True)
            for part in (layer.lora_A, layer.lora_B):
                part.to(layer.get_base_layer().weight.dtype)
