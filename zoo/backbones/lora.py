"""Low-rank adapters on the decoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.weights.load import is_quantized


@dataclass
class LoRA:
    """Low-rank adapters on the decoder (Hu et al. 2021, arXiv 2106.09685). The decoder itself is then frozen.

    Args:
        r: Rank of the adapters.
        alpha: Scale. The update is alpha / r · BA.
        dropout: Dropout on the adapter's input.
        targets: Names of the decoder's linear layers that get an adapter. null uses the backbone's list.
        quantization: `nf4` keeps the linear layers of the backbone's list in four bits (QLoRA, Dettmers et al. 2023,
            arXiv 2305.14314): a quarter of their memory in bfloat16. They compute in the dtype of the released weights.
            null keeps them in this dtype.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: list[str] | None = None
    quantization: Literal["nf4"] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InputError(
                f"--model.lora.r {self.r}: a rank is at least 1; leave lora out to train the decoder whole"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"--model.lora.dropout {self.dropout}: a fraction of the inputs, at least 0 and below 1")
        if self.quantization is not None and find_spec("bitsandbytes") is None:
            raise InputError(
                f"--model.lora.quantization {self.quantization} needs bitsandbytes, which is not installed: "
                "pip install 'spatial-vlm-zoo[qlora]', or leave it out"
            )

    def apply(self, decoder: nn.Module, default_targets: Sequence[str]) -> None:
        """Insert the adapters into the decoder in place. Only the adapters remain trainable.

        Raises:
            InputError: The decoder has no layers of these names, or has weights that can't be quantized any more.
        """
        # peft imports bitsandbytes, which warns that it lacks a kernel for layers that `quantize` does not build
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        from peft import LoraConfig, inject_adapter_in_model  # slow to import
        from peft.tuners.lora import LoraLayer

        if self.quantization is not None:
            quantize(decoder, default_targets)
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


# ---- Four bits: NF4 by bitsandbytes, with quantized scales (double quantization) -------------------------------------


def quantize(decoder: nn.Module, names: Sequence[str]) -> None:
    """Replace the linear layers of these names by layers that quantize their weights when these are read.

    Raises:
        InputError: The weights are not read from files.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit  # slow to import

    for name, old in [*decoder.named_modules()]:
        if not isinstance(old, nn.Linear) or name.rpartition(".")[2] not in names:
            continue
        dtype = old.weight.dtype
        if not old.weight.is_meta:
            raise InputError("--model.lora.quantization is for released weights: leave it out for random ones")
        new: Any = Linear4bit(old.in_features, old.out_features, False, dtype, quant_type="nf4", device="meta")
        new.weight, new.bias = Params4bit(old.weight.data, quant_type="nf4", module=new), old.bias
        new.support_avx512bf16_for_cpu = False  # a layout for evaluations on CPUs, which has no gradient afterwards
        decoder.set_submodule(name, new)
    decoder.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft asks for it


def stored_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor. In four bits this includes the scales: 0.52 bytes per weight.

    Each block of 64 weights has a scale of one byte. Each 256 of these have a scale in float32. A layer also has tables
    of 16 and 256 float32 numbers and the mean of the scales.
    """
    count = tensor.numel()
    if not is_quantized(tensor):
        return count * tensor.element_size()
    if not tensor.is_meta:
        count *= 2  # two weights in a byte
    scales = -(-count // 64)
    return -(-count // 2) + scales + 4 * (-(-scales // 256) + 16 + 256 + 1)
