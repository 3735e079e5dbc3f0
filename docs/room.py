"""The picture of the README: a room from above with its cameras, its frames, and the question.

    python -m docs.room

renders one test room of `PanelRooms` and writes docs/room.png. It takes seconds.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from string import ascii_uppercase
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke

from datamodules import PanelRooms
from datamodules.cameras_file import read_cameras_alone
from datamodules.sources.rooms.scene import DESCRIPTION, RoomScene, load_scene
from datamodules.video import Video
from zoo.cameras.poses import invert_se3

OUTPUT = Path(__file__).with_name("room.png")
FRAME_PX = 224  # larger than the frames of 56 pixels that the models see
FRAMES_PER_STATION, COLUMNS = 2, 4  # a station is a place where the camera stands; frames per row of the picture
INK, GRAY, FLOOR, PANEL, CAMERA = "#1f2328", "#6e7781", "#f3f4f6", "#d8161b", "#3458c0"
CAMERA_M, HALF_FOV_RAD = 0.75, np.pi / 4  # length and half of the opening of a drawn camera


def main() -> None:
    """Render the room and write the picture."""
    with TemporaryDirectory() as folder:
        rooms = PanelRooms(scenes=(0, 0, 1), size=FRAME_PX, root=folder, workers=1)
        rooms.prepare()
        (scene,) = rooms.scenes("test")
        video = Video(scene.video)
        stations = list(range(0, video.num_frames, FRAMES_PER_STATION))
        frames = video.read(stations).permute(0, 2, 3, 1).numpy()
        room = load_scene(Path(scene.video).with_suffix(DESCRIPTION))
        poses, _ = read_cameras_alone(Path(scene.video).with_suffix(".cameras.json"))
        camera_to_room = room.room_from_world() @ invert_se3(poses[stations]).numpy()
    picture = draw(room, camera_to_room, frames, scene.questions[0].question)
    picture.savefig(OUTPUT, metadata={"Software": None})


def draw(
    room: RoomScene,
    camera_to_room: Float64[np.ndarray, "n 4 4"],
    frames: UInt8[np.ndarray, "n h w 3"],
    question: str,
) -> Figure:
    """Draw the room from above at the left, the frames at the right, and the question below them.

    Args:
        room: A room with one panel.
        camera_to_room: Cameras in the room's frame, OpenCV axes, meters.
        frames: The frame that each camera takes.
        question: The question about the room.
    """
    figure = Figure(figsize=(11, 4.6), dpi=120)
    draw_room(figure.add_axes((0.01, 0.02, 0.38, 0.88)), room, camera_to_room)
    figure.text(0.02, 0.93, "Cameras: where each frame was taken", fontsize=13, color=INK)
    figure.text(0.43, 0.93, "Frames: which camera sees the panel", fontsize=13, color=INK)
    rows = -(-len(frames) // COLUMNS)
    width, height = 0.13, 0.31
    for place, frame in enumerate(frames):
        row, column = divmod(place, COLUMNS)
        left, bottom = 0.43 + column * (width + 0.012), 0.9 - (row + 1) * height - row * 0.02
        axes = figure.add_axes((left, bottom, width, height))
        axes.imshow(frame)
        axes.axis("off")
        axes.text(0.05, 0.95, ascii_uppercase[place], transform=axes.transAxes, va="top", fontsize=12, color=CAMERA,
                  fontweight="bold", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
    text = "\n".join(textwrap.wrap(question, 54))
    figure.text(0.43, 0.9 - rows * (height + 0.02) - 0.02, text, fontsize=13, color=INK, va="top", fontweight="bold")
    return figure


def draw_room(axes: Axes, room: RoomScene, camera_to_room: Float64[np.ndarray, "n 4 4"]) -> None:
    """Draw walls, the panel, the path of the camera, and each camera as a triangle that opens where it looks."""
    length, width = room.size[:2]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (length / 2, width / 2)
    axes.add_patch(Polygon(corners, facecolor=FLOOR, edgecolor=GRAY, linewidth=4))
    (panel,) = room.things
    sides = np.maximum(np.array(panel.size[:2]), 0.14)  # a panel is thinner than a line
    center = np.array(panel.center[:2])
    outline = center + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * sides / 2
    axes.add_patch(Polygon(outline, facecolor=PANEL, edgecolor=PANEL, zorder=4))
    centers = camera_to_room[:, :2, 3]
    axes.plot(*centers.T, color=GRAY, linewidth=0.8, linestyle=(0, (4, 4)))
    axes.plot(*np.stack((centers[0], center)).T, color=PANEL, linewidth=1.6)
    axes.text(*(centers[0] + center) / 2, "?", color=PANEL, fontsize=16, fontweight="bold", ha="center", va="center",
              zorder=6, path_effects=[withStroke(linewidth=5, foreground=FLOOR)])  # fmt: skip
    for place, pose in enumerate(camera_to_room):
        looks_down = abs(pose[2, 2]) > np.cos(np.pi / 4)
        heading = -pose[:2, 1] if looks_down else pose[:2, 2]  # the top of the image is ahead of one that looks down
        angle = np.arctan2(heading[1], heading[0])
        ends = angle + np.array([-HALF_FOV_RAD, HALF_FOV_RAD])
        away = CAMERA_M * np.stack((np.cos(ends), np.sin(ends)), 1)
        triangle = np.stack((centers[place], *(centers[place] + away)))
        axes.add_patch(Polygon(triangle, facecolor=CAMERA, alpha=0.3, edgecolor="none", zorder=2))
        axes.add_patch(Polygon(triangle, facecolor="none", edgecolor=CAMERA, linewidth=1.6, zorder=3))
        axes.plot(*centers[place], "o", color=CAMERA, markersize=6, zorder=3)
        behind = centers[place] - 0.38 * np.array([np.cos(angle), np.sin(angle)])
        label = f"{ascii_uppercase[place]} (start)" if place == 0 else ascii_uppercase[place]
        axes.text(*behind, label, color=CAMERA, fontsize=12, fontweight="bold", ha="center", va="center", zorder=5,
                  path_effects=[withStroke(linewidth=4, foreground=FLOOR)])  # fmt: skip
    margin = 0.3
    axes.set(xlim=(-length / 2 - margin, length / 2 + margin), ylim=(-width / 2 - margin, width / 2 + margin))
    axes.set_aspect("equal")
    axes.axis("off")


if __name__ == "__main__":
    main()
