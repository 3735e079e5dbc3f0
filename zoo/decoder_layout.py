"""The sizes of a decoder's attention that camera encodings depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class HeadLayout(NamedTuple):
    """The channels of an attention head.

    Attributes:
        dim: D, channels per head. RoPE rotates the pairs (c, c + D/2).
        mrope_section: number of RoPE frequencies in mRoPE's t, h and w sections; they sum to D/2.
    """

    dim: int
    mrope_section: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DecoderLayout:
    """Sizes and RoPE frequencies of a decoder, as its backbone states them for `CameraEncoding.bind_to_decoder`.

    Attributes:
        hidden_size: width of the hidden states.
        num_layers: number of decoder layers.
        num_heads: attention heads of q and o.
        num_key_value_heads: attention heads of k and v (grouped-query attention); divides `num_heads`.
        head_dim: D, channels per head. RoPE rotates the pairs (c, c + D/2).
        mrope_section: number of RoPE frequencies in mRoPE's t, h and w sections; they sum to D/2.
        rope_frequencies: RoPE's inverse frequencies (radians per position, shape (D/2,)), buffers of the decoder.
            An encoding with shared frequencies overwrites them in place.
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
