"""Procedurally rendered furnished rooms with exact ground truth: the embedded dataset.

scene.py     a room as plain data          layout.py     draws one: room, path, furniture
furniture.py the catalog                 paths.py      camera motion
textures.py  the texture atlas             renderer.py   color, depth, object ids
geometry.py  exact distances of boxes      questions.py  VSI-Bench's questions and their answers
writer.py    a scene on disk               source.py     the dataset on disk
rendered.py  made once, by many processes

Stand-ins of real rooms: real_boxes.py reads them, real_layout.py draws them, real_source.py is the dataset.
"""

from datamodules.sources.rooms.real_source import RealRooms
from datamodules.sources.rooms.renderer import Rendering, render, render_depth, render_scene_file
from datamodules.sources.rooms.scene import RoomScene, Thing, load_scene
from datamodules.sources.rooms.source import Rooms

__all__ = [
    "RealRooms",
    "Rendering",
    "RoomScene",
    "Rooms",
    "Thing",
    "load_scene",
    "render",
    "render_depth",
    "render_scene_file",
]
