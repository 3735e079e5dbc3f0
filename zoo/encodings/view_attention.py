"""The `connector` placement: views attend to each other, by their cameras, before the decoder sees them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from zoo.cameras import Cameras
from zoo.encodings.matrices import Matrices, MatrixEncoding
from zoo.encodings.multiview import multiview_attention
from zoo.encodings.prope import PRoPE
from zoo.encodings.rays import RayEncoding
from zoo.encodings.views import ViewMixer, check_scene
from zoo.errors import InputError


class ViewAttention(ViewMixer):
    """x + o(attention(norm(x))) over all 2D tokens of a scene, in PRoPE's complete published layout.

    Every token sees every other one, whichever view comes first: there is no causal mask, so a permutation of the
    views permutes the result and nothing else. A change of world cancels, as between views always; no text is here
    to see it. The output projection o starts at zero, and with it the effect. Steps without a camera neither look nor
    are looked at.

    Args:
        width: D, of the tokens.
        head_dim: channels of a head, a multiple of 8 that divides the width.
        encoding: the rule: `PRoPE` if not given, `GTA`, `CaPE`, with their terms, parts, reference and scale. Its
            placement is not asked for: the layout is the published one, see `multiview_attention`.

    Raises:
        InputError: heads that don't fit, or an encoding with more than a matrix a camera.
    """

    def __init__(self, width: int, head_dim: int = 32, encoding: MatrixEncoding | None = None) -> None:
        super().__init__()
        if head_dim % 8 or width % head_dim:
            raise InputError(
                f"the views' attention has {width} channels: heads of {head_dim} don't fit, choose a head_dim that "
                "is a multiple of 8 and divides them"
            )
        if isinstance(encoding, RayEncoding):
            raise InputError("RayEncoding has a matrix a token; the published layout takes one a camera, such as GTA's")
        self.encoding = encoding or PRoPE()
        self.reference = self.encoding.reference
        self.head_dim = head_dim
        self.norm = Qwen2_5_VLRMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.o.weight)  # it alone, or nothing would ever learn

    def forward(
        self,
        tokens: Float[Tensor, "N D"],
        cameras: Cameras,
        grid: tuple[int, int, int] | Int[Tensor, " 3"],
        has_camera: Bool[Tensor, " t"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """See `ViewMixer.forward`."""
        steps, rows, columns = check_scene(tokens, cameras, grid)
        every = torch.arange(steps, device=cameras.world_to_camera.device)
        present = every if has_camera is None else every[has_camera.to(every.device)]
        index = every if has_camera is None else every.where(has_camera.to(every.device), -1)
        canonical = self.encoding.canonical(cameras.with_index(index[None]))
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        acting = self.encoding.acting(canonical)._asdict()
        matrices = Matrices(**{name: None if m is None else m[:, present].to(dtype) for name, m in acting.items()})

        x, present = tokens.unflatten(0, (steps, -1)), present.to(tokens.device)
        seeing = x[present].flatten(0, 1)
        q, k, v = self.qkv(self.norm(seeing)).unflatten(-1, (3, -1, self.head_dim)).permute(1, 2, 0, 3)[:, None]
        mixed = multiview_attention(q, k, v, matrices, patches_x=columns, patches_y=rows)
        added = self.o(mixed[0].transpose(0, 1).flatten(1)).to(tokens.dtype)
        return x.index_copy(0, present, (seeing + added).unflatten(0, (-1, rows * columns))).flatten(0, 1)
