"""Questions about plain panels in empty rooms, whose answers need images, cameras, or both.

| task | asks | needs |
|---|---|---|
| `PanelDistance` | how far a panel is from where the video starts | images and whole poses |
| `PanelAnywhere` | the same before one wall, where the panel may be anywhere in a frame | the same, and the pixel |
| `PanelPairs` | the same with one frame per station | the same; merging two frames merges two views |
| `PanelTranslation` | the same along one wall that all cameras face | images and translations |
| `PanelRotation` | the direction of a panel from where the video starts to look | images and rotations |
| `PanelTurn` | the same with four views | the same, and the pixel |
| `PanelFreeTurn` | the same with views in any directions | the same, and more of the pose than its quarter turn |
| `PanelGlimpse` | the same with one small panel, which one view shows | the same, and nothing else helps |
| `PanelDwelling` | `PanelTurn` in a long video that shows the panel briefly | the same, and a sampler that finds it |
| `PanelDirection` | where a second panel is for someone who faces the first | images and rotations between views |
| `PanelIntrinsics` | how wide a panel is | images and focal lengths |
| `PanelParallax` | how far a wall is | two views of its panel, by triangulation |
| `PanelTwoViews` | the same, where only two views show the panel | the same, of these two views |
| `PanelKnownSize` | the same with panels of one size | images |
| `PanelOrder` | which panel is seen first | the order of the frames |
| `PanelMotion` | to which side a panel moves | the order of the frames |

A task draws its answer first, and then the room, the camera path and the sizes of the panels independently of it.
Neither the text nor the cameras therefore contain anything about the answer. The camera visits stations, places where
it takes a temporal patch of frames with nearly the same view. Stations are visited in random order, so that a frame's
number tells nothing about its place. Lengths are in meters.

`PanelDistance`, `PanelRotation` and `PanelParallax` remain for studies that were trained on them. A rule that lacks
what the task is about goes far in them, so new headlines are on `PanelAnywhere`, `PanelTurn`, `PanelFreeTurn` and
`PanelTwoViews`. Each task states in `oracles` what such rules know, and a test reports their scores beside the model's.
"""

from datamodules.sources.rooms.panel_tasks.base import PanelPlace, PanelScene, PanelTask
from datamodules.sources.rooms.panel_tasks.directions import (
    PanelDirection,
    PanelDwelling,
    PanelFreeTurn,
    PanelGlimpse,
    PanelRotation,
    PanelTurn,
)
from datamodules.sources.rooms.panel_tasks.distances import PanelAnywhere, PanelDistance, PanelPairs, PanelTranslation
from datamodules.sources.rooms.panel_tasks.order import PanelMotion, PanelOrder
from datamodules.sources.rooms.panel_tasks.triangulation import (
    PanelIntrinsics,
    PanelKnownSize,
    PanelParallax,
    PanelTwoViews,
)

__all__ = [
    "PanelAnywhere",
    "PanelDirection",
    "PanelDistance",
    "PanelDwelling",
    "PanelFreeTurn",
    "PanelGlimpse",
    "PanelIntrinsics",
    "PanelKnownSize",
    "PanelMotion",
    "PanelOrder",
    "PanelPairs",
    "PanelParallax",
    "PanelPlace",
    "PanelRotation",
    "PanelScene",
    "PanelTask",
    "PanelTranslation",
    "PanelTurn",
    "PanelTwoViews",
]
