"""Attention between the views of a scene on their 2D tokens, before the decoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.encodings.base import Grid, HasCamera, ViewMixer
from zoo.encodings.matrices import MatrixEncoding, PRoPE
from zoo.encodings.multiview import multiview_attention
from zoo.encodings.placements import Matrices
from zoo.encodings.rays import RayEncoding
from zoo.encodings.symmetries import ViewSymmetries
from zoo.errors import InputError


class ViewAttention(ViewMixer):
    """x + o(attention(norm(x))) over all 2D tokens of a scene, in PRoPE's complete published layout.

    There is no causal mask, so a permutation of the views permutes the result. There is no text, so a change of world
    cancels without a reference view, except with `pose_component: translation`. The output projection o starts at zero,
    so the untrained model is unchanged. Temporal patches without a camera are excluded from the attention.

    Args:
        width: D, of the tokens.
        head_dim: channels per head, a multiple of 8 that divides the width.
        encoding: `PRoPE` (the default), `GTA` or `CaPE`, with their apply_to, pose_component, reference and scale. Its
            placement is not used: the layout is the published one, see `multiview_attention`.

    Raises:
        InputError: head_dim does not fit the width, or the encoding has more than one matrix per camera.

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
        """Adds the attention between the views, see `ViewMixer.forward`."""
        steps, rows, columns = (int(side) for side in grid)
        device = cameras.world_to_camera.device
        views = torch.arange(steps, device=device).expand(len(cameras), steps)
        present = torch.ones_like(views, dtype=torch.bool) if has_camera is None else has_camera.to(device)
        canonical = self.encoding.canonical(cameras.with_index(views.where(present, -1)))
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        matrices = {term: m.to(dtype) for term, m in self.encoding.active_matrices(canonical).items()}

        x = tokens.unflatten(0, (len(cameras), steps, rows * columns))
        if present.all():
            return (x + self._attention(x, matrices, rows, columns)).flatten(0, 2)
        scenes = []
        for i, scene in enumerate(x):  # one by one, because the number of views differs
            own = present[i].nonzero()[:, 0]
            own_matrices = {term: m[i : i + 1, own] for term, m in matrices.items()}
            own = own.to(x.device)
            own_tokens = scene[None, own]
            mixed = own_tokens + self._attention(own_tokens, own_matrices, rows, columns)
            scenes.append(scene.index_copy(0, own, mixed[0]))
        return torch.stack(scenes).flatten(0, 2)

    def _attention(
        self, x: Float[Tensor, "B t n D"], matrices: Matrices, rows: int, columns: int
    ) -> Float[Tensor, "B t n D"]:
        qkv = self.qkv(self.norm(x.to(self.norm.weight.dtype)))
        q, k, v = qkv.flatten(1, 2).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        out = multiview_attention(q, k, v, matrices, patches_x=columns, patches_y=rows)
        return self.o(out.transpose(1, 2).flatten(2)).to(x.dtype).view_as(x)
