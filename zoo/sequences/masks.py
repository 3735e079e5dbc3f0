"""Attention masks of several questions in one sequence: each sees the shared prefix and itself.

Tokens have groups: `PREFIX` for the shared ones, other numbers for the questions.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

PREFIX = 0  # the group of the shared tokens; those of the questions count from 1


def prefix_causal_mask(
    queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"], prefixes: Int[Tensor, "B T"] | None = None
) -> Bool[Tensor, "B T K"]:
    """Mask of the tokens that each query attends to: earlier ones of the prefix and of its own group.

    Args:
        queries: The group of each query, `PREFIX` or that of a question; the queries are the last T of the keys.
        keys: The group of each key.
        prefixes: The group of each query's prefix, in a sequence of several scenes; None is `PREFIX`.
    """
    prefixes = torch.full_like(queries, PREFIX) if prefixes is None else prefixes
    place = torch.arange(keys.shape[1], device=keys.device)
    earlier = place <= place[keys.shape[1] - queries.shape[1] :, None]
    return earlier & ((keys[:, None] == prefixes[:, :, None]) | (keys[:, None] == queries[:, :, None]))


def block_mask(
    queries: Int[Tensor, "B T"], keys: Int[Tensor, "B K"], prefixes: Int[Tensor, "B T"] | None = None
) -> BlockMask:
    """`prefix_causal_mask` for FlexAttention, block by block; on a GPU no T x K tensor is built."""
    own = torch.full_like(queries, PREFIX) if prefixes is None else prefixes
    (batch, rows), columns = queries.shape, keys.shape[1]
    skipped = columns - rows
    # compiled, each block of the mask is reduced as it is computed
    create = torch.compile(create_block_mask) if queries.is_cuda else create_block_mask
    return create(
        lambda b, head, query, key: (
            (key <= query + skipped) & ((keys[b, key] == own[b, query]) | (keys[b, key] == queries[b, query]))
        ),
        batch,
        None,
        rows,
        columns,
        device=str(queries.device),
    )
