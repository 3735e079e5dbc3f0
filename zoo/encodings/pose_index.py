"""PoseIndex: the camera pose as one number, in place of time."""

from __future__ import annotations

from zoo.encodings.base import CameraEncoding
from zoo.encodings.symmetries import Symmetries
from zoo.sequences.time_index import PoseDistanceIndex, PoseTimeIndex


class PoseIndex(CameraEncoding):
    """RoPE by pose: position ids with t = round(span d / max d), for the pose distance d of a view to a reference view.

    With `PathLengthIndex`, d is the length of the camera path up to the view.

    The attention is the stock one; the model uses `time_index` instead of its own. Equivalent to `--model.time_index
    PoseDistanceIndex` or `PathLengthIndex`, as a camera encoding. It applies to the temporal patches of a video; stills
    keep consecutive positions, as in the stock model.

    One number does not identify a pose: with the distance to a reference view, views on opposite sides of it share an
    index; with the length of the path, a view that is seen twice has two.

    Args:
        index: `PoseDistanceIndex` (the default) or `PathLengthIndex`.
    """

    def __init__(self, index: PoseTimeIndex | None = None) -> None:
        super().__init__(reference=None)
        self.index = index or PoseDistanceIndex()

    @property
    def time_index(self) -> PoseTimeIndex:
        return self.index

    @property
    def symmetries(self) -> Symmetries:
        # identical poses share one time position, which differs from the stock model
        return Symmetries(scale=not self.index.uses_lengths, identity_stock=False)
