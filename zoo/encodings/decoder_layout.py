"""The sizes of a decoder's attention that camera encodings depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LayerKind = Literal["full_attention", "linear_attention"]  # the latter is Gated DeltaNet


class HeadLayout(NamedTuple):
    """The channels of an attention head: RoPE rotates the first 2F in pairs (c, c + F), each by one axis of mRoPE.

    Attributes:
        dim: D, channels per head.
        axes: The axis of each of the F frequencies, from high to low: 0 is t, 1 is h, 2 is w. Qwen2.5-VL has the
            axes in a row; in Qwen3-VL they take turns. Both have D/2 frequencies, Qwen3.5 has D/8: the other channels
            have no position. Heads of Gated DeltaNet have no RoPE, and none.
    """

    dim: int
    axes: tuple[int, ...]

    @classmethod
    def in_row(cls, dim: int, sections: Sequence[int]) -> HeadLayout:
        """Return a layout with all frequencies of t, then those of h, then those of w."""
        return cls(dim, tuple(axis for axis, count in enumerate(sections) for _ in range(count)))

    def frequencies(self, axis: int) -> list[int]:
        """Return the numbers of the frequencies of an axis, from high to low."""
        return [number for number, each in enumerate(self.axes) if each == axis]

    def pairs(self, frequencies: Sequence[int]) -> list[int]:
        """Return the channels that RoPE rotates by these frequencies: the first of each pair, then the second."""
        return [*frequencies, *(number + len(self.axes) for number in frequencies)]

    @property
    def num_rotated(self) -> int:
        """The number of channels that RoPE rotates, the first ones."""
        return 2 * len(self.axes)

    def with_axes(self) -> HeadLayout:
        """Return the pairs for rotations beside RoPE's: the same, or without RoPE all pairs, whose axes take turns."""
        return self if self.axes else HeadLayout(self.dim, tuple(number % 3 for number in range(self.dim // 2)))


@dataclass(frozen=True, eq=False)
class DecoderLayout:
    """Sizes and RoPE frequencies of a decoder, as its backbone states them for `CameraEncoding.bind_to_decoder`.

    Attributes:
        hidden_size: Width of the hidden states.
        num_layers: Number of decoder layers.
        num_heads: Attention heads of q and o.
        num_key_value_heads: Attention heads of k and v (grouped-query attention); divides `num_heads`.
        head: The channels of a head, and the axis of each of its RoPE frequencies.
        rope_frequencies: RoPE's inverse frequencies (radians per position, shape (F,)), buffers of the decoder.
            An encoding with shared frequencies overwrites them in place.
        device: Device of the decoder's weights.
        kinds: The kind of each layer; empty if all are full attention.
        kind: The kind of layer whose heads these are.
        linear: The layout of the Gated DeltaNet layers of a hybrid decoder: there q and k have `num_key_value_heads`,
            v and o have `num_heads`.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head: HeadLayout
    rope_frequencies: tuple[Tensor, ...] = ()
    device: torch.device | str = "cpu"
    kinds: tuple[LayerKind, ...] = ()
    kind: LayerKind = "full_attention"
    linear: DecoderLayout | None = None

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers with these heads."""
        kinds = self.kinds or (self.kind,) * self.num_layers
        return [layer for layer, kind in enumerate(kinds) if kind == self.kind]
