"""What Pi3X can be told about views beside their images: rays, depth and poses, each for any of the views.

Rays and depth are embedded and added to the patch tokens. Poses enter by attention between the posed views, in PRoPE's
published layout without intrinsics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras.poses import ROTATION_TOLERANCE, invert_se3, rigid_matrix
from zoo.encodings.prope import projection_matrices
from zoo.encodings.view_mixers import multiview_attention
from zoo.errors import InputError
from zoo.geometry.layers import Block
from zoo.precision import full_precision, to_float32

Condition = Literal["rays", "depth", "poses"]
CONDITIONS: tuple[Condition, ...] = ("rays", "depth", "poses")
EPS = 1e-6  # of all LayerNorms but those of queries and keys
TINY_LENGTH = 1e-8
REST = 0.02  # largest distance from view 0 of cameras that count as at rest
RAY_EPS = 1e-6
Mask = Bool[Tensor, "B S"] | None


@dataclass(frozen=True, eq=False)
class Conditions:
    """The conditions of B scenes of S views, in any unit and world. None where nothing is given.

    Attributes:
        world_to_camera: Poses.
        K_px: Intrinsics in pixels of the images.
        rays: Ray of each pixel in the camera's axes, of any length. Used instead of `K_px` if both are given.
        depth: Depth along the camera's z axis, in the unit of the poses. 0 where unknown.
        has_pose: Views whose pose is used. None is all.
        has_ray: Views whose rays or intrinsics are used. None is all.
        has_depth: Views whose depth is used. None is all.
    """

    world_to_camera: Float[Tensor, "B S 4 4"] | None = None
    K_px: Float[Tensor, "B S 3 3"] | None = None
    rays: Float[Tensor, "B S H W 3"] | None = None
    depth: Float[Tensor, "B S H W"] | None = None
    has_pose: Mask = None
    has_ray: Mask = None
    has_depth: Mask = None

    @property
    def given(self) -> tuple[Condition, ...]:
        """The names of the given conditions."""
        is_given = {
            "rays": self.K_px is not None or self.rays is not None,
            "depth": self.depth is not None,
            "poses": self.world_to_camera is not None,
        }
        return tuple(each for each in CONDITIONS if is_given[each])

    def ray_map(self, size_hw: tuple[int, int]) -> Float[Tensor, "B S 2 H W"] | None:
        """Return x / z and y / z of the ray of each pixel."""
        if self.rays is not None:
            rays = to_float32(self.rays)
            return (rays[..., :2] / (rays[..., 2:] + RAY_EPS)).movedim(-1, 2)
        return None if self.K_px is None else ray_map(self.K_px, size_hw)

    def normalized(
        self, device: torch.device
    ) -> tuple[Float[Tensor, "B S 4 4"] | None, Float[Tensor, "B S H W"] | None, Mask]:
        """Return `normalize_conditions` without the unit, and without a mask if all views have a pose."""
        if self.world_to_camera is None and self.depth is None:
            return None, None, None
        with full_precision(device):
            poses, depth, has_pose, _ = normalize_conditions(
                self.world_to_camera, self.depth, self.has_pose, self.has_depth
            )
        has_all = self.has_pose is None and poses is not None and poses.shape[1] > 1
        return poses, depth, None if has_all else has_pose

    def check(self, shape: Sequence[int]) -> None:
        """Check the conditions of images (B, S, 3, H, W).

        Raises:
            InputError: A mask is given without its condition, a shape does not fit the images, a pose is no rigid
                transform, or depth is negative or not finite.
        """
        for name, mask in (("rays", self.has_ray), ("depth", self.has_depth), ("poses", self.has_pose)):
            if mask is not None and name not in self.given:
                option = "has_ray" if name == "rays" else "has_pose" if name == "poses" else "has_depth"
                raise InputError(f"{option} without {name}: give the condition that it is a mask of, or leave it out")
        scenes, views, size = shape[0], shape[1], tuple(shape[-2:])
        sides = {"world_to_camera": (4, 4), "K_px": (3, 3), "rays": (*size, 3), "depth": size}
        for name in ("world_to_camera", "K_px", "rays", "depth", "has_pose", "has_ray", "has_depth"):
            tensor, expected = getattr(self, name), (scenes, views, *sides.get(name, ()))
            if tensor is not None and tuple(tensor.shape) != expected:
                raise InputError(f"{name} {list(tensor.shape)} for images {list(shape)}: it must be {list(expected)}")
        for number in range(scenes):
            poses, depth = (None if each is None else each[number] for each in (self.world_to_camera, self.depth))
            check_scene(f"scene {number}", size, poses, depth)


def check_scene(
    name: str,
    size_hw: tuple[int, ...],
    world_to_camera: Float[Tensor, "S 4 4"] | None,
    depth: Float[Tensor, "S _H _W"] | None,
) -> None:
    """Check one scene's poses and depth. Values are read on a CPU only, because a GPU would have to be waited for.

    Args:
        name: The scene, for the error message.
        size_hw: Height and width of the frames in pixels.
        world_to_camera: Poses.
        depth: Depth.

    Raises:
        InputError: Depth has another size than the frames or is not finite or negative, or a pose is not rigid. It is
            one line that names the scene and the view.
    """
    if depth is not None and tuple(depth.shape[1:]) != tuple(size_hw):
        height, width = depth.shape[1:]
        raise InputError(
            f"{name}, view 0: depth of {width} x {height} pixels for a frame of {size_hw[1]} x {size_hw[0]}: resize it "
            "by nearest neighbors"
        )
    if depth is not None and depth.device.type == "cpu":
        bad = ~(depth.isfinite() & (depth >= 0)).flatten(1).all(1)
        if bad.any():
            raise InputError(
                f"{name}, view {int(bad.nonzero()[0])}: depth holds NaN, infinite or negative values: write 0 where it "
                "is unknown"
            )
    if world_to_camera is not None and world_to_camera.device.type == "cpu":
        R = world_to_camera[:, :3, :3].double()
        off = (R.mT @ R - torch.eye(3, dtype=R.dtype)).abs().amax((-1, -2))
        last_row = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=world_to_camera.dtype)
        good = (off <= ROTATION_TOLERANCE) & (torch.linalg.det(R) > 0) & (world_to_camera[:, 3] == last_row).all(-1)
        finite = world_to_camera.isfinite().flatten(1).all(1)
        if not (good := good & finite).all():
            view = int((~good).nonzero()[0])
            why = f"it is off orthonormal by {float(off[view]):.2g}" if finite[view] else "it holds NaN or infinity"
            raise InputError(
                f"{name}, view {view}: the pose is no rotation and translation, {why}: give world-to-camera poses with "
                "OpenCV axes"
            )


# ---- Units: the mean depth, or the mean distance from view 0 ---------------------------------------------------------


def normalize_conditions(
    world_to_camera: Float[Tensor, "B S 4 4"] | None,
    depth: Float[Tensor, "B S H W"] | None,
    has_pose: Mask = None,
    has_depth: Mask = None,
) -> tuple[Float[Tensor, "B S 4 4"] | None, Float[Tensor, "B S H W"] | None, Mask, Float[Tensor, " B"]]:
    """Make poses relative to view 0, and divide lengths by the network's unit.

    The unit is the mean known depth of all views. In a scene without used depth it is the mean distance of views 1, 2,
    ... from view 0, unless all are nearer than 0.02. Views that a mask excludes count in both means, as in the
    published code.

    Returns:
        Poses in float64, depth, the views whose pose is used, and the unit of each scene. The only pose of a scene is
        not used, because there is nothing to relate it to.
    """
    known = depth if depth is not None else world_to_camera
    assert known is not None
    unit = to_float32(known.new_ones(len(known)))
    if depth is not None:
        depth = to_float32(depth)
        valid = depth > 0
        count = valid.flatten(1).sum(1)
        mean = depth.where(valid, 0).flatten(1).sum(1) / count.clamp(min=1)
        unit = torch.where(count > 0, mean, 1.0)
        depth = depth / (unit + TINY_LENGTH)[:, None, None, None]
    if world_to_camera is None:
        return None, depth, None, unit
    poses, unit = world_to_camera.double(), unit.double()
    relative = poses @ invert_se3(poses[:, :1])
    translation = relative[..., :3, 3] / unit[:, None, None]
    if relative.shape[1] > 1:
        distance = translation[:, 1:].norm(dim=-1)  # of the camera centers, because rotations keep lengths
        moves = distance.amax(1) >= REST
        if depth is not None:
            has_any = torch.ones_like(moves) if has_depth is None else has_depth.any(1)
            moves = moves & ~has_any
        spread = torch.where(moves, distance.mean(1), 1.0)
        divisor = torch.where(moves, spread + TINY_LENGTH, 1.0)[:, None, None]
        translation, unit = translation / divisor, unit * spread
        if depth is not None:  # of scenes that move, none is used
            depth = depth / divisor[..., None].to(depth.dtype)
    used = torch.ones(relative.shape[:2], dtype=torch.bool, device=poses.device) if has_pose is None else has_pose
    used = used & (used.sum(1, keepdim=True) > 1)
    return rigid_matrix(relative[..., :3, :3], translation), depth, used, unit.to(to_float32(world_to_camera).dtype)


# ---- Rays ------------------------------------------------------------------------------------------------------------


def ray_map(K_px: Float[Tensor, "B S 3 3"], size_hw: tuple[int, int]) -> Float[Tensor, "B S 2 H W"]:
    """Return x / z and y / z of the ray through the center of each pixel. Skew counts."""
    height, width = size_hw
    K = to_float32(K_px)[..., None, None]
    u, v = (torch.arange(side, dtype=K.dtype, device=K.device) + 0.5 for side in (width, height))
    y = ((v[:, None] - K[..., 1, 2, :, :]) / K[..., 1, 1, :, :]).expand(*K.shape[:2], height, width)
    x = (u - K[..., 0, 2, :, :] - K[..., 0, 1, :, :] * y) / K[..., 0, 0, :, :]
    return torch.stack((x, y), 2)


# ---- Poses -----------------------------------------------------------------------------------------------------------


def pose_attention(
    q: Float[Tensor, "B heads N D"],
    k: Float[Tensor, "B heads N D"],
    v: Float[Tensor, "B heads N D"],
    world_to_camera: Float[Tensor, "B S 4 4"],
    *,
    patches_y: int,
    patches_x: int,
    has_pose: Mask = None,
) -> Float[Tensor, "B heads N D"]:
    """Compute `zoo.prope_attention` without intrinsics among the views with a pose. Rows of other views are zero.

    Args:
        q: Queries, ordered by view, patch row and patch column.
        k: Keys.
        v: Values.
        world_to_camera: Poses.
        patches_y: Rows of patches in a view.
        patches_x: Columns of patches in a view.
        has_pose: Views with a pose. None is all.
    """
    V, V_inverse = projection_matrices(world_to_camera.to(to_float32(q).dtype))
    matrices = {"q": V.mT, "k": V_inverse, "v": V_inverse, "o": V}
    if has_pose is None:
        return multiview_attention(q, k, v, matrices, patches_x=patches_x, patches_y=patches_y)
    has = has_pose.repeat_interleave(patches_y * patches_x, 1, output_size=q.shape[2])
    # a scene without any pose attends to all, because a softmax over nothing is NaN; its output is not used
    keys = (has | ~has.any(1, keepdim=True))[:, None, None]
    out = multiview_attention(q, k, v, matrices, patches_x=patches_x, patches_y=patches_y, keys=keys)
    return out.where(has[:, None, :, None], 0)


class PoseInjection(Block):
    """A block whose attention and MLP both read its input, for the patches of views with a pose.

    Args:
        dim: Width of the tokens.
        num_heads: A divisor of dim, with heads of a multiple of 8 channels.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, qk_norm=True, eps=EPS)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "B S n C"],
        world_to_camera: Float[Tensor, "B S 4 4"],
        grid: tuple[int, int],
        has_pose: Mask = None,
    ) -> Float[Tensor, "B S n C"]:
        """Add both branches to the patches of views with a pose.

        Args:
            x: Patches.
            world_to_camera: Poses in the network's unit.
            grid: Rows and columns of patches.
            has_pose: Views with a pose. None is all.
        """
        tokens = x.flatten(1, 2)
        q, k, v = self.attn.queries_keys_values(self.norm1(tokens))
        # one dtype: under autocast LayerNorm returns float32
        out = pose_attention(
            q.to(v.dtype), k.to(v.dtype), v, world_to_camera, patches_y=grid[0], patches_x=grid[1], has_pose=has_pose
        )
        added = self.ls2(self.ls1(tokens, self.attn.output(out)), self.mlp(self.norm2(tokens))).view_as(x)
        return added if has_pose is None else added.where(has_pose[..., None, None], x)
