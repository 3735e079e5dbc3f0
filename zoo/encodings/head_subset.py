"""Encodings on some heads only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLTextModel

from zoo.cameras import Cameras
from zoo.encodings.base import QK, CameraEncoding, EncodedCameras, Rope
from zoo.encodings.layer_subset import EncodingWrapper, check_numbers


class HeadSubset(EncodingWrapper):
    """An encoding in some heads; the others are stock attention.

    Args:
        encoding: what acts there.
        key_value_heads: the numbers of the heads of k and v, from 0; with them go the query heads that share them.
    """

    def __init__(self, encoding: CameraEncoding, key_value_heads: list[int]) -> None:
        super().__init__(encoding)
        self.key_value_heads = key_value_heads

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        config = language_model.config
        queries, keys = config.num_attention_heads, config.num_key_value_heads
        check_numbers("key_value_heads", self.key_value_heads, keys)
        chosen = torch.zeros(keys, dtype=torch.bool)
        chosen[self.key_value_heads] = True
        chosen = chosen[:, None].to(language_model.device)
        self.of_keys = nn.Buffer(chosen, persistent=False)
        self.of_queries = nn.Buffer(chosen.repeat_interleave(queries // keys, 0), persistent=False)
        super().bind_to_decoder(language_model, layers)

    def encode(self, cameras: Cameras, **decoder: Any) -> EncodedCameras:
        """See `CameraEncoding.encode`."""
        if not hasattr(self, "of_keys"):
            raise ValueError("HeadSubset must be attached to a decoder before it encodes")
        encoded = self.encoding.encode(cameras, **decoder)
        return SomeHeads(encoded, self.of_queries, self.of_keys)


class SomeHeads(EncodedCameras):
    """What another does, in some heads; channels that it appends are zeros in the others.

    Args:
        encoded: the other.
        of_queries, of_keys: which heads of q and o, of k and v.
    """

    def __init__(self, encoded: EncodedCameras, of_queries: Bool[Tensor, "H 1"], of_keys: Bool[Tensor, "G 1"]) -> None:
        super().__init__(encoded.num_tokens)
        self.encoded, self.of_queries, self.of_keys = encoded, of_queries, of_keys

    def _as(self, encoded: EncodedCameras | None) -> SomeHeads | None:
        return None if encoded is None else SomeHeads(encoded, self.of_queries, self.of_keys)

    def at_layer(self, layer: int, hidden_states: Float[Tensor, "B L W"], rope: Rope) -> EncodedCameras | None:
        return self._as(self.encoded.at_layer(layer, hidden_states, rope))

    def for_decode_step(self) -> EncodedCameras | None:
        return self._as(self.encoded.for_decode_step())

    def repeat_interleave(self, copies: int) -> EncodedCameras:
        return SomeHeads(self.encoded.repeat_interleave(copies), self.of_queries, self.of_keys)

    def before_rope(self, q: Tensor, k: Tensor) -> QK:
        return self._both(self.encoded.before_rope(q, k), q, k)

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        return self._both(self.encoded.after_rope(q, k), q, k)

    def values(self, v: Tensor) -> Tensor:
        return _where(self.of_keys, self.encoded.values(v), v)

    def transform_outputs(self, o: Tensor) -> Tensor:
        return _where(self.of_queries, self.encoded.transform_outputs(o), o)

    def _both(self, changed: QK, q: Tensor, k: Tensor) -> QK:
        return _where(self.of_queries, changed[0], q), _where(self.of_keys, changed[1], k)


def _where(heads: Bool[Tensor, "heads 1"], changed: Tensor, stock: Tensor) -> Tensor:
    """Of one width with what was changed: appended channels are zeros elsewhere, or taken off."""
    appended = changed.shape[-1] - stock.shape[-1]
    return torch.where(heads, changed, F.pad(stock, (0, appended)) if appended else stock)
