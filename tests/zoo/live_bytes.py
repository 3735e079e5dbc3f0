"""The memory that a profiled step really took."""

from __future__ import annotations

from itertools import accumulate

from torch.profiler import profile


def most_live_bytes(profiled: profile) -> int:
    """The peak of what the allocator gave out and took back."""
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]  # type: ignore[union-attr]
    return max(accumulate(each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())))
