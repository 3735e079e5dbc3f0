"""How patches are merged into visual tokens, the same for every supported backbone, and extra tokens of a view."""

from __future__ import annotations

from enum import Enum

from jaxtyping import Int
from torch import Tensor

TEMPORAL_PATCH_SIZE = 2  # consecutive frames in one visual token; `Backbone` checks its checkpoint against both
SPATIAL_MERGE_SIZE = 2  # patches per side in one visual token
PATCHES_PER_TOKEN = TEMPORAL_PATCH_SIZE * SPATIAL_MERGE_SIZE**2
IMAGE_PIXELS = (4 * 28**2, 16384 * 28**2)  # least and most of a still image: 4 to 16,384 tokens of Qwen2.5-VL

GridTHW = tuple[int, int, int] | Int[Tensor, " 3"]  # (t, h, w); of a tensor on a GPU the host waits to read it


class ExtraTokens(Enum):
    """The tokens appended to the 2D tokens of each view, and behind the last view of a video."""

    NONE = "none"
    ONE = "one per view"
    LAST = "one per view, at the position of the last 2D token"
    ALL = "one per 2D token"
    END = "one per video, at the position of its last 2D token"
    LAST_AND_END = "one per view and one more per video, at the position of the last 2D token"

    def count(self, tokens: int) -> int:
        """Return the number of tokens appended to a view with `tokens` 2D tokens."""
        return {ExtraTokens.NONE: 0, ExtraTokens.END: 0, ExtraTokens.ALL: tokens}.get(self, 1)

    @property
    def at_end(self) -> int:
        """The number of tokens behind the last view of a video."""
        return int(self in (ExtraTokens.END, ExtraTokens.LAST_AND_END))
