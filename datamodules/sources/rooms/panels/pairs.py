"""How far is the panel, where each frame is a station of its own?"""

from __future__ import annotations

from typing import ClassVar

from datamodules.sources.rooms.panels.distance import PanelDistance


class PanelPairs(PanelDistance):
    """`PanelDistance` with one frame per station: adjacent frames show different walls.

    Merging consecutive frames gives two views one token with the camera of the first. If that costs nothing against
    `--data.frame_pairing Duplicate`, `keep` views, the token's camera needn't be exact, or the model separates the two
    views; if it costs, diverse views must not be merged.
    """

    frames_per_station: ClassVar[int] = 1
