"""Drawings of a scene: sheets of frames and of predicted views, maps from above of cameras, told and predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from datamodules.samplers import DatasetDepth, PointMaps, PointSource, SceneView
from datamodules.samplers.space_aware import VoxelGrid, voxel_grid
from zoo.cameras.poses import invert_se3
from zoo.cameras.scene_geometry import PatchCameras
from zoo.files.ownership import refuse_other
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

THUMBNAIL, GAP, LABEL = 176, 8, 22  # pixels: longer side of a frame, gap between patches, label
PAPER, INK = (255, 255, 255), (40, 44, 52)
SOFTWARE = "Software", "spatial-vlm-zoo"  # an entry in the header of PNG files, and its place there
SOFTWARE_CHUNK = b"tEXt" + "\0".join(SOFTWARE).encode(), 37
SIDE = 7.6  # inches of 100 pixels
CANDIDATES = 128  # number of frames whose voxels count as visible
FRUSTUM = 0.06  # length of a drawn camera, as a share of the map
LABEL_PX = np.array([26.0, 16.0])  # size of a frame number with its margin
ORDER = LinearSegmentedColormap.from_list("order", ["#3458c0", "#e05c2c"])  # colors of the first and the last view
PATH, GUESSED, UNSEEN, SEEN = "#282c34", "#80848c", "#dee0e4", "#4a90a4"


def contact_sheet(frames: UInt8[Tensor, "T 3 H W"], indices: Sequence[int], columns: int = 4) -> Image.Image:
    """Draw the frames in rows with their numbers. The frames of one temporal patch are adjacent.

    Args:
        frames: The frames.
        indices: Their numbers in the video.
        columns: Frames per row. Four are readable in TensorBoard's cards.
    """
    height, width = frames.shape[-2:]
    scale = THUMBNAIL / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(columns, len(frames) + len(frames) % TEMPORAL_PATCH_SIZE)
    rows = -(-len(frames) // columns)

    def left(column: int) -> int:
        return GAP + column * (w + 1) + (column // TEMPORAL_PATCH_SIZE) * GAP

    sheet = Image.new("RGB", (left(columns) + GAP, GAP + rows * (h + LABEL + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for place, (frame, index) in enumerate(zip(frames, indices, strict=True)):
        x, y = left(place % columns), GAP + (place // columns) * (h + LABEL + GAP)
        image = Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
        sheet.paste(image.resize((w, h), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + h + 2), f"frame {index}" if place == 0 else str(index), INK, font)
    return sheet


def columns_of_views(columns: Mapping[str, Float[Tensor, "v 3 _H _W"]]) -> Image.Image:
    """Draw pictures of views, one row per view, below the title of each column.

    Args:
        columns: Pictures in 0..1 of the same views by title. Small ones are enlarged without smoothing.
    """
    height, width = next(iter(columns.values())).shape[-2:]
    scale = THUMBNAIL / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    rows = max(len(views) for views in columns.values())
    sheet = Image.new("RGB", (GAP + len(columns) * (w + GAP), LABEL + GAP + rows * (h + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, (title, views) in enumerate(columns.items()):
        x = GAP + column * (w + GAP)
        draw.text((x, 2), title, INK, font)
        for row, view in enumerate((255 * views.float().clamp(0, 1)).round().byte()):
            image = Image.fromarray(view.permute(1, 2, 0).cpu().numpy())
            sheet.paste(image.resize((w, h), Image.Resampling.NEAREST), (x, LABEL + GAP + row * (h + GAP)))
    return sheet


# ---- Maps from above ------------------------------------------------------------------------------------------------


def compute_coverage(
    scene: SceneView, chosen: Sequence[int], geometry: PointSource | None = None
) -> tuple[list[int], PointMaps] | None:
    """Compute the point maps of the chosen frames and up to 128 candidates.

    Args:
        scene: A video with its cameras and depth.
        chosen: Frame numbers.
        geometry: Source of the points. None uses the dataset's cameras and depth.

    Returns:
        The frame numbers and their point maps. None if points or cameras are missing or unreadable, because an image
        should not stop a run.
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
    """Return the voxels of the frames at these indices of the maps, followed by the voxels of all frames."""
    grid = voxel_grid(maps.points, maps.confidence)
    everything = np.unique(np.concatenate(grid.sets), axis=0)
    return VoxelGrid([*(grid.sets[place] for place in places), everything], grid.origin, grid.size)


def save_picture(picture: Image.Image, path: Path, option: str = "") -> None:
    """Write a picture as a PNG file. It may only replace one that was written here, which its header shows.

    Args:
        picture: The picture.
        path: The file. Other formats by their suffix have no such header, so an existing one is refused.
        option: The command's option that names the file, for the error.

    Raises:
        InputError: The file is something else.
        OSError: It can't be written.
        ValueError: The suffix is no format of pictures.
    """
    refuse_other(path, *SOFTWARE_CHUNK, option=option)
    picture.save(path, pnginfo=software_info())


