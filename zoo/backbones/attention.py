"""The camera hooks in the decoder's attention (before and after RoPE, on v, on the output) and in generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Qwen3-VL's are the same two functions
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb, eager_attention_forward

from zoo.encodings.base import EncodedCameras
from zoo.encodings.encoded import QK

# keyword arguments that the model's forward passes on to the decoder's layers, also under gradient checkpointing
HOOK_INPUTS = ("camera_encoding", "deepstack")


class CameraAttention(nn.Module):
    """A decoder attention of transformers with a `camera_encoding`; without one, the stock forward runs.

    A backbone derives a class from this one and its stock attention, and installs it by `replace_classes`. The encoding
    is a keyword argument of the model's forward, which passes unknown arguments to the layers, also under gradient
    checkpointing. Keys and values enter the KV cache encoded, so later steps, which hold text only, need no encoding.
    """

    config: Any
    layer_idx: Any
    q_proj: Any
    k_proj: Any
    v_proj: Any
    o_proj: Any

    def normalize_heads(self, q: Tensor, k: Tensor) -> QK:
        """Normalize queries and keys per head before the hooks, where the stock attention does."""
        return q, k

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, camera_encoding: EncodedCameras | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run the stock forward with the encoding's four hooks.

        Args:
            hidden_states: (B, L, width).
            camera_encoding: encoding of exactly these tokens, from `CameraEncoding.encode`; None changes nothing.
            **kwargs: other arguments of the stock forward, all by name as the decoder layer passes them.

        Raises:
            ValueError: the encoding has another number of tokens.
        """
        if camera_encoding is not None:
            num_tokens = camera_encoding.num_tokens
            if num_tokens not in (None, hidden_states.shape[1]):
                raise ValueError(
                    f"the camera encoding is of {num_tokens} tokens, not {hidden_states.shape[1]}: "
                    "take its `for_decode_step()` for the steps of an answer"
                )
            camera_encoding = camera_encoding.at_layer(self.layer_idx, hidden_states, kwargs["position_embeddings"])
        if camera_encoding is None:
            return super().forward(hidden_states, **kwargs)
        names = ("attention_mask", "position_ids", "cache", "position_embeddings")
        mask, position_ids, cache, position_embeddings = (kwargs.pop(name, None) for name in names)
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        q, k = self.q_proj(hidden_states).view(heads), self.k_proj(hidden_states).view(heads)
        v = camera_encoding.transform_values(self.v_proj(hidden_states).view(heads)).transpose(1, 2)

        q, k = camera_encoding.before_rope(*self.normalize_heads(q, k))
        q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings)
        q, k = camera_encoding.after_rope(q.transpose(1, 2), k.transpose(1, 2))
        q, k = q.transpose(1, 2), k.transpose(1, 2)

        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx, kwargs=kwargs)
        implementation = self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = attention(
            self,
            q,
            k,
            v,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=getattr(self, "sliding_window", None),
            position_ids=position_ids,
            **kwargs,
        )
        output = camera_encoding.transform_outputs(output)
        return self.o_proj(output.reshape(*hidden_states.shape[:2], -1)), weights


class CameraGeneration(GenerationMixin):
    """A model of transformers whose `generate` passes `HOOK_INPUTS` on to the decoder's layers."""

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        # transformers refuses keyword arguments that are not in the signature of forward, though forward passes them on
        super()._validate_model_kwargs({k: v for k, v in model_kwargs.items() if k not in HOOK_INPUTS})

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> Any:
        if expand_size > 1 and (given := given_hook_inputs(kwargs)):
            raise ValueError(f"{given} is not repeated for beams: generate one greedy answer per sequence")
        return super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool = False, **kwargs: Any) -> Any:
        if not is_first_iteration and (given := given_hook_inputs(kwargs)):
            if kwargs.get("use_cache") is False:
                raise ValueError(f"{given} covers the prompt alone: generate with use_cache=True")
            # decoded tokens are text without a camera; keys and values in the cache are encoded already
            kwargs.pop("deepstack", None)
            if (encoding := kwargs.get("camera_encoding")) is not None:
                kwargs["camera_encoding"] = encoding.for_decode_step()
        return super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)


def given_hook_inputs(kwargs: Mapping[str, Any]) -> str:
    """Return the names of the `HOOK_INPUTS` that are given."""
    return ", ".join(name for name in HOOK_INPUTS if kwargs.get(name) is not None)


def replace_classes(module: nn.Module, classes: Mapping[type, Any]) -> None:
    """Give the submodules of these classes another class, in place; names and weights stay."""
    for each in module.modules():
        each.__class__ = classes.get(type(each), type(each))


@torch.no_grad()
def greedy(
    vlm: Any,
    inputs: dict[str, Any],
    max_new_tokens: int,
    stop_tokens: list[int],
    repetition_penalty: float = 1.0,
) -> list[list[int]]:
    """Return the new tokens of each left-padded sequence, up to a stop token (included).

    Greedy, and without the sampling and the penalty of a released generation_config.json.
    """
    vlm.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        repetition_penalty=repetition_penalty,
        eos_token_id=stop_tokens or None,
        pad_token_id=next(iter(stop_tokens), 0),  # cut off below
    )
    sequences = vlm.generate(**inputs)
    answers = []
    for row in sequences[:, inputs["input_ids"].shape[1] :].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in stop_tokens), len(row))
        answers.append(row[:end])
    return answers
