"""PoseIndex: the camera's pose as one number, in the place of time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding, EncodedCameras
from zoo.encodings.symmetries import Symmetries
from zoo.time_index import PoseDistanceIndex, PoseTimeIndex


class PoseIndex(CameraEncoding):
    """RoPE by the pose: the T of mRoPE's position ids is a pose index, an integer from 0 to its span.

    The attention itself stays stock: `encode` does nothing, and the model takes `time_index` in the place of its
    own. The same as `--model.time_index PoseDistanceIndex` or `PathLengthIndex`, put where the other encodings are. It
    is about the steps of a video: stills follow each other as in the stock model.

    One number does not tell poses apart: by the distance to a reference view, views on opposite sides of it share
    an index; by the length of the path, a view that is seen twice has two.

    Args:
        index: `PoseDistanceIndex`, the distance to a reference view (the default), or `PathLengthIndex`, the length
            of the path.
    """

    def __init__(self, index: PoseTimeIndex | None = None) -> None:
        super().__init__(reference=None)
        self.index = index or PoseDistanceIndex()

    @property
    def time_index(self) -> PoseTimeIndex:
        return self.index

    @property
    def symmetries(self) -> Symmetries:
        return Symmetries(
            world_views=True,
            world_text=True,
            canonical=True,
            scale=self.index.measure in ("rotation", "center"),
            shift=True,
            identity_stock=False,  # without a pose to tell apart, all views have one time
        )

    def encode(
        self,
        cameras: Cameras,
        *,
        head_dim: int,
        mrope_section: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> EncodedCameras:
        """See `CameraEncoding.encode`: nothing is done to the attention."""
        return EncodedCameras()
