"""A window of pictures, and the cameras and depth of what it shows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from zoo.cameras.scene_geometry import SceneGeometry

PER_PIXEL = ("depth", "points", "confidence")


class Window(NamedTuple):
    """A part of pictures, in pixels.

    Attributes:
        height: Of the whole pictures.
        width: Of the whole pictures.
        top: First row of the part.
        left: First column of the part.
        rows: Of the part.
        columns: Of the part.
    """

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int

    @property
    def place(self) -> tuple[slice, slice]:
        """The rows and columns of the part."""
        return slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns)

    @property
    def inverse(self) -> Window:
        """The whole pictures as a window of the part, which it exceeds."""
        return Window(self.rows, self.columns, -self.top, -self.left, self.height, self.width)

    def crop(self, geometry: SceneGeometry, size: tuple[int, int] | None = None) -> SceneGeometry:
        """Return the geometry of the part: its intrinsics, and what the geometry has of each pixel; poses stay.

        What it has of pixels beyond the whole pictures is zero: an unknown depth.

        Args:
            geometry: Of the whole pictures, in any size.
            size: Height and width of what the result has of each pixel, the nearest one's; None is the part's own.
        """
        fields: dict[str, Any] = geometry.present()
        for name in PER_PIXEL:
            if name in fields:
                fields[name] = self._nearest(fields[name], size or (self.rows, self.columns))
        if geometry.K_normalized is not None:
            K = fields["K_normalized"] = geometry.K_normalized.clone()
            sides = ((self.width, self.columns, self.left), (self.height, self.rows, self.top))
            for axis, (side, kept, start) in enumerate(sides):
                K[:, axis, axis] *= side / kept
                K[:, axis, 2] = ((K[:, axis, 2] + 0.5) * side - start) / kept - 0.5
        return SceneGeometry(**fields)

    def _nearest(
        self, pixels: Shaped[Tensor, "S H W *values"], size: tuple[int, int]
    ) -> Shaped[Tensor, "S h w *values"]:
        """Return the values of the part in this size, each of the nearest pixel."""
        sides = ((self.height, self.rows, self.top), (self.width, self.columns, self.left))
        for axis, (count, (side, kept, start)) in enumerate(zip(size, sides, strict=True), 1):
            centers = start + (torch.arange(count, device=pixels.device) + 0.5) * kept / count
            known = (centers >= 0) & (centers < side)
            nearest = (centers.clamp(0, side - 0.5) * (pixels.shape[axis] / side)).long()
            pixels = pixels.index_select(axis, nearest) * known.view(-1, *[1] * (pixels.ndim - axis - 1))
        return pixels
