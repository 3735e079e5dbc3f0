"""What Depth Anything 3 computes for scenes."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(eq=False)
class DA3Output:
    """The outputs for B scenes of S views, in the order of the input; None if not asked for, or if the model has none.

    Attributes:
        tokens: Outputs of the layers, by the index asked for; the camera token, then patches. D is 2C, [last local
            block | block], or C without `cat_token`. The block's patches are normalized; nothing else is.
        patch_start: Number of tokens before the patches.
        reference: The reference view; None where none is chosen (fewer than three views, or given cameras).
        pose_enc: Cameras, see `pose_encoding_to_cameras`.
        world_to_camera: The same as poses, in the scene's own scale; of a nested model in meters.
        K_px: Intrinsics in pixels.
        depth: Along the camera's z axis, in the unit of the poses. Of a metric model for a focal length of 300 pixels,
            see `to_meters`.
        depth_conf: Confidence, at least 1.
        rays: Direction (not unit length) and camera center of each ray, in the world.
        rays_conf: Confidence, at least 1.
        sky: Of metric and nested models; sky where >= 0.3.
        scale: Of nested models, by which depth and translations were multiplied.
    """

    tokens: dict[int, Float[Tensor, "B S P D"]]
    patch_start: int = 1
    reference: Int[Tensor, " B"] | None = None
    pose_enc: Float[Tensor, "B S 9"] | None = None
    world_to_camera: Float[Tensor, "B S 4 4"] | None = None
    K_px: Float[Tensor, "B S 3 3"] | None = None
    depth: Float[Tensor, "B S H W"] | None = None
    depth_conf: Float[Tensor, "B S H W"] | None = None
    rays: Float[Tensor, "B S _h _w 6"] | None = None
    rays_conf: Float[Tensor, "B S _h _w"] | None = None
    sky: Float[Tensor, "B S H W"] | None = None
    scale: Float[Tensor, " B"] | None = None
