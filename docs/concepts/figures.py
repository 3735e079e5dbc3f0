"""Write the figures of docs/concepts/ that need coordinates: python -m docs.concepts.figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from PIL import Image

from datamodules import PixelBounds, Rooms, UniformSampler
from datamodules.dataset import SceneDataset
from evaluation.drawings import camera_map
from zoo.encodings.base import HeadLayout
from zoo.encodings.placements import ChannelRange, LowFrequencies, Placement, TemporalSection

FOLDER = Path(__file__).parent
AXES = {"T": "#e05c2c", "H": "#2f8f6b", "W": "#3458c0"}
TAKEN, OFF, INK = "#b85a8c", "#d8dee4", "#1f2328"
PLACEMENTS: dict[str, Placement] = {
    "ChannelRange(0, 0.5)": ChannelRange(0.0, 0.5),
    "TemporalSection": TemporalSection(),
    "LowFrequencies(8, 'w')": LowFrequencies(8, "w"),
}


def canvas(columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with empty panels of equal units, with y pointing down as in an image."""
    figure = Figure(figsize=(8, height), dpi=100, layout="constrained")
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.set(aspect="equal")
        axes.axis("off")
        axes.invert_yaxis()
    return figure, panels


def arrow(axes: Axes, start: np.ndarray, end: np.ndarray, color: str = INK, name: str = "") -> None:
    """Draw an arrow, with its name at the tip."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2, "shrinkA": 0})
    axes.text(*(end + 0.2 * (end - start) / np.linalg.norm(end - start)), name, ha="center", va="center")
    axes.update_datalim([start, end])


def turn(angle: float) -> np.ndarray:
    """Return the matrix of a rotation in the plane of the image."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def cameras() -> Figure:
    """Draw the axes of a camera, its pose, and normalized pixels."""
    figure, (space, image) = canvas(2, 3.2)
    world, camera = np.array([0.0, 0.0]), np.array([3.0, -1.2])
    for origin, angle in ((world, 0.0), (camera, 0.5)):
        for color, name, end in zip(AXES.values(), "xyz", ((1, 0), (0, 1), (0.9, -0.75)), strict=True):
            arrow(space, origin, origin + turn(angle) @ np.array(end), color, name)
    arrow(space, world + [0.3, -0.2], camera - [0.3, -0.1])
    space.text(1.6, -0.95, "V", ha="center")
    space.text(0, 1.6, "world", ha="center")
    space.text(2.6, 1.6, "camera: x right, y down, z forward", ha="center")
    space.set(xlim=(-0.6, 4.6), ylim=(1.8, -2.4), title="x_camera = V x_world")
    image.add_patch(Rectangle((-0.5, -0.5), 1, 1, facecolor="#f6f8fa", edgecolor=INK))
    arrow(image, np.array([-0.6, 0]), np.array([0.66, 0]), name="u")
    arrow(image, np.array([0, -0.6]), np.array([0, 0.66]), name="v")
    for place, name in (((-0.5, -0.56), "(-1/2, -1/2)"), ((0.5, 0.63), "(1/2, 1/2)"), ((0.13, -0.06), "(0, 0)")):
        image.text(*place, name, ha="center")
    image.set(xlim=(-0.9, 0.9), ylim=(0.95, -0.75), title="intrinsics K: u = fx/W · x/z + cx/W - 1/2")
    return figure


def channels() -> Figure:
    """Draw the channels of a head of Qwen2.5-VL, and the channels of each placement."""
    head = HeadLayout.in_row(128, (16, 24, 24))
    figure = Figure(figsize=(8, 2.2), dpi=100, layout="constrained")
    rope, *rows = figure.subplots(1 + len(PLACEMENTS), 1)
    rope.imshow(
        [[head.axes[channel % len(head.axes)] for channel in range(head.dim)]], cmap=ListedColormap(AXES.values())
    )
    for name, middle in (("T", 8), ("H", 28), ("W", 52)):
        for half in (0, 64):
            rope.text(half + middle, 0, name, color="white", ha="center", va="center")
    for axes, placement in zip(rows, PLACEMENTS.values(), strict=True):
        taken = np.isin(np.arange(head.dim), placement.head_channels(head))
        axes.imshow([taken], cmap=ListedColormap([OFF, TAKEN]), vmin=0, vmax=1)
    for axes, name in zip((rope, *rows), ("RoPE of Qwen2.5-VL", *PLACEMENTS), strict=True):
        axes.set(aspect="auto", xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    rows[-1].set(xlabel="channels of a head; colored: those that a camera's matrix transforms", xticks=[0, 32, 64, 96])
    return figure


def exact() -> Figure:
    """Draw two cameras in two worlds. The relative pose is the same."""
    figure, panels = canvas(2, 2.8)
    for axes, angle, name in zip(panels, (0.0, 0.6), ("V", "V G"), strict=True):
        world = np.array([-1.5, 1.2])
        arrow(axes, world, world + [0.5, 0])
        arrow(axes, world, world - [0, 0.5])
        axes.text(*(world + [0.2, 0.3]), "world", ha="center")
        first, second = np.array([-0.8, 0.2]), np.array([0.8, -0.2])
        for number, (center, color) in enumerate(((first, AXES["W"]), (second, AXES["T"])), 1):
            corners = [turn(angle) @ (center + corner) for corner in ([0, 0], [-0.22, -0.42], [0.22, -0.42])]
            axes.add_patch(Polygon(corners, facecolor=color))
            arrow(axes, world, corners[0])
            axes.text(*(turn(angle) @ (center - [0, 0.65])), f"view {number}", ha="center")
        arrow(axes, turn(angle) @ (first + [0.3, -0.15]), turn(angle) @ (second - [0.3, 0.05]), TAKEN)
        axes.text(*(turn(angle) @ [0, -0.35]), "V₁ V₂⁻¹", ha="center", color=TAKEN)
        axes.set(xlim=(-1.9, 1.7), ylim=(1.7, -1.2), title=f"poses {name}")
    return figure


def room_path() -> Image.Image:
    """Return the image that `import-cameras` draws, for a rendered room."""
    with TemporaryDirectory() as root:
        rooms = Rooms(scenes=(1, 1, 1), root=root, workers=1)
        rooms.prepare()
        (scene,) = rooms.scenes("test")
        view = SceneDataset([scene], UniformSampler(), 12, PixelBounds()).open(0)
        return camera_map(replace(view, depth=None), range(0, view.video.num_frames, 4), "kitchen")


FIGURES = {"cameras.png": cameras, "channels.png": channels, "exact.png": exact}

if __name__ == "__main__":
    for file, draw in FIGURES.items():
        draw().savefig(FOLDER / file)
    room_path().save(FOLDER.parent / "tutorials" / "path.png")
