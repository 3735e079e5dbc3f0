"""View mixers: branches before the decoder that add camera information to the 2D tokens of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.cameras import Cameras, ReferenceView, normalize_intrinsics
from zoo.cameras.cameras import camera_runs
from zoo.cameras.poses import invert_se3, so3_log
from zoo.cameras.rays import grid_centers, patch_directions, plucker
from zoo.encodings.base import DecoderLayout, HasCamera, HeadLayout, TokenGrid, ViewMixer, ViewSymmetries
from zoo.encodings.per_view import PerViewEncoding
from zoo.encodings.placements import CameraProducts, ChannelBlock, Matrices, block_diagonal, map_tokens
from zoo.encodings.prope import MatrixEncoding, PRoPE, RayEncoding, projection_matrices
from zoo.encodings.rayrope import RayRoPE
from zoo.errors import InputError, check_choice
from zoo.precision import highest_matmul_precision

# ---- Rays or poses as an additive embedding --------------------------------------------------------------------------

Rays = Literal["plucker", "directions"]


class RayEmbedding(ViewMixer):
    """x + MLP(ray), the baseline of all encodings: an embedding of each token's ray is added to its 2D token.

    The MLP has one hidden layer. Its last projection starts at zero, so the untrained model is unchanged.

    Args:
        width: Width of the tokens and of the hidden layer.
        rays: `plucker`: Plücker coordinates in the frame of the `reference` view. `directions`: K^-1 [u, v, 1], without
            the pose.
        reference: See `Cameras.reference_view`. null keeps the dataset's world frame.
    """

    def __init__(self, width: int, rays: Rays = "plucker", reference: ReferenceView | None = "first") -> None:
        super().__init__()
        check_choice("rays", rays, Rays)
        self.rays, self.reference = rays, reference
        self.embed = embedding(6 if rays == "plucker" else 3, width)

    @property
    def symmetries(self) -> ViewSymmetries:
        no_pose = self.rays == "directions"
        return ViewSymmetries(no_pose, canonical=no_pose or self.reference is not None, scale=no_pose, intrinsics=False)

    def forward(
        self, tokens: Float[Tensor, "N D"], cameras: Cameras, grid: TokenGrid, has_camera: HasCamera = None
    ) -> Float[Tensor, "N D"]:
        """Add the embedding of the rays, see `ViewMixer.forward`."""
        _, rows, columns = (int(side) for side in grid)
        cameras = among_known(cameras, has_camera)
        rays = patch_directions(cameras.K_normalized.flatten(0, 1).double(), rows, columns)
        if self.rays == "plucker":
            poses = cameras.to(dtype=torch.float64).canonical(self.reference).world_to_camera
            camera_to_world = invert_se3(poses.flatten(0, 1))[:, None, None]
            directions = (camera_to_world[..., :3, :3] @ rays[..., None])[..., 0]
            rays = plucker(directions, camera_to_world[..., :3, 3])
        embedding = self.embed(rays.to(next(self.parameters()).dtype))
        if has_camera is not None:
            embedding = embedding * has_camera.flatten()[:, None, None, None]
        return tokens + embedding.flatten(0, 2).to(tokens.dtype)


class PoseEmbedding(ViewMixer):
    """x + MLP(pose), a learned embedding of each view's camera: the same for all 2D tokens of a view.

    The MLP reads the rotation vector and the translation from the camera to the reference view, and with `intrinsics`
    the logarithms of the focal lengths and the principal point. It has one hidden layer. Its last projection starts at
    zero, so the untrained model is unchanged.

    Args:
        width: Width of the tokens and of the hidden layer.
        intrinsics: Whether the MLP also reads the intrinsics.
        reference: See `Cameras.reference_view`. null keeps the dataset's world frame.
    """

    def __init__(self, width: int, intrinsics: bool = True, reference: ReferenceView | None = "first") -> None:
        super().__init__()
        self.intrinsics, self.reference = intrinsics, reference
        self.embed = embedding(10 if intrinsics else 6, width)

    @property
    def symmetries(self) -> ViewSymmetries:
        return ViewSymmetries(False, self.reference is not None, scale=False, intrinsics=not self.intrinsics)

    def forward(
        self, tokens: Float[Tensor, "N D"], cameras: Cameras, grid: TokenGrid, has_camera: HasCamera = None
    ) -> Float[Tensor, "N D"]:
        """Add the embedding of the poses, see `ViewMixer.forward`."""
        _, rows, columns = (int(side) for side in grid)
        cameras = among_known(cameras, has_camera).to(dtype=torch.float64).canonical(self.reference)
        camera_to_reference, K = invert_se3(cameras.world_to_camera), cameras.K_normalized
        numbers = [so3_log(camera_to_reference[..., :3, :3]), camera_to_reference[..., :3, 3]]
        if self.intrinsics:
            numbers += [K.diagonal(dim1=-2, dim2=-1)[..., :2].log(), K[..., :2, 2]]
        added = self.embed(torch.cat(numbers, -1).to(next(self.parameters()).dtype))
        if has_camera is not None:
            added = added * has_camera[..., None]
        return (tokens.unflatten(0, (-1, rows * columns)) + added.flatten(0, 1)[:, None].to(tokens.dtype)).flatten(0, 1)


def embedding(inputs: int, width: int) -> nn.Sequential:
    """Return an MLP with one hidden layer whose last projection is zero."""
    first, last = nn.Linear(inputs, width), nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.GELU(), last)


def among_known(cameras: Cameras, has_camera: HasCamera) -> Cameras:
    """Return cameras whose reference view is chosen among the views with a camera."""
    if has_camera is None:
        return cameras
    views = torch.arange(has_camera.shape[1], device=has_camera.device)
    return cameras.with_token_runs(views.where(has_camera, -1), None)


# ---- Attention between views, in PRoPE's complete published layout (arXiv 2507.10496) --------------------------------

ROPE_BASE = 100.0
KeyMask = Bool[Tensor, "B 1 1 N"] | None


class ViewAttention(ViewMixer):
    """x + o(attention(norm(x))) over all 2D tokens of a scene, in PRoPE's complete published layout.

    There is no causal mask, so a permutation of the views permutes the result. There is no text, so a change of world
    cancels without a reference view, except with `pose_component: translation`. The output projection o starts at zero,
    so the untrained model is unchanged. Temporal patches without a camera are excluded from the attention.

    Args:
        width: D, the width of the tokens.
        head_dim: Channels per head, a multiple of 8 that divides the width.
        encoding: `PRoPE` (the default), `GTA` or `CaPE`, with their apply_to, pose_component, reference and scale. Its
            placement is not used, because the layout is the published one, see `multiview_attention`.

    Raises:
        InputError: The head_dim does not fit the width, or the encoding has more than one matrix per camera.

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
                f"head_dim={head_dim} does not fit {type(self).__name__} with {width} channels: choose a multiple of 8 "
                "that divides them"
            )
        if isinstance(encoding, RayEncoding):
            raise InputError("ViewAttention takes one matrix per camera, RayEncoding has one per token: use GTA")
        self.encoding = encoding or PRoPE()
        self.parts = (self.encoding,)
        self.head_dim = head_dim
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.o.weight)  # only this projection is zero, or nothing would get a gradient

    @property
    def symmetries(self) -> ViewSymmetries:
        relative = self.encoding.pose_component != "translation"
        canonical = relative or self.encoding.reference is not None
        of_encoding = self.encoding.symmetries
        return ViewSymmetries(relative, canonical, of_encoding.scale, of_encoding.intrinsics)

    def forward(
        self, tokens: Float[Tensor, "N D"], cameras: Cameras, grid: TokenGrid, has_camera: HasCamera = None
    ) -> Float[Tensor, "N D"]:
        """Add the attention between the views, see `ViewMixer.forward`."""
        steps, rows, columns = (int(side) for side in grid)
        views = torch.arange(steps, device=cameras.world_to_camera.device).expand(len(cameras), steps)
        if has_camera is not None:
            views = views.where(has_camera, -1)
        of_views = cameras.with_token_runs(views, None)
        x = tokens.unflatten(0, (len(cameras), steps, rows * columns))
        if has_camera is None:
            return (x + self._attention(x, of_views, rows, columns)).flatten(0, 2)
        # a scene without any camera attends to all, because a softmax over nothing is NaN; its tokens are not changed
        seen = has_camera | ~has_camera.any(1, keepdim=True)
        keys = seen.repeat_interleave(rows * columns, 1, output_size=steps * rows * columns)[:, None, None]
        mixed = x + self._attention(x, of_views, rows, columns, keys)
        return torch.where(has_camera[..., None, None], mixed, x).flatten(0, 2)

    def _attention(
        self, x: Float[Tensor, "B t n D"], cameras: Cameras, rows: int, columns: int, keys: KeyMask = None
    ) -> Float[Tensor, "B t n D"]:
        hidden = self.norm(x.to(self.norm.weight.dtype)).flatten(1, 2)
        q, k, v = self.qkv(hidden).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        out = self.attend(q, k, v, hidden, cameras, rows, columns, keys)
        return self.o(out.transpose(1, 2).flatten(2)).to(x.dtype).view_as(x)

    def attend(
        self,
        q: Float[Tensor, "B H N d"],
        k: Float[Tensor, "B H N d"],
        v: Float[Tensor, "B H N d"],
        hidden: Float[Tensor, "B N D"],
        cameras: Cameras,
        rows: int,
        columns: int,
        keys: KeyMask = None,
    ) -> Float[Tensor, "B H N d"]:
        """Attend between views.

        Args:
            q: Queries, ordered by view, row and column.
            k: Keys.
            v: Values.
            hidden: Hidden states that q, k and v are projected from.
            cameras: One per view. The `index` of a view without a valid camera is -1.
            rows: Rows of tokens in a view.
            columns: Columns of tokens in a view.
            keys: Mask of the keys. None attends to all.
        """
        dtype = torch.promote_types(q.dtype, torch.float32)
        canonical = self.encoding.canonical(cameras)
        matrices = {term: m.to(dtype) for term, m in self.encoding.active_matrices(canonical).items()}
        return multiview_attention(q, k, v, matrices, patches_x=columns, patches_y=rows, keys=keys)


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
        K_px: Intrinsics in pixels of the image, skew ignored. None omits them (GTA).
        patches_x: Patches per row.
        patches_y: Patches per column.
        image_width: Image width in pixels.
        image_height: Image height in pixels.
        is_causal: Mask later tokens.

    Returns:
        The output in the dtype of q. It is computed in the widest dtype of q and the cameras, at least float32.

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
    others: int = 0,
) -> Float[Tensor, "B H N D"]:
    """Compute `prope_attention` with other matrices than PRoPE's.

    Args:
        q: Queries, see `prope_attention`.
        k: Keys.
        v: Values.
        matrices: Matrices for column vectors, one per camera. A term without matrices keeps its first D/2 channels.
        patches_x: Patches per row.
        patches_y: Patches per column.
        is_causal: Mask later tokens.
        keys: Mask of the keys. None attends to all.
        others: Number of tokens before those of the patches. They keep all of their channels.

    Raises:
        ValueError: See `prope_attention`.
    """
    given = next(iter(matrices.values()))
    num_cameras, num_patches = given.shape[1], patches_x * patches_y
    if q.shape[-1] % 8:
        raise ValueError(f"PRoPE's layout requires heads with a multiple of 8 channels, got {q.shape[-1]}")
    if q.shape[2] - others != num_cameras * num_patches:
        raise ValueError(
            f"{num_cameras} cameras of {patches_y} x {patches_x} patches are "
            f"{num_cameras * num_patches} tokens, got {q.shape[2] - others}"
        )
    dtype = torch.promote_types(torch.promote_types(q.dtype, torch.float32), given.dtype)
    layout = PublishedLayout(q[:, :, others:], *_image_rope(patches_x, patches_y, q.shape[-1] // 8, dtype, q.device))

    def transform(x: Tensor, term: str, layout: PublishedLayout) -> Tensor:
        rows = [m.mT.to(dtype).flatten(0, 1) for name, m in matrices.items() if name == term]  # for row vectors
        diagonal = [block_diagonal(m, layout.parts) for m in rows]
        mapped = map_tokens(x[:, :, others:].to(dtype).transpose(1, 2), layout, diagonal).transpose(1, 2).to(q.dtype)
        return mapped if not others else torch.cat((x[:, :, :others].to(q.dtype), mapped), 2)

    # q, k and v get no names here, so that their memory is free for the transformed output
    output = F.scaled_dot_product_attention(
        transform(q, "q", layout), transform(k, "k", layout), transform(v, "v", layout), keys, is_causal=is_causal
    )
    return transform(output, "o", layout.transposed())


class PublishedLayout(CameraProducts):
    """The published layout's map of tokens: matrices on the first half of each head, RoPE on the second.

    Args:
        q: Queries, used only for their shape.
        cos: Cosine of the angle of each channel of the second half, by patch.
        sin: Sine of the same angle, by which the other channel of the pair is multiplied.
    """

    def __init__(self, q: Float[Tensor, "B H N D"], cos: Float[Tensor, "T 1 F"], sin: Float[Tensor, "T 1 F"]) -> None:
        batch, _, length, width = q.shape
        super().__init__([slice(0, batch * length)], ChannelBlock(range(width // 2)).parts(q.device))
        self.cos, self.sin = cos, sin

    def write(self, x: Float[Tensor, "B N H D"], out: Tensor, matrices: Sequence[Tensor]) -> None:
        if matrices:
            super().write(x, out, matrices)
        source, target = (each.unflatten(1, (-1, len(self.cos)))[..., x.shape[-1] // 2 :] for each in (x, out))
        target.mul_(self.cos)  # all channels at once, because a CPU is slow on few adjacent channels
        given, written, sin = (each.chunk(4, -1) for each in (source, target, self.sin))  # x, x', y, y'
        for own, other in enumerate((1, 0, 3, 2)):
            written[own].addcmul_(given[other], sin[own])

    def transposed(self) -> PublishedLayout:
        other = copy(self)
        other.sin = -self.sin
        return other


def _image_rope(
    patches_x: int, patches_y: int, num_frequencies: int, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "T 1 F"], Float[Tensor, "T 1 F"]]:
    """Compute the cosine and sine of `PublishedLayout`, for negative angles as in the published code."""
    exponent = torch.arange(num_frequencies, dtype=torch.float64, device=device) / num_frequencies
    y, x = torch.meshgrid(torch.arange(patches_y, device=device), torch.arange(patches_x, device=device), indexing="ij")
    of_x, of_y = (place.flatten()[:, None, None] * -(ROPE_BASE**-exponent) for place in (x, y))
    cos, sin = torch.cat((of_x, of_x, of_y, of_y), -1).cos(), torch.cat((-of_x, of_x, -of_y, of_y), -1).sin()
    return cos.to(dtype), sin.to(dtype)


# ---- Attention between views by RayRoPE or URoPE ---------------------------------------------------------------------


class RayAttention(ViewAttention):
    """x + o(attention(norm(x))) over all 2D tokens of a scene, with keys encoded for the view that attends to them.

    It is `ViewAttention` with another encoding. RayRoPE predicts the depth of a token from norm(x), supervised by
    `RayDepthPrediction`, or uses the known depth.

    Args:
        width: D, the width of the tokens.
        head_dim: Channels per head, a multiple of 8 that divides the width.
        encoding: `RayRoPE` (the default, with predicted depth) or `URoPE`.

    Raises:
        InputError: The head_dim does not fit the width or the encoding.
    """

    def __init__(self, width: int, head_dim: int = 32, encoding: PerViewEncoding | None = None) -> None:
        super().__init__(width, head_dim)
        encoding = encoding or RayRoPE()
        self.head = HeadLayout.in_row(head_dim, (head_dim // 2,))
        heads = width // head_dim
        encoding.bind_to_decoder(DecoderLayout(width, 1, heads, heads, self.head), [0])
        self.encoding, self.parts = encoding, (encoding,)  # type: ignore[assignment]

    @property
    def symmetries(self) -> ViewSymmetries:
        of_encoding = self.encoding.symmetries
        return ViewSymmetries(True, canonical=True, scale=of_encoding.scale, intrinsics=of_encoding.intrinsics)

    def raw_depth(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N ends"] | None:
        encoding = self.encoding
        if not (isinstance(encoding, RayRoPE) and encoding.predicts_depth):
            return None
        return encoding.raw_depth(0, self.norm(tokens.to(self.norm.weight.dtype)))

    def attend(
        self,
        q: Float[Tensor, "B H N d"],
        k: Float[Tensor, "B H N d"],
        v: Float[Tensor, "B H N d"],
        hidden: Float[Tensor, "B N D"],
        cameras: Cameras,
        rows: int,
        columns: int,
        keys: KeyMask = None,
    ) -> Float[Tensor, "B H N d"]:
        encoding, views, count = self.encoding, cameras.required("index"), rows * columns
        assert isinstance(encoding, PerViewEncoding)
        # 1. Camera and place of each token. The host knows where views are without reading a tensor.
        numbers = torch.arange(views.shape[1]).repeat_interleave(count).expand(len(views), -1)
        index = views.repeat_interleave(count, 1, output_size=views.shape[1] * count)
        centers = grid_centers(rows, columns, cameras.world_to_camera).flatten(0, 1)
        centers = centers.repeat(views.shape[1], 1).expand(*index.shape, 2)
        sizes = torch.tensor([1 / columns, 1 / rows], dtype=torch.float64)
        sizes = sizes.to(index.device, non_blocking=True).expand(*index.shape, 2)
        located = cameras.with_token_runs(index, camera_runs(numbers)).with_tokens(centers, patch_sizes=sizes)
        # 2. Attention without a causal mask.
        dtype = torch.promote_types(q.dtype, torch.float32)
        encoded = encoding.encode_canonical(encoding.canonical(located), self.head, dtype, is_causal=False)
        acting = encoded.at_layer(0, hidden, (hidden, hidden))
        assert acting is not None
        mask = None if keys is None else keys.expand(-1, -1, q.shape[2], -1)
        return acting.attend(_attention, q, k, v, mask)[0].transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2), None
