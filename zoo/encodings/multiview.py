"""Multi-view attention in PRoPE's complete published layout, arXiv 2507.10496."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras import normalize_intrinsics
from zoo.encodings.channels import ChannelBlock, multiply, multiply_gradient, turn_pairs
from zoo.encodings.matrices import Matrices
from zoo.encodings.prope import projection_matrices
from zoo.precision import highest_matmul_precision

ROPE_BASE = 100.0


def prope_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    world_to_camera: Float[Tensor, "B C 4 4"],
    K_px: Float[Tensor, "B C 3 3"] | None,
    *,
    patches_x: int,
    patches_y: int,
    image_width: int | float,
    image_height: int | float,
    is_causal: bool = False,
) -> Float[Tensor, "B H N D"]:
    """Attention in which half of a head's channels take PRoPE's matrices and half RoPE over the image.

    The first D/2 channels: q' = P^T q, k' = P^-1 k, v' = P^-1 v, o' = P o with P = lift(K) V, four channels
    at a time. The next D/4: RoPE over patch columns x; the last D/4: over patch rows y (base 100, pairs
    (c, c + D/8)), on q, k and v, and inversely on the output. Source: arXiv 2507.10496.

    Args:
        q, k, v: tokens in the order camera, patch row, patch column: N = C * patches_y * patches_x.
        world_to_camera: rigid poses, OpenCV axes.
        K_px: intrinsics in pixels of the image, skew ignored; None leaves them out (the rule of GTA).
        patches_x, patches_y: patches a row, and rows.
        image_width, image_height: pixels.
        is_causal: mask out later tokens.

    Returns:
        The output, in the dtype of q. Inside, the widest of q's and the cameras' dtypes, at least float32.

    Raises:
        ValueError: heads whose width isn't a multiple of 8, or tokens that aren't C * patches_y * patches_x.
    """
    K = None if K_px is None else normalize_intrinsics(K_px, image_width, image_height)
    with highest_matmul_precision(q.device):
        P, P_inverse = projection_matrices(world_to_camera, K)
    matrices = Matrices(q=P.mT, k=P_inverse, v=P_inverse, o=P)
    return multiview_attention(q, k, v, matrices, patches_x=patches_x, patches_y=patches_y, is_causal=is_causal)


def multiview_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    matrices: Matrices,
    *,
    patches_x: int,
    patches_y: int,
    is_causal: bool = False,
) -> Float[Tensor, "B H N D"]:
    """The same layout with any matrices, one a camera, in the place of PRoPE's; a term without any keeps its channels.

    Raises:
        ValueError: as `prope_attention`.
    """
    given = next(each for each in matrices if each is not None)
    num_cameras, num_patches = given.shape[1], patches_x * patches_y
    if q.shape[-1] % 8:
        raise ValueError(f"PRoPE's layout needs heads with a multiple of 8 channels, got {q.shape[-1]}")
    if q.shape[2] != num_cameras * num_patches:
        raise ValueError(
            f"{num_cameras} cameras of {patches_y} x {patches_x} patches are "
            f"{num_cameras * num_patches} tokens, got {q.shape[2]}"
        )
    dtype = torch.promote_types(torch.promote_types(q.dtype, torch.float32), given.dtype)
    identity = torch.eye(4, dtype=dtype, device=given.device).expand_as(given)
    rows = ((identity if each is None else each.mT.to(dtype)).flatten(0, 1) for each in matrices)  # of row vectors
    of_q, of_k, of_v, of_o = map(_half(q).along_diagonal, rows)
    cos, sin = _image_rope(patches_x, patches_y, q.shape[-1] // 8, dtype, q.device)

    def mapped(x: Tensor, rows: Tensor, sin: Tensor) -> Tensor:
        return _Layout.apply(x.to(dtype), rows, cos, sin).to(q.dtype)

    output = F.scaled_dot_product_attention(
        mapped(q, of_q, sin), mapped(k, of_k, sin), mapped(v, of_v, sin), is_causal=is_causal
    )
    return mapped(output, of_o, -sin)


def _image_rope(
    patches_x: int, patches_y: int, num_frequencies: int, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "2 T 1 F"], Float[Tensor, "2 T 1 F"]]:
    """Cosine and sine of the angles that each patch's pairs turn by, for x and for y: backwards, as published."""
    exponent = torch.arange(num_frequencies, dtype=torch.float64, device=device) / num_frequencies
    y, x = torch.meshgrid(torch.arange(patches_y, device=device), torch.arange(patches_x, device=device), indexing="ij")
    angle = -torch.stack((x.flatten(), y.flatten()))[..., None, None] * ROPE_BASE**-exponent
    return angle.cos().to(dtype), angle.sin().to(dtype)


class _Layout(torch.autograd.Function):
    """The layout's linear map of one tensor: matrices on half of the channels, turns on the others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(x if matrices.requires_grad else None, matrices, cos, sin)
        source = x.transpose(1, 2)  # token after token, which attention's projections are as well
        target = torch.empty_like(source, memory_format=torch.contiguous_format)
        with highest_matmul_precision(x.device):
            multiply(source.flatten(0, 1), target.flatten(0, 1), _half(x).slices, matrices)
        of_source, of_target = (each.unflatten(1, (-1, cos.shape[1])) for each in (source, target))  # B C T H D
        for axis in (0, 1):
            turn_pairs(of_source, of_target, (2 + axis) * x.shape[-1] // 4, cos[axis], sin[axis])
        return target.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, matrices, cos, sin = ctx.saved_tensors
        grad_matrices = None
        if x is not None:
            tokens, grad = (each.transpose(1, 2).flatten(0, 1) for each in (x, grads[0]))
            grad_matrices = multiply_gradient(tokens, grad, _half(x).slices, matrices)
        return _Layout.apply(grads[0], matrices.mT, cos, -sin), grad_matrices, None, None


def _half(x: Float[Tensor, "B H N D"]) -> ChannelBlock:
    return ChannelBlock(x.shape[-1], 0, x.shape[-1] // 2)
