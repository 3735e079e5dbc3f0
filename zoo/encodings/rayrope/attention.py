"""RayRoPE (arXiv 2601.15275) between views: attention whose keys are where the query's view sees them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras import normalize_intrinsics
from zoo.cameras.poses import invert_se3
from zoo.cameras.rays import ray_directions
from zoo.encodings.rayrope.positions import CosSin, DepthEncoding, RayPositions, depth_ends, rotate_pairs
from zoo.precision import highest_matmul_precision

KNOWN_DEPTHS = (1e-4, 100.0)
KeyViews = tuple[Float[Tensor, "B V 4 4"], Float[Tensor, "B V 3 3"], Float[Tensor, "B N ends"]]


def rayrope_attention(
    q: Float[Tensor, "B H L D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    world_to_camera: Float[Tensor, "B C 4 4"],
    K_px: Float[Tensor, "B C 3 3"],
    raw_depth: Float[Tensor, "B L ends"],
    *,
    patches_x: int,
    patches_y: int,
    image_width: int | float,
    image_height: int | float,
    points: str = "d_pj+0_3d",
    rays: int = 3,
    depth_encoding: DepthEncoding = "d",
    freq_base: float = 3.0,
    transform_values: bool = True,
    known_depth: Float[Tensor, "B n height width 1"] | None = None,
    keys: KeyViews | None = None,
) -> Float[Tensor, "B H L D"]:
    """Compute attention between views by the positions of tokens along their rays.

    For each view all keys and values are rotated by their positions as seen from it, its queries by those in their own
    view, and the output is rotated back.

    Args:
        q: Queries, ordered by camera, patch row and patch column; L = C * patches_y * patches_x.
        k: Keys in the same order.
        v: Values in the same order.
        world_to_camera: Rigid poses, OpenCV axes.
        K_px: Intrinsics in pixels of the image, skew ignored.
        raw_depth: Of each token the log depth and the half width of the log depth; a last axis of 1 has no width.
        patches_x: Patches per row.
        patches_y: Patches per column.
        image_width: In pixels.
        image_height: In pixels.
        points: See `RayPositions`.
        rays: See `RayPositions`.
        depth_encoding: See `RayPositions`.
        freq_base: See `RayPositions`.
        transform_values: Rotate values and outputs as well.
        known_depth: Depth maps of the first n views of the keys, in place of their predicted depth.
        keys: Poses, intrinsics and depth of the views of the keys, in cross-attention; None for the queries' own.

    Returns:
        The output, in the dtype of the inputs.

    Raises:
        InputError: D is not a multiple of two per number of `RayPositions`.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 1, 2, 8, 24).double()  # 2 heads; 2 cameras of 2 x 2 patches
        >>> V = torch.eye(4).double().repeat(1, 2, 1, 1)
        >>> V[:, 1, 0, 3] = 0.5
        >>> K = torch.tensor([[30.0, 0, 14], [0, 30, 14], [0, 0, 1]]).double().expand(1, 2, 3, 3)
        >>> depth = torch.tensor([0.0, 3.0]).double().expand(1, 8, 2)  # from 0.05 to 20 m
        >>> size = {"patches_x": 2, "patches_y": 2, "image_width": 28, "image_height": 28}
        >>> out = rayrope_attention(q, k, v, V, K, depth, **size)
        >>> world = torch.eye(4).double()
        >>> world[:3, 3] = torch.tensor([1.0, -2.0, 3.0])
        >>> torch.allclose(out, rayrope_attention(q, k, v, V @ world, K, depth, **size))  # a change of world cancels
        True
    """
    own, seen = rayrope_coefficients(
        world_to_camera,
        K_px,
        raw_depth,
        head_dim=q.shape[-1],
        patches_x=patches_x,
        patches_y=patches_y,
        image_width=image_width,
        image_height=image_height,
        points=points,
        rays=rays,
        depth_encoding=depth_encoding,
        freq_base=freq_base,
        known_depth=known_depth,
        keys=keys,
    )
    outputs = []
    of_views = (x.split(patches_x * patches_y, -2) for x in (q, own[0][:, None], own[1][:, None]))
    for queries, cos, sin, of_keys in zip(*of_views, seen, strict=True):
        cos_kv, sin_kv = (x[:, None] for x in of_keys)
        values = rotate_pairs(v, cos_kv, sin_kv) if transform_values else v
        output = F.scaled_dot_product_attention(
            rotate_pairs(queries, cos, sin), rotate_pairs(k, cos_kv, sin_kv), values
        )
        outputs.append(rotate_pairs(output, cos, -sin) if transform_values else output)
    return torch.cat(outputs, -2)


def rayrope_coefficients(
    world_to_camera: Float[Tensor, "B C 4 4"],
    K_px: Float[Tensor, "B C 3 3"],
    raw_depth: Float[Tensor, "B L ends"],
    *,
    head_dim: int,
    patches_x: int,
    patches_y: int,
    image_width: int | float,
    image_height: int | float,
    known_depth: Float[Tensor, "B n height width 1"] | None = None,
    keys: KeyViews | None = None,
    transform_values: bool = True,
    **positions: Any,
) -> tuple[CosSin, list[CosSin]]:
    """Compute the rotations of `rayrope_attention`, by its options.

    Args:
        world_to_camera: See there.
        K_px: See there.
        raw_depth: See there.
        head_dim: Channels per head.
        patches_x: See there.
        patches_y: See there.
        image_width: See there.
        image_height: See there.
        known_depth: See there.
        keys: See there.
        transform_values: See there; they are the same with and without.
        positions: Of `RayPositions`.

    Returns:
        Cosine and sine (B, L, D/2) of the queries in their own views; and for each view, those of all keys.
    """
    scheme = RayPositions(**positions)
    frequencies = scheme.frequencies(head_dim, world_to_camera.dtype, world_to_camera.device)
    views = partial(_Views.of, scheme, (patches_x, patches_y), (image_width, image_height))
    queries = views((world_to_camera, K_px, raw_depth), known_depth if keys is None else None)
    of_keys = queries if keys is None else views(keys, known_depth)
    # 1. Queries, each view by itself.
    rays, depths = (x.unflatten(1, (-1, patches_x * patches_y)) for x in (queries.rays, queries.depths))
    same = torch.eye(4, dtype=rays.dtype, device=rays.device).expand(*rays.shape[:3], 4, 4)
    seen = []
    with highest_matmul_precision(raw_depth.device):
        own = scheme.coefficients(scheme.seen_from(same, queries.K, rays), depths, frequencies)
        # 2. All keys, for each view of the queries.
        for view in range(world_to_camera.shape[1]):
            relative = queries.poses[:, view, None] @ invert_se3(of_keys.poses)
            relative = relative.repeat_interleave(patches_x * patches_y, 1)
            tokens = scheme.seen_from(relative, queries.K[:, view], of_keys.rays)
            seen.append(scheme.coefficients(tokens, of_keys.depths, frequencies))
    return (own[0].flatten(1, 2), own[1].flatten(1, 2)), seen


class _Views(NamedTuple):
    """Views and the rays of their tokens in their own cameras."""

    poses: Float[Tensor, "B V 4 4"]
    K: Float[Tensor, "B V 3 3"]
    rays: Float[Tensor, "B N R 3"]
    depths: Float[Tensor, "B N R ends"]

    @classmethod
    def of(
        cls,
        scheme: RayPositions,
        patches: tuple[int, int],
        image_size: tuple[int | float, int | float],
        views: KeyViews,
        known_depth: Tensor | None,
    ) -> _Views:
        (poses, K_px, raw_depth), (patches_x, patches_y) = views, patches
        K = normalize_intrinsics(K_px, *image_size)
        y, x = torch.meshgrid(torch.arange(patches_y), torch.arange(patches_x), indexing="ij")
        places = torch.stack((x, y), -1).flatten(0, 1).to(raw_depth)  # (P, 2)
        size = torch.tensor(patches).to(raw_depth)
        corners = (places[:, None] + scheme.corners(raw_depth)) / size  # (P, R, 2), from 0 to 1
        rays = ray_directions(K[:, :, None, None], corners - 0.5)
        depths = depth_ends(raw_depth)[:, :, None].expand(-1, -1, scheme.rays, -1)
        if known_depth is not None:
            height, width = known_depth.shape[2:4]
            pixel = (corners * torch.tensor([width, height]).to(raw_depth) - 0.5).round().long()  # half to even
            column, row = pixel[..., 0].clamp(0, width - 1), pixel[..., 1].clamp(0, height - 1)
            known = known_depth[:, :, row, column].clamp(*KNOWN_DEPTHS).flatten(1, 2)
            known = known.expand(-1, -1, -1, depths.shape[-1])  # all ends are the same
            depths = torch.cat((known.to(depths), depths[:, known.shape[1] :]), 1)
        return cls(poses, K, rays.flatten(1, 2), depths)
