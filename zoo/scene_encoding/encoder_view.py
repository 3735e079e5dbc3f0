"""What a geometry encoder sees of a scene, and what the vision tower sees of that."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from zoo.cameras.scene_geometry import SceneGeometry
from zoo.cameras.window import Window
from zoo.geometry.base import GeometryEncoder, covers, encoder_frames
from zoo.geometry.cached import check_grid
from zoo.scene_encoding.geometry_reader import geometry_of_frames
from zoo.sequences.scene_inputs import SceneInputs


class EncoderView(NamedTuple):
    """What a geometry encoder gets of a scene.

    Attributes:
        frames: In 0..1, in the encoder's size; None if the scene has none.
        geometry: The dataset's, of these frames; None if the scene has none.
        window: What of these frames the vision tower sees; None is everything.
    """

    frames: Float[Tensor, "S 3 H W"] | None
    geometry: SceneGeometry | None
    window: Window | None


def view_of_encoder(encoder: GeometryEncoder, scene: SceneInputs, shown: slice, patch_size: int) -> EncoderView:
    """Return what a geometry encoder gets of a scene, a model's or a teacher's.

    Args:
        encoder: Which asks.
        scene: Of the batch.
        shown: The frames that the encoder sees.
        patch_size: Of the vision tower, in pixels.

    Raises:
        InputError: A cache gets frames with other patches than the vision tower's.
    """
    known = None if scene.geometry is None else scene.geometry[shown]
    if scene.frames is None:
        return EncoderView(None, known, scene.tower_window)
    grid = scene.grid_thw[1:]
    frames = encoder_frames(scene.frames[shown], patch_size, encoder.patch_size, grid)
    check_grid(encoder, frames, grid)
    window = scene.tower_window or patches_under_tower(frames, grid, encoder.patch_size)
    return EncoderView(frames, geometry_of_frames(known, frames, window), window)


def patches_under_tower(frames: Float[Tensor, "S 3 H W"], grid: tuple[int, int], patch_size: int) -> Window | None:
    """Return what an encoder's frames show without the row and column of patches beyond the tower's, see `covers`.

    Args:
        frames: The encoder's.
        grid: Rows and columns of the tower's patches.
        patch_size: Of the encoder, in pixels.

    Returns:
        None if the frames have no such row or column.
    """
    height, width = frames.shape[-2:]
    rows, columns = (side * patch_size for side in grid)
    if (height, width) == (rows, columns) or not covers(grid, (height // patch_size, width // patch_size)):
        return None
    return Window(height, width, 0, 0, rows, columns)


def under_tower(geometry: SceneGeometry, window: Window, grid: tuple[int, int], patch_size: int) -> SceneGeometry:
    """Return the geometry of what the tower sees of an encoder's frames.

    3D tokens stay under the tower's patches of the same row and column, as the published models place them.

    Args:
        geometry: By the encoder.
        window: What of the encoder's frames the tower sees.
        grid: Rows and columns of the tower's patches.
        patch_size: Of the encoder, in pixels.
    """
    cropped = window.crop(geometry, (grid[0] * patch_size, grid[1] * patch_size))
    if cropped.patches is not None:
        cropped.patches = cropped.patches[:, : grid[0], : grid[1]]
    return cropped
