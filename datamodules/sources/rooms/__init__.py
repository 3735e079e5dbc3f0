"""Procedurally rendered furnished rooms with exact ground truth: the embedded dataset.

scene.py      data model of a room            layout.py       random room: size, camera path, furniture
furniture.*   catalog of furniture            paths.py        camera motion
textures.py   texture atlas                   renderer.py     color, depth, object ids
geometry.py   exact distances of boxes        questions.py    VSI-Bench's questions and answers
writer.py     files of a scene                source.py       the dataset
rendered.py   rendering by several processes

Empty rooms with panels, for questions that need both images and cameras: panels/.
Rooms with real sizes and furniture: real_boxes.py (reader), real_layout.py (layout), real_source.py (dataset).
"""

from datamodules.sources.rooms.real_rooms import RealRooms
from datamodules.sources.rooms.renderer import Rendering, read_scene, render, render_depth
from datamodules.sources.rooms.scene import RoomScene, Thing, load_scene
from datamodules.sources.rooms.source import Rooms
