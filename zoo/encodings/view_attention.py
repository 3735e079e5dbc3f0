"""Attention between views in the complete published layout of PRoPE (arXiv 2507.10496), and the mixer that uses it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras, normalize_intrinsics
from zoo.encodings.base import Grid, HasCamera, ViewMixer
from zoo.encodings.channel_blocks import ChannelBlock
from zoo.encodings.matrices import MatrixEncoding
from zoo.encodings.placements import Matrices
from zoo.encodings.prope import PRoPE, projection_matrices
from zoo.encodings.ray_encodings import RayEncoding
from zoo.encodings.symmetries import ViewSymmetries
from zoo.errors import InputError
from zoo.precision import highest_matmul_precision

ROPE_BASE = 100.0
KeyMask = Bool[Tensor, "B 1 1 N"] | None


class ViewAttention(ViewMixer):
    """x + o(attention(norm(x))) over all 2D tokens of a scene, in PRoPE's complete published layout.

    There is no causal mask, so a permutation of the views permutes the result. There is no text, so a change of world
    cancels without a reference view, except with `pose_component: translation`. The output projection o starts at zero,
    so the untrained model is unchanged. Temporal patches without a camera are excluded from the attention.

    Args:
        width: D, of the tokens.
        head_dim: Channels per head, a multiple of 8 that divides the width.
        encoding: `PRoPE` (the default), `GTA` or `CaPE`, with their apply_to, pose_component, reference and scale. Its
            placement is not used: the layout is the published one, see `multiview_attention`.

    Raises:
        InputError: Head_dim does not fit the width, or the encoding has more than one matrix per camera.

    Example:
        >>> import torch
        >>> from zoo import Cameras, ViewAttention
        >>> cameras = Cameras(torch.eye(4).repeat(1, 3, 1, 1), torch.eye(3).repeat(1, 3, 1, 1))
        >>> tokens = torch.randn(3 * 2 * 4, 64)  # 3 views of 2 x 4 tokens
        >>> mixer = ViewAttention(width=64, head_dim=16)
        >>> torch.equal(mixer(tokens, cameras, (3, 2, 4)), tokens)  # before training
        True
    """

    def __init__(self, width: int, head_dim: int = 32, encoding: MatrixEncoding | None = None) -> None:
        super().__init__()
        if head_dim < 8 or head_dim % 8 or width % head_dim:
            raise InputError(
                f"head_dim={head_dim} does not fit ViewAttention with {width} channels: choose a multiple of 8 that "
                "divides them"
            )
        if isinstance(encoding, RayEncoding):
            raise InputError("ViewAttention takes one matrix per camera, RayEncoding has one per token: use GTA")
        self.encoding = encoding or PRoPE()
        self.parts = (self.encoding,)
        self.head_dim = head_dim
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.o.weight)  # this one alone, or nothing would get a gradient

    @property
    def symmetries(self) -> ViewSymmetries:
        relative = self.encoding.pose_component != "translation"
        canonical = relative or self.encoding.reference is not None
        of_encoding = self.encoding.symmetries
        return ViewSymmetries(relative, canonical, of_encoding.scale, of_encoding.intrinsics)

    def forward(
        self, tokens: Float[Tensor, "N D"], cameras: Cameras, grid: Grid, has_camera: HasCamera = None
    ) -> Float[Tensor, "N D"]:
        """Add the attention between the views, see `ViewMixer.forward`."""
        steps, rows, columns = (int(side) for side in grid)
        views = torch.arange(steps, device=cameras.world_to_camera.device).expand(len(cameras), steps)
        if has_camera is not None:
            views = views.where(has_camera, -1)
        canonical = self.encoding.canonical(cameras.with_token_runs(views, None))
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        matrices = {term: m.to(dtype) for term, m in self.encoding.active_matrices(canonical).items()}

        x = tokens.unflatten(0, (len(cameras), steps, rows * columns))
        if has_camera is None:
            return (x + self._attention(x, matrices, rows, columns)).flatten(0, 2)
        # a scene without any camera attends to all, since a softmax over nothing is NaN; its tokens stay as they are
        seen = has_camera | ~has_camera.any(1, keepdim=True)
        keys = seen.repeat_interleave(rows * columns, 1, output_size=steps * rows * columns)[:, None, None]
        mixed = x + self._attention(x, matrices, rows, columns, keys)
        return torch.where(has_camera[..., None, None], mixed, x).flatten(0, 2)

    def _attention(
        self, x: Float[Tensor, "B t n D"], matrices: Matrices, rows: int, columns: int, keys: KeyMask = None
    ) -> Float[Tensor, "B t n D"]:
        qkv = self.qkv(self.norm(x.to(self.norm.weight.dtype)))
        q, k, v = qkv.flatten(1, 2).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        out = multiview_attention(q, k, v, matrices, patches_x=columns, patches_y=rows, keys=keys)
        return self.o(out.transpose(1, 2).flatten(2)).to(x.dtype).view_as(x)


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
    """Compute attention with PRoPE on half of each head's channels and RoPE over the image on the other half.

    Channels 0 ... D/2: q' = P^T q, k' = P^-1 k, v' = P^-1 v, o' = P o with P = lift(K) V, in groups of four. The next
    D/4: RoPE over patch columns x; the last D/4: RoPE over patch rows y (base 100, pairs (c, c + D/8)), on q, k and v,
    with the inverse on the output. Source: arXiv 2507.10496.

    Args:
        q: Queries, ordered by camera, patch row and patch column; N = C * patches_y * patches_x.
        k: Keys in the same order.
        v: Values in the same order.
        world_to_camera: Rigid poses, OpenCV axes.
        K_px: Intrinsics in pixels of the image, skew ignored; None omits them (GTA).
        patches_x: Patches per row.
        patches_y: Patches per column.
        image_width: In pixels.
        image_height: In pixels.
        is_causal: Mask later tokens.

    Returns:
        The output, in the dtype of q; computed in the widest dtype of q and the cameras, at least float32.

    Raises:
        ValueError: D is not a multiple of 8, or N is not C * patches_y * patches_x.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 1, 2, 12, 16).double()  # 2 heads; 2 cameras of 3 x 2 patches
        >>> V = torch.eye(4).double().repeat(1, 2, 1, 1)
        >>> V[:, 1, 0, 3] = 0.5
        >>> size = {"patches_x": 3, "patches_y": 2, "image_width": 42, "image_height": 28}
        >>> out = prope_attention(q, k, v, V, None, **size)
        >>> world = torch.eye(4).double()
        >>> world[:3, 3] = torch.tensor([1.0, -2.0, 3.0])
        >>> torch.allclose(out, prope_attention(q, k, v, V @ world, None, **size))  # a change of world cancels
        True
    """
    K = None if K_px is None else normalize_intrinsics(K_px, image_width, image_height)
    with highest_matmul_precision(q.device):
        P, P_inverse = projection_matrices(world_to_camera, K)
    matrices = {"q": P.mT, "k": P_inverse, "v": P_inverse, "o": P}
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
    keys: KeyMask = None,
) -> Float[Tensor, "B H N D"]:
    """Compute `prope_attention` with other matrices than PRoPE's.

    Args:
        q: Queries, see `prope_attention`.
        k: Keys.
        v: Values.
        matrices: For column vectors, one per camera; a term without matrices keeps its first D/2 channels.
        patches_x: Patches per row.
        patches_y: Patches per column.
        is_causal: Mask later tokens.
        keys: The keys that are attended to; None is all.

    Raises:
        ValueError: See `prope_attention`.
    """
    given = next(iter(matrices.values()))
    num_cameras, num_patches = given.shape[1], patches_x * patches_y
    if q.shape[-1] % 8:
        raise ValueError(f"PRoPE's layout requires heads with a multiple of 8 channels, got {q.shape[-1]}")
    if q.shape[2] != num_cameras * num_patches:
        raise ValueError(
            f"{num_cameras} cameras of {patches_y} x {patches_x} patches are "
            f"{num_cameras * num_patches} tokens, got {q.shape[2]}"
        )
    dtype = torch.promote_types(torch.promote_types(q.dtype, torch.float32), given.dtype)
    cos, sin = _image_rope(patches_x, patches_y, q.shape[-1] // 8, dtype, q.device)

    def transform(x: Tensor, term: str, sin: Tensor) -> Tensor:
        tokens = x.to(dtype).transpose(1, 2).unflatten(1, (num_cameras, num_patches))  # B C T H D
        half, *pairs = tokens.split((x.shape[-1] // 2, *[x.shape[-1] // 8] * 4), -1)
        parts = [_multiply(half, matrices[term].mT.to(dtype)) if term in matrices else half]
        for axis, (a, b) in enumerate((pairs[:2], pairs[2:])):
            parts.append(torch.addcmul(a * cos[axis], b, sin[axis], value=-1))
            parts.append(torch.addcmul(b * cos[axis], a, sin[axis]))
        return torch.cat(parts, -1).flatten(1, 2).transpose(1, 2).to(q.dtype)

    q_k_v = [transform(x, term, sin) for x, term in ((q, "q"), (k, "k"), (v, "v"))]
    output = F.scaled_dot_product_attention(q_k_v[0], q_k_v[1], q_k_v[2], attn_mask=keys, is_causal=is_causal)
    return transform(output, "o", -sin)


def _multiply(x: Float[Tensor, "B C T H D"], matrices: Float[Tensor, "B C 4 4"]) -> Float[Tensor, "B C T H D"]:
    """Multiplie groups of four channels, as row vectors, by the matrix of their camera."""
    block = ChannelBlock(range(x.shape[-1]))
    diagonal = block.block_diagonal(matrices.flatten(0, 1))
    rows = x.reshape(len(diagonal), x.shape[2] * x.shape[3], x.shape[-1])
    with highest_matmul_precision(x.device):
        products = [torch.bmm(rows[..., run], diagonal[:, :width, :width]) for run, width in block.runs]
    return torch.cat(products, -1).view(x.shape)


def _image_rope(
    patches_x: int, patches_y: int, num_frequencies: int, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "2 T 1 F"], Float[Tensor, "2 T 1 F"]]:
    """Compute cosine and sine of each patch's angles for x and y, negative as in the published code."""
    exponent = torch.arange(num_frequencies, dtype=torch.float64, device=device) / num_frequencies
    y, x = torch.meshgrid(torch.arange(patches_y, device=device), torch.arange(patches_x, device=device), indexing="ij")
    angle = -torch.stack((x.flatten(), y.flatten()))[..., None, None] * ROPE_BASE**-exponent
    return angle.cos().to(dtype), angle.sin().to(dtype)
