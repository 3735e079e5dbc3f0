"""The states that Gated DeltaNet layers keep in a KV cache, in place of keys and values: one row per question.

A row of a layer has the last inputs of the convolution and the recurrent state in float32, 2 MiB per layer in
Qwen3.5-4B and 48 MiB in all, whatever the length of the video. A layer writes its states in place.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

States = list[tuple[Tensor, Tensor]]  # (rows, channels, K) and (rows, heads, D, D) of each such layer


def read_states(cache: Any) -> States:
    """Return the states of all Gated DeltaNet layers, none in a decoder without."""
    return [(layer.conv_states[0], layer.recurrent_states[0]) for layer in _layers(cache)]


def write_states(cache: Any, states: States) -> None:
    """Let the layers go on from a copy of states."""
    for layer, (inputs, state) in zip(_layers(cache), states, strict=True):
        layer.conv_states[0], layer.recurrent_states[0] = inputs.clone(), state.clone()


def join_states(cache: Any, states: list[States]) -> None:
    """Let the layers go on from the states of several questions as rows, which are taken out of the lists.

    So memory holds them once, and one layer twice.
    """
    for layer in _layers(cache):
        inputs, state = zip(*(question.pop(0) for question in states), strict=True)
        layer.conv_states[0], layer.recurrent_states[0] = torch.cat(inputs), torch.cat(state)


def keep_rows(cache: Any, rows: Int[Tensor, " rows"]) -> None:
    """Keep the states of some questions."""
    for layer in _layers(cache):
        layer.reorder_cache(rows)


def _layers(cache: Any) -> list[Any]:
    return [layer for layer in cache.layers if isinstance(layer, LinearAttentionLayer)]
