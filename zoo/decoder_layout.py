"""The shape of a decoder's attention, as far as camera encodings depend on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DecoderLayout:
    """Sizes of a decoder, stated by the backbone.

    Attributes:
        hidden_size: width of the hidden states.
        num_layers: number of decoder layers.
        num_heads: attention heads of q and o.
        num_key_value_heads: attention heads of k and v (grouped-query attention).
        head_dim: channels of one head.
        mrope_section: number of RoPE frequencies of mRoPE's (t, h, w) sections; they sum to head_dim / 2.
        rope_frequencies: RoPE's inverse frequencies (radians per position), buffers of the decoder. An encoding
            that ties frequencies modifies them in place.
        device: device of the decoder's weights.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    mrope_section: tuple[int, int, int]
    rope_frequencies: tuple[Tensor, ...] = ()
    device: torch.device | str = "cpu"
