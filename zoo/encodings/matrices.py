"""A 4 x 4 matrix a token, on queries, keys, values and outputs: what most camera encodings come down to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Qwen2_5_VLTextModel

from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding, EncodedCameras
from zoo.encodings.placements import ChannelBlock, Fraction, Placement
from zoo.encodings.symmetries import Symmetries


class Matrices(NamedTuple):
    """What each camera does to column vectors of four channels: q' = M q, and so on; None leaves a term alone."""

    q: Float[Tensor, "B C 4 4"] | None = None
    k: Float[Tensor, "B C 4 4"] | None = None
    v: Float[Tensor, "B C 4 4"] | None = None
    o: Float[Tensor, "B C 4 4"] | None = None


class MatrixEncoding(CameraEncoding):
    """Encodings by a 4 x 4 matrix a camera: subclasses say which, a placement says where.

    Args:
        placement: the channels; None is `Fraction(0, 0.5)`, the first half of a head.
        terms: queries and keys, values and outputs, or both.
        parts: of the pose. A translation alone is no group action: even a change of world shows then.
        world: `reference` and `scale`, see `CameraEncoding`.
    """

    def __init__(
        self,
        placement: Placement | None = None,
        terms: Literal["qkvo", "qk", "vo"] = "qkvo",
        parts: Literal["both", "rotation", "translation"] = "both",
        **world: Any,
    ) -> None:
        super().__init__(**world)
        self.placement = placement or Fraction(0.0, 0.5)
        self.terms, self.parts = terms, parts

    @abstractmethod
    def matrices(self, cameras: Cameras) -> Matrices:
        """The matrices of cameras in float64, as this encoding sees them."""

    @property
    def needs_constant_time(self) -> bool:
        return self.placement.needs_constant_time

    @property
    def symmetries(self) -> Symmetries:
        relative = self.parts != "translation"
        return Symmetries(
            world_views=relative and self.placement.keeps_world,
            world_text=False,
            canonical=self.reference is not None,
            scale=self.scale != "none" or self.parts == "rotation",
            shift=self.placement.keeps_shift,
        )

    def attach(self, language_model: Qwen2_5_VLTextModel) -> None:
        config = language_model.config
        head_dim = config.hidden_size // config.num_attention_heads
        self.placement.block(head_dim, config.rope_parameters["mrope_section"])

    def encode(
        self,
        cameras: Cameras,
        *,
        head_dim: int,
        mrope_section: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> CameraMatrices:
        """See `CameraEncoding.encode`."""
        cameras = self.canonical(cameras)
        if self.parts != "both":
            poses = torch.eye(4, dtype=torch.float64, device=cameras.world_to_camera.device)
            poses = poses.repeat(*cameras.world_to_camera.shape[:2], 1, 1)
            part = slice(0, 3) if self.parts == "rotation" else slice(3, 4)
            poses[..., :3, part] = cameras.world_to_camera[..., :3, part]
            cameras = cameras.with_poses(poses)
        dtype = torch.promote_types(dtype, torch.float32)
        given = self.matrices(cameras)._asdict()
        # of row vectors: x' = M x is x M^T
        matrices = {name: m.mT.to(dtype) for name, m in given.items() if m is not None and name in self.terms}
        block = self.placement.block(head_dim, mrope_section)
        assert cameras.index is not None
        return CameraMatrices(cameras.index, block, not self.placement.before_rope, **matrices)


class CameraMatrices(EncodedCameras):
    """A 4 x 4 matrix a token on groups of four channels: row vectors times q, k, v and o, each optional.

    Tokens without a camera, and other channels, keep their bits; so do all under identity matrices.

    Args:
        index: the camera of each token, -1 for none.
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
        self.index, self.matrices = index, {"q": q, "k": k, "v": v, "o": o}
        sample, token = (index >= 0).nonzero(as_tuple=True)
        self.tokens = sample * index.shape[1] + token  # those that have a camera, in the flattened batch
        camera = index[sample, token]
        self.q, self.k, self.v, self.o = (None if m is None else m[sample, camera] for m in (q, k, v, o))

    def repeated(self, copies: int) -> CameraMatrices:
        matrices = {name: None if m is None else m.repeat_interleave(copies, 0) for name, m in self.matrices.items()}
        return CameraMatrices(self.index.repeat_interleave(copies, 0), self.block, self.in_rope_frame, **matrices)

    def before_rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (q, k) if self.in_rope_frame else (self._times(q, self.q), self._times(k, self.k))

    def after_rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (self._times(q, self.q), self._times(k, self.k)) if self.in_rope_frame else (q, k)

    def values(self, v: Tensor) -> Tensor:
        return self._times(v, self.v)

    def outputs(self, o: Tensor) -> Tensor:
        return self._times(o, self.o)

    def _times(
        self, x: Float[Tensor, "B L heads D"], matrices: Float[Tensor, "N 4 4"] | None
    ) -> Float[Tensor, "B L heads D"]:
        return x if matrices is None else _Times.apply(x, matrices, self.tokens, self.block)


class _Times(torch.autograd.Function):
    """x with the groups of four channels of some tokens multiplied by matrices.

    A function of its own because the gradient is the same map, with the matrices transposed: one copy of x,
    and what changes written into it, either way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, tokens: Tensor, block: ChannelBlock) -> Tensor:
        groups = block.group(block.view(x).flatten(0, 1)[tokens]).to(matrices.dtype)
        ctx.save_for_backward(groups if matrices.requires_grad else None, matrices, tokens)
        ctx.block = block
        # autocast would take this product to half precision, and the poses with it
        with torch.autocast(x.device.type, enabled=False):
            turned = groups.flatten(1, 2) @ matrices
        out = x.clone(memory_format=torch.contiguous_format)
        block.view(out).flatten(0, 1)[tokens] = block.ungroup(turned.view(groups.shape)).to(x.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        groups, matrices, tokens = ctx.saved_tensors
        grad_matrices = None
        if groups is not None:
            grad_groups = ctx.block.group(ctx.block.view(grads[0]).flatten(0, 1)[tokens])
            grad_matrices = groups.flatten(1, 2).mT @ grad_groups.to(groups.dtype).flatten(1, 2)
        return _Times.apply(grads[0], matrices.mT, tokens, ctx.block), grad_matrices, None, None
