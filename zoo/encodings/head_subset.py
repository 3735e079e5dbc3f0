"""Encodings on a subset of the attention heads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.decoder_layout import DecoderLayout
from zoo.encodings.base import CameraEncoding
from zoo.encodings.encoded import QK, EncodedCameras, EncodedGroup
from zoo.encodings.layer_subset import EncodingWrapper, check_numbers


class HeadSubset(EncodingWrapper):
    """An encoding in some heads; the others are stock attention.

    Args:
        encoding: the encoding of these heads.
        key_value_heads: numbers of the heads of k and v, from 0, with the query heads that share them.
    """

    def __init__(self, encoding: CameraEncoding, key_value_heads: list[int]) -> None:
        super().__init__(encoding)
        self.key_value_heads = key_value_heads

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        check_numbers("key_value_heads", self.key_value_heads, decoder.num_key_value_heads)
        chosen = torch.zeros(decoder.num_key_value_heads, 1, dtype=torch.bool, device=decoder.device)
        chosen[self.key_value_heads] = True
        group = decoder.num_heads // decoder.num_key_value_heads
        self.kv_mask = nn.Buffer(chosen, persistent=False)
        self.query_mask = nn.Buffer(chosen.repeat_interleave(group, 0), persistent=False)
        super().bind_to_decoder(decoder, layers)

    def encode(self, cameras: Cameras, **head: Any) -> EncodedCameras:
        if not hasattr(self, "kv_mask"):
            raise ValueError("HeadSubset needs bind_to_decoder before encode")
        return EncodedHeads(self.encoding.encode(cameras, **head), self.query_mask, self.kv_mask)


class EncodedHeads(EncodedGroup):
    """Another encoding's hooks in some heads; channels that it appends are zeros in the others.

    Args:
        encoded: the hooks of the other encoding.
        query_mask: its heads of q and o.
        kv_mask: its heads of k and v.
    """

    def __init__(self, encoded: EncodedCameras, query_mask: Bool[Tensor, "H 1"], kv_mask: Bool[Tensor, "G 1"]) -> None:
        super().__init__([encoded])
        self.query_mask, self.kv_mask = query_mask, kv_mask

    def before_rope(self, q: Tensor, k: Tensor) -> QK:
        return self._select(self.acting[0].before_rope(q, k), q, k)

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        return self._select(self.acting[0].after_rope(q, k), q, k)

    def transform_values(self, v: Tensor) -> Tensor:
        return _where(self.kv_mask, self.acting[0].transform_values(v), v)

    def transform_outputs(self, o: Tensor) -> Tensor:
        return _where(self.query_mask, self.acting[0].transform_outputs(o), o)

    def _select(self, transformed: QK, q: Tensor, k: Tensor) -> QK:
        return _where(self.query_mask, transformed[0], q), _where(self.kv_mask, transformed[1], k)


def _where(mask: Bool[Tensor, "heads 1"], transformed: Tensor, stock: Tensor) -> Tensor:
    """Selects heads; stock heads are padded with zeros, or cut, to the width of the transformed ones."""
    appended = transformed.shape[-1] - stock.shape[-1]
    return torch.where(mask, transformed, F.pad(stock, (0, appended)) if appended else stock)
