"""Greedy answers by transformers' `generate`, which keeps the KV cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration


class CameraQwen25VL(Qwen2_5_VLForConditionalGeneration):
    """The stock model whose `generate` passes a `camera_encoding` on to the attention."""

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        # transformers refuses keyword arguments that are not in the signature of forward, though forward passes them on
        super()._validate_model_kwargs({k: v for k, v in model_kwargs.items() if k != "camera_encoding"})

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        # for beam search transformers repeats tensors only
        encoding = kwargs.get("camera_encoding")
        if encoding is not None and expand_size > 1:
            kwargs["camera_encoding"] = encoding.repeat_interleave(expand_size)
        return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool = False, **kwargs: Any) -> Any:
        encoding = kwargs.get("camera_encoding")
        if encoding is not None and not is_first_iteration:
            if kwargs.get("use_cache") is False:
                raise ValueError("a camera encoding covers the prompt alone: generate with use_cache=True")
            # decoded tokens are text without a camera; keys and values in the cache are encoded already
            kwargs["camera_encoding"] = encoding.for_decode_step()
        return super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)


@torch.no_grad()
def greedy(vlm: CameraQwen25VL, inputs: dict[str, Any], max_new_tokens: int, stop_tokens: list[int]) -> list[list[int]]:
    """New tokens of each left-padded sequence, up to a stop token (included).

    No penalties: Qwen's released generation config has a repetition penalty and samples, which the published
    evaluation does not intend.
    """
    padding = vlm.config.text_config.pad_token_id
    padding = padding if padding is not None else next(iter(stop_tokens), 0)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stop_tokens or None, pad_token_id=padding
    )
    vlm.generation_config = config  # transformers fills unset fields from the model's own config
    sequences = vlm.generate(**inputs, generation_config=config)
    answers = []
    for row in sequences[:, inputs["input_ids"].shape[1] :].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in stop_tokens), len(row))
        answers.append(row[:end])
    return answers
