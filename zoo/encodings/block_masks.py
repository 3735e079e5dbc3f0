"""Attention masks of some of the queries, in the form of the attention backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from zoo.sequences.scene_packing import ScenePacking


def select_blocks(
    mask: BlockMask, rows: Int[Tensor, " blocks"], places: Int[Tensor, "blocks T"], num_keys: int
) -> BlockMask:
    """Return the mask of blocks of equally many queries, as a batch.

    Args:
        mask: Of all queries and keys.
        rows: The row of each block.
        places: The place of each query in its row.
        num_keys: The first keys of each row; the others are not visible to these queries.
    """
    return _block_mask(
        lambda b, head, query, key: mask.mask_mod(rows[b], head, places[b, query], key),
        (*places.shape, num_keys),
        rows.device,
    )


def unpack_mask(mask: Any, packing: ScenePacking) -> Any:
    """Return the mask of padded rows from that of packed sequences; padded queries may attend to all keys of their row.

    Args:
        mask: Of the sequences.
        packing: Of the rows.
    """
    count, length = packing.shape
    device = packing.places.device
    place = packing.unpack(torch.arange(length, device=device).expand(count, length))
    is_key = packing.unpack(torch.ones(count, length, dtype=torch.bool, device=device))
    if isinstance(mask, Tensor):
        is_bool = mask.dtype == torch.bool
        rows = packing.unpack(mask.transpose(1, 2).expand(count, *mask.transpose(1, 2).shape[1:]), is_bool)
        columns = place[:, None, None].expand(*rows.shape[:3], -1)
        least = False if is_bool else torch.finfo(mask.dtype).min
        return rows.gather(-1, columns).masked_fill(~is_key[:, None, None], least).transpose(1, 2)
    sequence = packing.unpack(torch.arange(count, device=device)[:, None].expand(count, length))
    return _block_mask(
        lambda b, head, query, key: (
            mask.mask_mod(sequence[b, query], head, place[b, query], place[b, key]) & is_key[b, key]
        ),
        (len(place), place.shape[1], place.shape[1]),
        device,
    )


def _block_mask(visible: Callable[..., Tensor], shape: tuple[int, int, int], device: torch.device) -> BlockMask:
    batch, queries, keys = shape
    create = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
    return create(visible, batch, None, queries, keys, device=str(device))
