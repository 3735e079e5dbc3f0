"""Embedded datasets: procedurally rendered rooms with exact ground truth.

scene.py         data model of a room, distances of boxes
layout.py        random room: size, camera path, furniture (furniture.json)
renderer.py      color, depth, object ids
questions.py     VSI-Bench's questions and answers
source.py        base class of rendered datasets; `Rooms`
real_rooms.py    `RealRooms`: rooms with real sizes and furniture
panel_layout.py  panels, empty rooms, and cameras at their stations
panel_tasks/     empty rooms with panels: questions that need images, cameras, or both
panel_oracles.py what rules without the pixel, the cameras or the order know
panel_source.py  `PanelRooms`
"""

from datamodules.sources.rooms.real_rooms import RealRooms
from datamodules.sources.rooms.renderer import Rendering, read_scene, render, render_depth
from datamodules.sources.rooms.scene import RoomScene, Thing, load_scene
from datamodules.sources.rooms.source import Rooms
