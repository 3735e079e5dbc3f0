"""Empty rooms with plain panels: questions whose answers need both images and cameras.

task.py       base class of the tasks           source.py     the dataset
tour.py       rooms and camera paths            panel.py      panels: their places and what a camera sees of them

One file per task:

distance.py     how far a panel is from where the video starts
translation.py  the same along one wall, where only translations differ
pairs.py        the same with one frame per station: merging two frames merges two views
rotation.py     the direction of a panel, where only rotations differ
direction.py    where a second panel is for someone who faces the first: rotations between views
intrinsics.py   how wide a panel is, where only focal lengths differ
parallax.py     how far a wall is, which two views of its panel tell by triangulation
known_size.py   the same with panels of one size: images alone answer
order.py        which panel is seen first, where only the order of frames counts
motion.py       to which side a panel moves, where only the order of frames counts
"""

from datamodules.sources.rooms.panels.direction import PanelDirection
from datamodules.sources.rooms.panels.distance import PanelDistance
from datamodules.sources.rooms.panels.intrinsics import PanelIntrinsics
from datamodules.sources.rooms.panels.known_size import PanelKnownSize
from datamodules.sources.rooms.panels.motion import PanelMotion
from datamodules.sources.rooms.panels.order import PanelOrder
from datamodules.sources.rooms.panels.pairs import PanelPairs
from datamodules.sources.rooms.panels.parallax import PanelParallax
from datamodules.sources.rooms.panels.rotation import PanelRotation
from datamodules.sources.rooms.panels.source import PanelRooms
from datamodules.sources.rooms.panels.task import PanelScene, PanelTask
from datamodules.sources.rooms.panels.translation import PanelTranslation
