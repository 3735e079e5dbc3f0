"""The seam of every camera encoding: built once a forward pass, then shared by all layers of the decoder.

An encoding turns `Cameras` into an `EncodedCameras`, which acts on queries, keys, values and outputs, and on
nothing else of the attention: it works with every backend, and what enters the KV cache is encoded already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.encodings.placements import ChannelBlock


class EncodedCameras:
    """What an encoding does to one forward pass; this one does nothing, subclasses override what they need.

    All methods take and return (B, L, heads, D), token after token; with GQA, k and v have fewer heads than q
    and o.

    Attributes:
        num_tokens: L, the tokens that were encoded.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def before_rope(
        self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]
    ) -> tuple[Float[Tensor, "B L H D"], Float[Tensor, "B L G D"]]:
        """Queries and keys as RoPE is to get them."""
        return q, k

    def after_rope(
        self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]
    ) -> tuple[Float[Tensor, "B L H D"], Float[Tensor, "B L G D"]]:
        """Queries and keys as the attention, and the KV cache, are to get them."""
        return q, k

    def values(self, v: Float[Tensor, "B L G D"]) -> Float[Tensor, "B L G D"]:
        """Values as the attention, and the KV cache, are to get them."""
        return v

    def outputs(self, o: Float[Tensor, "B L H D"]) -> Float[Tensor, "B L H D"]:
        """The attention's outputs as the output projection is to get them."""
        return o


class CameraEncoding(nn.Module, ABC):
    """A way to tell attention about cameras. A module, since some encodings learn a number or two."""

    @property
    def needs_constant_time(self) -> bool:
        """Whether all views of a clip must have the same time position (`NoTime`)."""
        return False

    @abstractmethod
    def encode(
        self,
        cameras: Cameras,
        *,
        head_dim: int,
        mrope_section: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> EncodedCameras:
        """What all layers share in one forward pass.

        Args:
            cameras: with an `index` (B, L): the camera of each token of the sequence, -1 for none.
            head_dim: channels of an attention head.
            mrope_section: frequencies of the three sections of mRoPE (t, h, w).
            dtype: precision of the matrices, float32 or better whatever the hidden states are in.

        Raises:
            ValueError: cameras without an index, or heads that the placement doesn't fit.
        """


class CameraMatrices(EncodedCameras):
    """A 4 x 4 matrix a token on groups of four channels: row vectors times q, k, v and o, each optional.

    Args:
        index: the camera of each token, -1 for none: such tokens keep their bits.
        block: the channels.
        in_rope_frame: whether q and k are encoded after RoPE (else before).
        q, k, v, o: a matrix a camera, multiplied from the right; None leaves that term alone.
    """

    def __init__(
        self,
        index: Int[Tensor, "B L"],
        block: ChannelBlock,
        in_rope_frame: bool,
        *,
        q: Float[Tensor, "B C 4 4"] | None = None,
        k: Float[Tensor, "B C 4 4"] | None = None,
        v: Float[Tensor, "B C 4 4"] | None = None,
        o: Float[Tensor, "B C 4 4"] | None = None,
    ) -> None:
        super().__init__(index.shape[1])
        self.block = block
        self.in_rope_frame = in_rope_frame
        self.q, self.k, self.v, self.o = (None if m is None else _per_token(m, index) for m in (q, k, v, o))

    def before_rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (q, k) if self.in_rope_frame else (self._times(q, self.q), self._times(k, self.k))

    def after_rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (self._times(q, self.q), self._times(k, self.k)) if self.in_rope_frame else (q, k)

    def values(self, v: Tensor) -> Tensor:
        return self._times(v, self.v)

    def outputs(self, o: Tensor) -> Tensor:
        return self._times(o, self.o)

    def _times(
        self, x: Float[Tensor, "B L heads D"], matrices: Float[Tensor, "B L 4 4"] | None
    ) -> Float[Tensor, "B L heads D"]:
        if matrices is None:
            return x
        groups = self.block.gather(x)
        # autocast would take this product to half precision, and the poses with it
        with torch.autocast(x.device.type, enabled=False):
            turned = groups.to(matrices.dtype).flatten(2, 3) @ matrices
        return self.block.scatter(x, turned.to(x.dtype).view(groups.shape))


def _per_token(matrices: Float[Tensor, "B C 4 4"], index: Int[Tensor, "B L"]) -> Float[Tensor, "B L 4 4"]:
    batch, num_cameras = matrices.shape[:2]
    identity = torch.eye(4, dtype=matrices.dtype, device=matrices.device).expand(batch, 1, 4, 4)
    index = torch.where(index < 0, num_cameras, index)
    return torch.cat((matrices, identity), 1)[torch.arange(batch, device=index.device)[:, None], index]