def software_info() -> PngInfo:
    """Return the header of PNG files by which a picture is known, see `SOFTWARE_CHUNK`."""
    info = PngInfo()
    info.add_text(*SOFTWARE)
    return info


def camera_map(
    scene: SceneView, chosen: Sequence[int], title: str = "", geometry: PointSource | None = None
) -> Image.Image:
    """Draw the camera path from above, with the frusta and numbers of the chosen views and the visible voxels.

    Up is the mean up direction of the cameras. A column with more voxels is darker. It is bluer if the chosen frames
    see more of them.

    Args:
        scene: A video with its cameras and depth.
        chosen: Frame numbers.
        title: Start of the caption.
        geometry: Source of points and cameras, such as a sampler's. None uses the dataset's.

    Raises:
        ValueError: No frame has a pose.
    """
    # 1. Poses, and the plane of the map.
    every = SceneView(scene.video, scene.world_to_camera)
    frames, maps = compute_coverage(scene, chosen, geometry) or (every.pool, None)
    if maps is None or maps.world_to_camera is None:
        poses, K_normalized = every.poses, scene.K_normalized
    else:
        poses, K_normalized = maps.world_to_camera, maps.K_normalized
    camera_to_world = invert_se3(poses.double()).numpy()
    known = np.isfinite(camera_to_world).all((1, 2))
    plane = level_axes(-camera_to_world[known, :3, 1].mean(0))  # OpenCV's y points down
    centers = camera_to_world[:, :3, 3] @ plane.T  # NaN without a pose, which interrupts the line of the path
    places = {frame: place for place, frame in enumerate(frames)}
    views = {frame: places[frame] for frame in dict.fromkeys(chosen) if known[places[frame]]}

    # 2. The voxels that are visible in the frames.
    figure, axes = _empty_map()
    caption = f"{title}  {len(views)} views of {scene.video.num_frames} frames".strip()
    if maps is not None:
        share = _draw_voxels(axes, covered_voxels(maps, list(views.values())), plane)
        caption += f", which see {share:.0%} of all voxels"
    axes.set_title(caption, loc="left", parse_math=False)

    # 3. The path and the chosen views.
    axes.plot(*centers.T, color=PATH, linewidth=1, alpha=0.5)
    chosen_to_world = camera_to_world[list(views.values())]
    K = torch.eye(3).expand(len(views), 3, 3) if K_normalized is None else K_normalized[list(views.values())]
    frusta = _frusta(chosen_to_world, K, FRUSTUM * _span(axes)) @ plane.T
    color = _color_bar(figure, axes, "frame", scene.video.num_frames)
    _draw_cameras(axes, frusta, color.to_rgba(list(views)))
    if maps is not None:
        handles = [*axes.lines, Patch(color=SEEN), Patch(color=UNSEEN)]
        names = ["camera path", "seen by these views", "seen by other frames only"]
        figure.legend(handles, names, loc="outside lower center", ncols=3)
    _draw_numbers(figure, axes, frusta, list(views), color.to_rgba(list(views)))
    return _picture(figure)


def pose_map(cameras: PatchCameras, predicted: Float[Tensor, "t 4 4"]) -> Image.Image:
    """Draw true cameras from above, and predicted ones in gray. A line connects each pair.

    Args:
        cameras: True cameras, one per temporal patch. Patches without a camera are left out.
        predicted: World-to-camera poses in the same frame and unit.

    Raises:
        ValueError: No patch has a camera.
    """
    if not cameras.has_camera.any():
        raise ValueError("no temporal patch has a camera")
    known, both = cameras.has_camera.cpu(), torch.stack((cameras.world_to_camera, predicted)).double().cpu()
    poses = invert_se3(both[:, known]).numpy()
    plane = level_axes(-poses[0, :, :3, 1].mean(0))
    figure, axes = _empty_map()
    axes.set_title(f"{poses.shape[1]} true cameras, and predicted ones in gray", loc="left")
    centers = poses[..., :3, 3] @ plane.T
    axes.plot(*centers.transpose(2, 0, 1), color=GUESSED, linewidth=0.7)  # lines from true to predicted cameras
    true, guessed = _frusta(poses, cameras.K_normalized[known].cpu(), FRUSTUM * _span(axes)) @ plane.T
    color = _color_bar(figure, axes, "temporal patch", len(known))
    _draw_cameras(axes, guessed, GUESSED)
    _draw_cameras(axes, true, color.to_rgba(known.nonzero()[:, 0]))
    return _picture(figure)


def _empty_map() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(SIDE + 0.8, SIDE), dpi=100, layout="constrained")
    axes = figure.add_subplot(aspect="equal", adjustable="datalim", xlabel="m, if the poses are metric", ylabel="m")
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    return figure, axes


