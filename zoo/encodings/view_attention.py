"""Views attend to each other by their cameras on the connector, that is, before the decoder sees them."""

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
from zoo.encodings.symmetries import ViewSymmetries
from zoo.encodings.view_mixer import ViewMixer, check_scenes
from zoo.errors import InputError


class ViewAttention(ViewMixer):
    """x + o(attention(norm(x))) over all 2D tokens of a scene, in PRoPE's complete published layout.

    Every token sees every other one, whichever view comes first: there is no causal mask, so a permutation of the
    views permutes the result and nothing else. A change of world cancels, no text is here to see it; with
    `pose_component: translation` alone that takes a reference view. The output projection o starts at zero, and with
    it the effect. Steps without a camera neither look nor are looked at.

    Args:
        width: D, of the tokens.
        head_dim: channels of a head, a multiple of 8 that divides the width.
        encoding: the rule: `PRoPE` if not given, `GTA`, `CaPE`, with their apply_to, pose_component, reference and
        scale. Its
            placement is not asked for: the layout is the published one, see `multiview_attention`.

    Raises:
        InputError: heads that don't fit, or an encoding with more than a matrix a camera.
    """

    def __init__(self, width: int, head_dim: int = 32, encoding: MatrixEncoding | None = None) -> None:
        super().__init__()
        if head_dim < 8 or head_dim % 8 or width % head_dim:
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

    @property
    def symmetries(self) -> ViewSymmetries:
        relative = self.encoding.pose_component != "translation"
        canonical = relative or self.reference is not None
        kept = self.encoding.symmetries
        return ViewSymmetries(relative, canonical, kept.scale, kept.intrinsics)

    def forward(
        self,
        tokens: Float[Tensor, "N D"],
        cameras: Cameras,
        grid: tuple[int, int, int] | Int[Tensor, " 3"],
        has_camera: Bool[Tensor, "B t"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """See `ViewMixer.forward`."""
        steps, rows, columns = check_scenes(tokens, cameras, grid)
        device = cameras.world_to_camera.device
        every = torch.arange(steps, device=device).expand(len(cameras), steps)
        present = torch.ones_like(every, dtype=torch.bool) if has_camera is None else has_camera.to(device)
        canonical = self.encoding.canonical(cameras.with_index(every.where(present, -1)))
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        acting = {
            name: None if m is None else m.to(dtype)
            for name, m in self.encoding.active_matrices(canonical)._asdict().items()
        }

        x = tokens.unflatten(0, (len(cameras), steps, rows * columns))
        if present.all():
            return (x + self._mixed(x, Matrices(**acting), rows, columns)).flatten(0, 2)
        scenes = []
        for i, scene in enumerate(x):  # they differ in what they attend to
            views = present[i].nonzero()[:, 0]
            own = Matrices(**{name: None if m is None else m[i : i + 1, views] for name, m in acting.items()})
            views = views.to(x.device)
            seeing = scene[None, views]
            scenes.append(scene.index_copy(0, views, (seeing + self._mixed(seeing, own, rows, columns))[0]))
        return torch.stack(scenes).flatten(0, 2)

    def _mixed(
        self, x: Float[Tensor, "B t n D"], matrices: Matrices, rows: int, columns: int
    ) -> Float[Tensor, "B t n D"]:
        """What is added to each token."""
        q, k, v = self.qkv(self.norm(x)).flatten(1, 2).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        mixed = multiview_attention(q, k, v, matrices, patches_x=columns, patches_y=rows)
        return self.o(mixed.transpose(1, 2).flatten(2)).to(x.dtype).view_as(x)
