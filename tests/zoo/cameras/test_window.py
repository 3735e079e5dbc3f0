"""A window of pictures, and the whole pictures as a window of it."""

from __future__ import annotations

import torch

from zoo.cameras import intrinsics_in_pixels, normalize_intrinsics
from zoo.cameras.scene_geometry import SceneGeometry, Window

WINDOW = Window(height=20, width=30, top=4, left=0, rows=12, columns=28)


def whole() -> SceneGeometry:
    """Geometry of pictures of 20 x 30 pixels."""
    K_px = torch.tensor([[[40.0, 0.0, 14.0], [0.0, 50.0, 9.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    depth = 1 + torch.arange(600.0).view(1, 20, 30)
    poses = torch.eye(4, dtype=torch.float64)[None]
    return SceneGeometry(world_to_camera=poses, K_normalized=normalize_intrinsics(K_px, 30, 20), depth=depth)


def test_a_part_keeps_its_pixels_and_their_rays() -> None:
    before, after = whole(), WINDOW.crop(whole())
    assert before.depth is not None and after.depth is not None and after.K_normalized is not None
    assert torch.equal(after.depth, before.depth[:, 4:16, :28])
    expected = torch.tensor([[[40.0, 0.0, 14.0], [0.0, 50.0, 5.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(intrinsics_in_pixels(after.K_normalized, 28, 12), expected)


def test_the_inverse_restores_what_is_known() -> None:
    before, after = whole(), WINDOW.inverse.crop(WINDOW.crop(whole()))
    assert before.depth is not None and after.depth is not None
    torch.testing.assert_close(after.K_normalized, before.K_normalized)
    known = torch.zeros_like(before.depth)
    known[:, 4:16, :28] = 1
    assert torch.equal(after.depth, before.depth * known)


def test_the_inverse_in_another_size() -> None:
    """Half the sides: each pixel is one of the four in its place, and those beyond the part are unknown."""
    before, after = whole(), WINDOW.inverse.crop(WINDOW.crop(whole()), (10, 15))
    assert before.depth is not None and after.depth is not None
    of_four = before.depth.unflatten(2, (15, 2)).unflatten(1, (10, 2))
    same = (of_four == after.depth[:, :, None, :, None]).any(4).any(2)
    inside = torch.zeros(1, 10, 15, dtype=torch.bool)
    inside[:, 2:8, :14] = True
    assert torch.equal(same, inside) and bool((after.depth[~inside] == 0).all())
