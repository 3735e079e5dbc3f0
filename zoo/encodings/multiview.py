"""Multi-view attention in PRoPE's complete published layout, arXiv 2507.10496."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras import normalise_intrinsics
from zoo.encodings.matrices import Matrices
from zoo.encodings.prope import projection_matrices
from zoo.precision import full_precision

ROPE_BASE = 100.0
CACHED = 2**17  # numbers that stay near a CPU core


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
    K = None if K_px is None else normalise_intrinsics(K_px, image_width, image_height)
    with torch.autocast(q.device.type, enabled=False):
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
    of_q, of_k, of_v, of_o = (identity if each is None else each.mT.to(dtype) for each in matrices)  # of row vectors
    cos, sin = _image_rope(patches_x, patches_y, q.shape[-1] // 8, dtype, q.device)

    def turn(x: Tensor, rows: Tensor, sin: Tensor) -> Tensor:
        return _Turn.apply(x.to(dtype), rows, cos, sin).to(q.dtype)

    output = F.scaled_dot_product_attention(
        turn(q, of_q, sin), turn(k, of_k, sin), turn(v, of_v, sin), is_causal=is_causal
    )
    return turn(output, of_o, -sin)


def _image_rope(
    patches_x: int, patches_y: int, num_frequencies: int, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "2 T F"], Float[Tensor, "2 T F"]]:
    """Cosine and sine of the angles of each patch, for x and for y."""
    exponent = torch.arange(num_frequencies, dtype=torch.float64, device=device) / num_frequencies
    y, x = torch.meshgrid(torch.arange(patches_y, device=device), torch.arange(patches_x, device=device), indexing="ij")
    angle = torch.stack((x.flatten(), y.flatten()))[..., None] * ROPE_BASE**-exponent
    return angle.cos().to(dtype), angle.sin().to(dtype)


class _Turn(torch.autograd.Function):
    """The layout's linear map of one tensor, written piece by piece into one output.

    New tensors are what it costs: plain operators would make one a piece and another to concatenate them, and
    as many again for the gradient, which is the same map with matrices transposed and angles negated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(x if matrices.requires_grad else None, matrices, cos, sin)
        num_cameras, num_patches, half = matrices.shape[1], cos.shape[1], x.shape[-1] // 2
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        source = x.unflatten(2, (num_cameras, num_patches))  # B H C T D
        target = out.unflatten(2, (num_cameras, num_patches))
        # on a CPU new memory costs more than the product: a few cameras after the other use the same
        step = num_cameras if x.is_cuda else max(1, CACHED * num_cameras // max(1, x.numel()))
        with full_precision(x.device):
            for first in range(0, num_cameras, step):
                some = slice(first, first + step)
                part = source[:, :, some, :, :half]
                groups = part.reshape(*part.shape[:3], -1, 4)
                target[:, :, some, :, :half] = (groups @ matrices[:, None, some]).view(part.shape)
        for axis in (0, 1):
            first = half + axis * half // 2
            middle, last = first + half // 4, first + half // 2
            a, b = source[..., first:middle], source[..., middle:last]
            torch.mul(a, cos[axis], out=target[..., first:middle]).addcmul_(b, sin[axis])
            torch.mul(b, cos[axis], out=target[..., middle:last]).addcmul_(a, sin[axis], value=-1)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, matrices, cos, sin = ctx.saved_tensors
        grad_x = _Turn.apply(grads[0], matrices.mT, cos, -sin)
        grad_matrices = None
        if x is not None:
            half, split = x.shape[-1] // 2, (matrices.shape[1], cos.shape[1])
            groups = (t[..., :half].unflatten(2, split).unflatten(-1, (-1, 4)) for t in (x, grads[0]))
            grad_matrices = torch.einsum("bhctgi,bhctgj->bcij", *groups)
        return grad_x, grad_matrices, None, None
