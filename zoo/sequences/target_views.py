"""Target views: frames of a scene that the decoder does not see, and whose content an objective predicts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Literal, NamedTuple

Drawn = Literal["gaps", "inside"]


class TargetViews(NamedTuple):
    """How many target views of a scene an objective predicts, and where they are drawn.

    Attributes:
        number: Maximum number per scene.
        drawn: `gaps`: one frame between each two neighboring shown frames, of which `number` are kept. `inside`: any
            frames between the first and the last shown frame.
        tokens: Whether their 2D tokens are targets. The vision encoder then reads them as well.
    """

    number: int
    drawn: Drawn = "gaps"
    tokens: bool = True

    def draw(self, shown: Sequence[int], candidates: Sequence[int], rng: Random) -> list[int]:
        """Draw target views.

        Args:
            shown: Frames that the decoder sees.
            candidates: Sorted frames that may be drawn, such as all frames with a camera. Shown frames are left out.
            rng: Source of the draws.

        Returns:
            Sorted frames. Empty if no candidate lies between shown frames.
        """
        draw = frames_between if self.drawn == "gaps" else frames_inside
        drawn = draw(sorted(set(shown)), candidates, rng)
        return sorted(rng.sample(drawn, min(self.number, len(drawn))))


def frames_between(shown: Sequence[int], candidates: Sequence[int], rng: Random) -> list[int]:
    """Draw one candidate from each gap between neighboring shown frames. A gap without candidates is left out."""
    gaps = ([frame for frame in candidates if low < frame < high] for low, high in pairwise(shown))
    return [rng.choice(gap) for gap in gaps if gap]


def frames_inside(shown: Sequence[int], candidates: Sequence[int], rng: Random) -> list[int]:
    """Draw candidates between the first and the last shown frame, at most as many as frames are shown."""
    inside = [frame for frame in candidates if shown[0] < frame < shown[-1] and frame not in shown]
    return sorted(rng.sample(inside, min(len(shown), len(inside))))
