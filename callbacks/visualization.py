"""Images of selected frames: a contact sheet, and maps of the camera path and of predicted cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datamodules.samplers import DatasetDepth, SceneView
from datamodules.samplers.coverage import VoxelGrid, voxel_grid
from datamodules.samplers.points import PointMaps, PointSource
from zoo.poses import invert_se3
from zoo.scenes import PatchCameras
from zoo.visual_grid import TEMPORAL_PATCH_SIZE

THUMBNAIL = 160  # pixels along the longer side of a frame
GAP, LABEL = 6, 16
MAP = 720  # pixels along a side of the map
FINER = 2  # supersampling: Pillow's lines are not antialiased
CANDIDATES = 128  # frames whose voxels count as visible
PAPER, INK, FAINT, GUESSED = (255, 255, 255), (40, 44, 52), (196, 200, 208), (128, 132, 140)
UNSEEN, SEEN = np.array([222, 224, 228]), np.array([74, 144, 164])
FIRST, LAST = np.array([52, 88, 192]), np.array([224, 92, 44])  # colors of the first and the last view


def contact_sheet(frames: UInt8[Tensor, "T 3 H W"], indices: Sequence[int], columns: int = 8) -> Image.Image:
    """Draw the frames in rows with their numbers; the frames of one temporal patch are adjacent."""
    height, width = frames.shape[-2:]
    scale = THUMBNAIL / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(columns, len(frames) + len(frames) % TEMPORAL_PATCH_SIZE)
    rows = -(-len(frames) // columns)

    def left(column: int) -> int:
        return GAP + column * (w + 1) + (column // TEMPORAL_PATCH_SIZE) * GAP

    sheet = Image.new("RGB", (left(columns) + GAP, GAP + rows * (h + LABEL + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, (frame, index) in enumerate(zip(frames, indices, strict=True)):
        x, y = left(place % columns), GAP + (place // columns) * (h + LABEL + GAP)
        image = Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
        sheet.paste(image.resize((w, h), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + h + 1), str(index), _color(place, len(frames)), font)
    return sheet


def compute_coverage(
    scene: SceneView, chosen: Sequence[int], geometry: PointSource | None = None
) -> tuple[list[int], PointMaps] | None:
    """Compute the point maps of the chosen frames and up to 128 candidates.

    Args:
        scene: a video with its cameras and depth.
        chosen: frame numbers.
        geometry: source of the points; None is the dataset's cameras and depth.

    Returns:
        The frame numbers and their point maps, or None if points or cameras are absent or unreadable: an image should
        not stop a run.
    """
    if geometry is None and (scene.depth is None or scene.world_to_camera is None or scene.K_normalized is None):
        return None
    frames = sorted({*scene.among(CANDIDATES).pool, *chosen})
    try:
        maps = (geometry or DatasetDepth()).points(replace(scene, frames=frames))
    except (OSError, ValueError):
        return None
    return None if maps.world_to_camera is None else (frames, maps)


def covered_voxels(maps: PointMaps, places: Sequence[int]) -> VoxelGrid:
    """Return the voxels of the frames at these positions of the maps, and last those of all frames."""
    grid = voxel_grid(maps.points, maps.confidence)
    everything = np.unique(np.concatenate(grid.sets), axis=0)
    return VoxelGrid([*(grid.sets[place] for place in places), everything], grid.origin, grid.size)


def camera_map(
    scene: SceneView, chosen: Sequence[int], title: str = "", geometry: PointSource | None = None
) -> Image.Image:
    """Draw the camera path from above with the chosen views' frusta and numbers and the visible voxels.

    Up is the mean direction of the cameras' tops. A column with more voxels is darker, and bluer the more of them the
    chosen frames see.

    Args:
        scene: a video with its cameras and depth.
        chosen: frame numbers.
        title: start of the caption.
        geometry: source of points and cameras, such as a sampler's; None is the dataset's.

    Raises:
        ValueError: no frame has a pose.
    """
    every = SceneView(scene.video, scene.world_to_camera)
    frames, maps = compute_coverage(scene, chosen, geometry) or (every.pool, None)
    if maps is None or maps.world_to_camera is None:
        poses, K_normalized = every.poses, scene.K_normalized
    else:
        poses, K_normalized = maps.world_to_camera, maps.K_normalized
    camera_to_world = invert_se3(poses.double()).numpy()
    known = np.isfinite(camera_to_world).all((1, 2))
    plane = level_axes(-camera_to_world[known, :3, 1].mean(0))  # OpenCV's y points down
    centers = camera_to_world[:, :3, 3] @ plane.T
    places = {frame: place for place, frame in enumerate(frames)}
    views = {frame: places[frame] for frame in dict.fromkeys(chosen) if known[places[frame]]}
    grid = None if maps is None else covered_voxels(maps, list(views.values()))
    corners = [centers[known]]
    if grid is not None:
        cells = (grid.origin + (grid.sets[-1] + 0.5) * grid.size).astype(np.float64) @ plane.T
        corners.append(cells)
    low, high = np.concatenate(corners).min(0), np.concatenate(corners).max(0)
    span = max((high - low).max(), 1e-6)
    frustum = 0.06 * span
    size = MAP * FINER
    scale = (size - 120 * FINER) / span
    middle = (low + high) / 2

    def pixel(points: np.ndarray) -> np.ndarray:
        return (points - middle) * scale * (1, -1) + size / 2 + (0, 16 * FINER)

    image = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(image)
    caption = f"{title}  {len(views)} views of {scene.video.num_frames} frames"
    if grid is not None:
        caption += f", {_draw_voxels(draw, grid, pixel(cells), scale):.0%} of the voxels"
    for start, end in zip(np.flatnonzero(known)[:-1], np.flatnonzero(known)[1:], strict=True):
        if end == start + 1:  # no line across frames without a pose
            draw.line([*pixel(centers[start]), *pixel(centers[end])], fill=FAINT if grid is None else INK, width=FINER)
    font = ImageFont.load_default(11 * FINER)
    for order, (frame, place) in enumerate(views.items()):
        K = torch.eye(3) if K_normalized is None else K_normalized[place]
        ends = centers[place] + frustum * _edge_rays(K) @ camera_to_world[place, :3, :3].T @ plane.T
        color = _color(order, len(views))
        _draw_frustum(draw, pixel(np.stack((centers[place], *ends))), color)
        x, y = pixel(centers[place] + 1.3 * (ends.mean(0) - centers[place]))  # ahead: cameras turn on the spot
        draw.text((x, y), str(frame), color, font, anchor="mm", stroke_width=FINER, stroke_fill=PAPER)
    _draw_scale(draw, caption.strip(), scale, span, size)
    return image.resize((MAP, MAP), Image.Resampling.LANCZOS)


def pose_map(cameras: PatchCameras, predicted: Float[Tensor, "t 4 4"]) -> Image.Image:
    """Draw true cameras from above, and in gray the predicted ones, each with a line to the true one.

    Args:
        cameras: of the temporal patches of a scene; those without a camera are left out.
        predicted: world-to-camera poses in the same frame and unit.
    """
    known, both = cameras.has_camera.cpu(), torch.stack((cameras.world_to_camera, predicted)).double().cpu()
    true, guessed = invert_se3(both[:, known]).numpy()
    plane = level_axes(-true[:, :3, 1].mean(0))
    corners = np.concatenate((true, guessed))[:, :3, 3] @ plane.T
    low, high = corners.min(0), corners.max(0)
    span, size = max((high - low).max(), 1e-6), MAP * FINER
    scale = (size - 160 * FINER) / span

    def pixel(points: np.ndarray) -> np.ndarray:
        return (points - (low + high) / 2) * scale * (1, -1) + size / 2 + (0, 16 * FINER)

    image = Image.new("RGB", (size, size), PAPER)
    draw = ImageDraw.Draw(image)
    for order, (pose, guess, K) in enumerate(zip(true, guessed, cameras.K_normalized[known].cpu(), strict=True)):
        draw.line([*pixel(pose[:3, 3] @ plane.T), *pixel(guess[:3, 3] @ plane.T)], fill=FAINT, width=FINER)
        for matrix, color in ((guess, GUESSED), (pose, _color(order, len(true)))):
            rays = np.concatenate((np.zeros((1, 3)), 0.06 * span * _edge_rays(K)))
            _draw_frustum(draw, pixel((matrix[:3, 3] + rays @ matrix[:3, :3].T) @ plane.T), color)
    _draw_scale(draw, f"{len(true)} true cameras, and predicted ones in gray", scale, span, size)
    return image.resize((MAP, MAP), Image.Resampling.LANCZOS)


def _edge_rays(K: Float[Tensor, "3 3"]) -> Float[np.ndarray, "2 3"]:
    """Return the level rays through the left and the right edge of a picture, at unit depth."""
    return np.array([[(edge - float(K[0, 2])) / float(K[0, 0]), 0.0, 1.0] for edge in (-0.5, 0.5)])


def _draw_frustum(draw: ImageDraw.ImageDraw, corners: np.ndarray, color: tuple[int, ...]) -> None:
    """Draw a camera from above: a triangle of pixels with a dot on the first one, its center."""
    draw.polygon([tuple(corner) for corner in corners], outline=color, width=2 * FINER)
    x, y = corners[0]
    draw.ellipse([x - 3 * FINER, y - 3 * FINER, x + 3 * FINER, y + 3 * FINER], fill=color)


def level_axes(up: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "2 3"]:
    """Return two horizontal world axes, right and forward on a map, given the up direction."""
    up = up / max(float(np.linalg.norm(up)), 1e-9)
    axis = np.eye(3)[np.abs(up).argmin()]  # along an axis of the world if one is horizontal
    right = axis - (axis @ up) * up
    right /= np.linalg.norm(right)
    return np.stack((right, np.cross(up, right)))


def _draw_voxels(draw: ImageDraw.ImageDraw, grid: VoxelGrid, pixels: np.ndarray, scale: float) -> float:
    """Draw one square per column of voxels; return the share of voxels that the chosen frames see."""
    everything = grid.sets[-1]
    covered = {tuple(cell) for cells in grid.sets[:-1] for cell in cells.tolist()}
    seen = np.array([tuple(cell) in covered for cell in everything.tolist()])
    columns: dict[tuple[int, int], list[int]] = {}
    for row, pixel in enumerate(np.round(pixels / max(grid.size * scale / 2, 1)).astype(int).tolist()):
        columns.setdefault((pixel[0], pixel[1]), []).append(row)
    tallest = max(len(rows) for rows in columns.values())
    half = grid.size * scale / 2
    for rows in columns.values():
        x, y = pixels[rows].mean(0)
        shade = 0.35 + 0.65 * len(rows) / tallest
        tint = UNSEEN + (SEEN - UNSEEN) * seen[rows].mean()
        color = tuple(int(c) for c in 255 + (tint - 255) * shade)
        draw.rectangle([x - half, y - half, x + half, y + half], fill=color)
    return float(seen.mean())


def _draw_scale(draw: ImageDraw.ImageDraw, caption: str, scale: float, span: float, size: int) -> None:
    font = ImageFont.load_default(14 * FINER)
    draw.text((16 * FINER, 12 * FINER), caption, INK, font)
    length = 10.0 ** np.floor(np.log10(span / 2))
    y = size - 20 * FINER
    draw.line([16 * FINER, y, 16 * FINER + length * scale, y], fill=INK, width=2 * FINER)
    draw.text((16 * FINER, y - 20 * FINER), f"{length:g} m, if the poses are metric", INK, font)


def _color(order: int, count: int) -> tuple[int, ...]:
    """Interpolate from blue (first) to orange (last)."""
    return tuple((FIRST + (LAST - FIRST) * (order / max(1, count - 1))).astype(int).tolist())
