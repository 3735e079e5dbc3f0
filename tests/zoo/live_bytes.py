"""The memory that a profiled step really took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.profiler import profile


def most_live_bytes(profiled: profile) -> int:
    """The peak of what the allocator gave out and took back.

    Only blocks of this profile count. PyTorch also records the release of blocks from before, with the size of
    whatever block an earlier profile saw at the same address.
    """
    live: dict[int, int] = {}
    now = most = 0
    tree = profiled.profiler.kineto_results.experimental_event_tree()  # type: ignore[union-attr]
    for block in sorted(allocations(tree), key=lambda each: each.start_time_ns):
        address, size = block.typed[1].ptr, block.typed[1].alloc_size
        if size > 0:
            live[address] = size
            now += size
        else:
            now -= live.pop(address, 0)
        most = max(most, now)
    return most


def allocations(events: Iterable[Any]) -> Iterator[Any]:
    """What was given out or taken back during the events or what they called."""
    for event in events:
        if event.tag.name == "Allocation":
            yield event
        yield from allocations(event.children)