def _span(axes: Axes) -> float:
    """Return the longer side of the drawing, in the unit of the poses."""
    axes.autoscale_view()
    return float(max(np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())))


def _frusta(
    camera_to_world: Float[np.ndarray, "*B n 4 4"], K: Float[Tensor, "n 3 3"], length: float
) -> Float[np.ndarray, "*B n 3 3"]:
    """Return cameras as triangles: the center, and the ends of the horizontal rays at the left and right edge."""
    corners = torch.zeros(len(K), 3, 3, dtype=torch.float64)
    corners[:, 1:, 0] = (torch.tensor([-0.5, 0.5]) - K[:, :1, 2]) / K[:, :1, 0]
    corners[:, 1:, 2] = 1
    return length * corners.numpy() @ camera_to_world[..., :3, :3].swapaxes(-1, -2) + camera_to_world[..., None, :3, 3]


def _color_bar(figure: Figure, axes: Axes, name: str, count: int) -> ScalarMappable:
    color = ScalarMappable(Normalize(0, max(1, count - 1)), ORDER)
    figure.colorbar(color, ax=axes, label=name, shrink=0.6, ticks=MaxNLocator(integer=True))
    return color


def _draw_cameras(axes: Axes, frusta: Float[np.ndarray, "n 3 2"], colors: str | Float[np.ndarray, "n 4"]) -> None:
    """Draw cameras as triangles with a dot on the center."""
    axes.add_collection(PolyCollection(frusta, facecolors="none", edgecolors=colors, linewidths=1.6))
    x, y = frusta[:, 0].T
    axes.scatter(x, y, c=colors, s=22, zorder=3)


def _draw_numbers(
    figure: Figure,
    axes: Axes,
    frusta: Float[np.ndarray, "n 3 2"],
    frames: Sequence[int],
    colors: Float[np.ndarray, "n 4"],
) -> None:
    """Write the frame numbers in front of their cameras, spread so that none covers another."""
    figure.draw_without_rendering()  # fixes the layout, and thereby the pixels per meter
    figure.set_layout_engine("none")  # keeps this layout
    ahead = frusta[:, 0] + 1.4 * (frusta[:, 1:].mean(1) - frusta[:, 0])  # ahead, because cameras may turn on the spot
    places = axes.transData.inverted().transform(spread(axes.transData.transform(ahead), LABEL_PX))
    for frame, tip, place, color in zip(frames, ahead, places, colors, strict=True):
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 6}
        axes.annotate(str(frame), tip, place, color=color, ha="center", va="center", fontsize=10, arrowprops=line)


def _draw_voxels(axes: Axes, grid: VoxelGrid, plane: Float[np.ndarray, "2 3"]) -> float:
    """Draw one square per column of voxels. Return the share of voxels that the chosen frames see."""
    everything = grid.sets[-1]
    covered = {tuple(cell) for cells in grid.sets[:-1] for cell in cells.tolist()}
    seen = np.array([tuple(cell) in covered for cell in everything.tolist()])
    centers = (grid.origin + (everything + 0.5) * grid.size).astype(np.float64) @ plane.T
    cells, column, count = np.unique(
        np.round(centers / grid.size).astype(int), axis=0, return_inverse=True, return_counts=True
    )
    column = column.reshape(-1)
    share = (np.bincount(column, seen) / count)[:, None]
    shade = (0.35 + 0.65 * count / count.max())[:, None]
    square = grid.size / 2 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    light, dark = np.array([to_rgb(UNSEEN), to_rgb(SEEN)])
    colors = 1 + (light + (dark - light) * share - 1) * shade
    axes.add_collection(
        PolyCollection(cells[:, None] * grid.size + square, facecolors=colors, linewidths=0), autolim=True
    )
    return float(seen.mean())


def _picture(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def level_axes(up: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "2 3"]:
    """Return two horizontal world axes for a map, right and forward, given the up direction."""
    up = up / max(float(np.linalg.norm(up)), 1e-9)
    axis = np.eye(3)[np.abs(up).argmin()]  # the most horizontal axis of the world
    right = axis - (axis @ up) * up
    right /= np.linalg.norm(right)
    return np.stack((right, np.cross(up, right)))


def spread(places: Float[np.ndarray, "n 2"], size: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "n 2"]:
    """Move the centers of labels of one size until no two labels overlap, at most 200 times."""
    places = places.copy()
    order = np.arange(len(places))
    aside = np.sign(order[:, None] - order[None])[..., None]  # separates labels at the same place
    for _ in range(200):
        gap = places[:, None] - places[None]
        overlap = size - np.abs(gap)
        touching = (overlap > 1e-6).all(-1) & (aside[..., 0] != 0)
        if not touching.any():
            break
        shorter = np.eye(2, dtype=bool)[overlap.argmin(-1)] & touching[..., None]
        places += 0.5 * np.where(shorter, overlap * np.where(gap == 0, aside, np.sign(gap)), 0).sum(1)
    return places
