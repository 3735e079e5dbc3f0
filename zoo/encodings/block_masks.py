"""Attention masks of some of the queries, in the form of the attention backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from zoo.sequences.scene_packing import ScenePacking

Queries = tuple[int, int, int]  # adjacent ones: their row, the first of them, and the one behind the last


def mask_of_blocks(mask: Any, blocks: Sequence[Queries], num_keys: int, device: torch.device) -> Any:
    """Return the mask of blocks of equally many queries, as a batch.

    Args:
        mask: Of all queries and keys; None is causal attention.
        blocks: The queries.
        num_keys: The first keys of each row; the others are not visible to these queries.
        device: Of a new mask.
    """
    if isinstance(mask, Tensor):
        return torch.stack([mask[row if len(mask) > 1 else 0, :, start:stop, :num_keys] for row, start, stop in blocks])
    rows, starts = (
        torch.tensor(each).to(device, non_blocking=True) for each in ([b[0] for b in blocks], [b[1] for b in blocks])
    )
    length = blocks[0][2] - blocks[0][1]
    if mask is None:
        place = torch.arange(length, device=device)[:, None]
        return (torch.arange(num_keys, device=device) <= starts[:, None, None] + place)[:, None]
    return _block_mask(
        lambda b, head, query, key: mask.mask_mod(rows[b], head, query + starts[b], key),
        (len(blocks), length, num_keys),
        device,
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
