"""RayRoPE and URoPE between the 2D tokens of the views, before the decoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.cameras.rays import grid_centers
from zoo.cameras.token_runs import camera_runs
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.per_view_encoding import PerViewEncoding
from zoo.encodings.rayrope.rayrope import RayRoPE
from zoo.encodings.symmetries import ViewSymmetries
from zoo.encodings.view_attention import KeyMask, ViewAttention


class RayAttention(ViewAttention):
    """x + o(attention(norm(x))) over all 2D tokens of a scene, each view's keys being where it sees them.

    As `ViewAttention`, but for the encoding. RayRoPE predicts the depth of a token from norm(x), under supervision with
    `RayDepthPrediction`, or takes the known one.

    Args:
        width: D, of the tokens.
        head_dim: Channels per head, a multiple of 8 that divides the width.
        encoding: `RayRoPE` (the default, with predicted depth) or `URoPE`.

    Raises:
        InputError: Head_dim does not fit the width or the encoding.
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
        # 1. The camera and the place of each token; the host knows where views are without reading a tensor.
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
