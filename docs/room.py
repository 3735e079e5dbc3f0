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

from datamodules import PanelRooms, PanelTurn
from datamodules.cameras_file import read_cameras_alone
from datamodules.sources.rooms.scene import DESCRIPTION, RoomScene, load_scene
from datamodules.video import Video
from zoo.cameras.poses import invert_se3

OUTPUT = Path(__file__).with_name("room.png")
FRAME_PX = 224  # larger than the frames of 56 pixels that the models see
FRAMES_PER_STATION, COLUMNS = PanelTurn.frames_per_station, 2  # frames of one view; views per row of the picture
INK, GRAY, FLOOR, PANEL, CAMERA = "#1f2328", "#6e7781", "#f3f4f6", "#d8161b", "#3458c0"
CAMERA_M, HALF_FOV_RAD, ARC_M = 0.75, np.pi / 4, 1.05  # a drawn view and the arc of the turn


def main() -> None:
    """Render the room and write the picture."""
    with TemporaryDirectory() as folder:
        rooms = PanelRooms(PanelTurn(), scenes=(0, 0, 1), size=FRAME_PX, root=folder, workers=1)
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
    figure = Figure(figsize=(9.5, 4.6), dpi=120)
    draw_room(figure.add_axes((0.01, 0.02, 0.46, 0.88)), room, camera_to_room)
    figure.text(0.02, 0.93, "Cameras: where each frame looks", fontsize=13, color=INK)
    figure.text(0.53, 0.93, "Frames: where in a view the panel is", fontsize=13, color=INK)
    rows = -(-len(frames) // COLUMNS)
    width, height = 0.158, 0.31
    for place, frame in enumerate(frames):
        row, column = divmod(place, COLUMNS)
        left, bottom = 0.53 + column * (width + 0.012), 0.9 - (row + 1) * height - row * 0.02
        axes = figure.add_axes((left, bottom, width, height))
        axes.imshow(frame)
        axes.axis("off")
        axes.text(0.05, 0.95, ascii_uppercase[place], transform=axes.transAxes, va="top", fontsize=12, color=CAMERA,
                  fontweight="bold", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
    text = "\n".join(textwrap.wrap(question, 42))
    figure.text(0.53, 0.9 - rows * (height + 0.02) - 0.02, text, fontsize=12, color=INK, va="top", fontweight="bold")
    return figure


def draw_room(axes: Axes, room: RoomScene, camera_to_room: Float64[np.ndarray, "n 4 4"]) -> None:
    """Draw walls, the panel, each view as a triangle that opens where it looks, and the turn that is asked for."""
    length, width = room.size[:2]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (length / 2, width / 2)
    axes.add_patch(Polygon(corners, facecolor=FLOOR, edgecolor=GRAY, linewidth=4))
    start = camera_to_room[0, :2, 3]
    headings = np.arctan2(camera_to_room[:, 1, 2], camera_to_room[:, 0, 2])
    (panel,) = room.things
    center = np.array(panel.center[:2])
    to_panel = center - start
    across = np.array([-to_panel[1], to_panel[0]]) / np.linalg.norm(to_panel) * max(panel.size[:2]) / 2
    axes.plot(*np.stack((center - across, center + across)).T, color=PANEL, linewidth=7, solid_capstyle="butt")
    for place, angle in enumerate(headings):
        ends = angle + np.array([-HALF_FOV_RAD, HALF_FOV_RAD])
        triangle = np.stack((start, *(start + CAMERA_M * np.stack((np.cos(ends), np.sin(ends)), 1))))
        axes.add_patch(Polygon(triangle, facecolor=CAMERA, alpha=0.25, edgecolor=CAMERA, linewidth=1.6, zorder=2))
        ahead = start + 0.42 * np.array([np.cos(angle), np.sin(angle)])
        axes.text(*ahead, ascii_uppercase[place], color=CAMERA, fontsize=12, fontweight="bold", ha="center",
                  va="center", zorder=5)  # fmt: skip
    axes.plot(*start, "o", color=CAMERA, markersize=6, zorder=3)
    turn = (np.arctan2(to_panel[1], to_panel[0]) - headings[0]) % (2 * np.pi)
    arc = headings[0] + np.linspace(0, turn, 60)
    rim = start + ARC_M * np.stack((np.cos(arc), np.sin(arc)), 1)
    axes.plot(*rim.T, color=PANEL, linewidth=1.6)
    axes.plot(*np.stack((start, rim[0])).T, color=PANEL, linewidth=1, linestyle=(0, (4, 4)))
    axes.text(*(start + 1.2 * (rim[0] - start)), "start", color=PANEL, fontsize=12, ha="center", va="center")
    arrow = {"arrowstyle": "-|>", "color": PANEL, "linewidth": 1.6}
    axes.annotate("", xy=rim[-1], xytext=rim[-4], arrowprops=arrow)
    axes.text(*rim[30], "?", color=PANEL, fontsize=16, fontweight="bold", ha="center", va="center",
              zorder=6, path_effects=[withStroke(linewidth=5, foreground=FLOOR)])  # fmt: skip
    margin = 0.2
    axes.set(xlim=(-length / 2 - margin, length / 2 + margin), ylim=(-width / 2 - margin, width / 2 + margin))
    axes.set_aspect("equal")
    axes.axis("off")


if __name__ == "__main__":
    main()
