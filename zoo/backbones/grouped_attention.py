"""`scaled_dot_product_attention` of a decoder with grouped keys and values, by the kernels that take them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

GROUPED_SDPA = "grouped_sdpa"  # the name of this backend in transformers
FEW = 64  # queries: below, masks that are repeated are smaller than keys and values


def grouped_sdpa(
    module: Any,
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K D"],
    attention_mask: Bool[Tensor, "B 1 T K"] | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "B T H D"], None]:
    """Attend as transformers' `sdpa`, with other ways for the H/G heads that share keys and values.

    - Flash kernels take groups: a GPU's in half precision without a mask, a CPU's always, but slowly for one query.
      With gradients a CPU does as a GPU, whose memory `plan` counts there.
    - Few queries, of a step of an answer, become the rows of their group: a long prefix is not copied.
    - Elsewhere keys and values are repeated: with `enable_gqa`, float32 would take the math kernel, whose scores of
      16,000 tokens are 17 GB.

    Args:
        module: The attention, for transformers.
        query: Queries.
        key: Keys.
        value: Values.
        attention_mask: The keys that each query attends to; None is causal attention.
        dropout: Of the attention weights.
        scaling: Of the scores; None is D^-1/2.
    """
    batch, heads, length = query.shape[:3]
    groups = heads // key.shape[1]
    is_causal = attention_mask is None and length > 1
    if key.device.type == "cpu" and not torch.is_grad_enabled():
        is_flash = length > 1
    else:
        is_flash = attention_mask is None and key.dtype != torch.float32 and key.shape[-1] == value.shape[-1] <= 256
    if groups > 1 and not is_flash:
        if length <= FEW and not is_causal:
            query = query.reshape(batch, -1, groups * length, query.shape[-1])
            attention_mask = attention_mask if attention_mask is None else attention_mask.repeat(1, 1, groups, 1)
        else:
            key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    output = F.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, is_causal, scale=scaling, enable_gqa=groups > 1 and is_flash
    )
    return output.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(GROUPED_SDPA, grouped_sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED_SDPA, sdpa_mask)
